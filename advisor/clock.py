"""What is left of the time limit once judging, saving and reporting are provided for."""

import time
from dataclasses import dataclass

SPARE_S = 2.5
"""For what is not measured: saving, and leaving."""
FACTOR = 1.15
"""Judging takes this much longer than measured, at most."""


@dataclass
class Clock:
    """The deadline of a run, and how fast this machine judges pictures.

    Attributes
    ----------
    deadline_s
        ``time.monotonic()`` at which the program must have ended.
    n_test, n_val
        Pictures that are judged once at the end, and once a trial.
    s_per_image
        Seconds to judge one picture, as seen lately.
    after_s
        Seconds of what comes after the search, apart from judging: the control, the page.
    """

    deadline_s: float
    n_test: int
    n_val: int
    s_per_image: float
    after_s: float = 0.0

    def saw(self, n: int, seconds: float) -> None:
        """Learn from having judged `n` pictures; a slow moment is forgotten by and by."""
        self.s_per_image = max(seconds / n, self.s_per_image / 2)

    def search_ends_s(self) -> float:
        """Return the ``time.monotonic()`` at which the last trial must be over."""
        judging = FACTOR * self.n_test * self.s_per_image
        return self.deadline_s - SPARE_S - self.after_s - judging

    def fit_ends_s(self) -> float:
        """Return the ``time.monotonic()`` at which a trial must turn to being judged on val."""
        return self.search_ends_s() - FACTOR * self.n_val * self.s_per_image - 0.3

    def left_s(self) -> float:
        """Return the seconds in which trials can still be run."""
        return self.fit_ends_s() - time.monotonic()
