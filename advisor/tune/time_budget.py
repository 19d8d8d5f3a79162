"""What is left of the time limit once judging, saving and reporting are provided for."""

import time
from dataclasses import dataclass

SPARE_S = 1.0
"""For what is not measured: reading the best classifier, writing the outcome."""
FACTOR = 1.15
"""Judging and the page take this much longer than measured, at most."""
SOUP_S = 2.0
"""For reading the best training runs from disk, and writing their average."""
SHORTEST_S = 2.5
"""A training that has less time than this, apart from judging, is not worth starting."""
JUDGED = 2
"""A training is judged on validation at its start and its end at least."""


@dataclass
class TimeBudget:
    """The deadline of a run, and how fast this machine judges images.

    Attributes
    ----------
    deadline_s
        ``time.monotonic()`` at which the program must have ended.
    n_test, n_val
        Images that are judged once at the end, and once a trial.
    by_px
        Seconds to judge one image, as seen lately, at every input size in use.
    control_s
        Seconds that the search leaves to the control.
    has_control
        Whether the probe that leads has its control already; a training that leads needs its own.
    training_leads
        Whether the best trial so far is a training.
    n_soup
        Images that will be looked at to judge averages of the best training runs (`soup`).
    page_s
        Seconds that the page took when it was drafted.
    """

    deadline_s: float
    n_test: int
    n_val: int
    by_px: dict[int, float]
    control_s: float = 0.0
    page_s: float = 0.0
    has_control: bool = False
    training_leads: bool = False
    n_soup: int = 0

    @property
    def s_per_image(self) -> float:
        """Seconds to judge one image at the slowest size: the best classifier may have it."""
        return max(self.by_px.values())

    def saw(self, n: int, seconds: float, px: int) -> None:
        """Learn from having judged `n` images; a slow moment is forgotten by and by."""
        self.by_px[px] = max(seconds / n, self.by_px.get(px, 0.0) / 2)

    def page_begins_s(self) -> float:
        """Return the ``time.monotonic()`` at which all must be judged."""
        return self.deadline_s - SPARE_S - FACTOR * self.page_s

    def judging_begins_s(self) -> float:
        """Return the ``time.monotonic()`` at which test must be turned to."""
        return self.page_begins_s() - FACTOR * self.n_test * self.s_per_image

    def soup_ends_s(self) -> float:
        """Return the ``time.monotonic()`` at which no more averages may be judged."""
        is_due = self.training_leads or not self.has_control
        return self.judging_begins_s() - is_due * self.control_s

    def search_ends_s(self) -> float:
        """Return the ``time.monotonic()`` at which the last trial must be over."""
        soup_s = FACTOR * self.n_soup * self.s_per_image + SOUP_S if self.n_soup else 0.0
        return self.soup_ends_s() - soup_s

    def fit_ends_s(self) -> float:
        """Return the ``time.monotonic()`` at which a trial must turn to being judged on val."""
        return self.search_ends_s() - FACTOR * self.n_val * self.s_per_image - 0.3

    def fold_ends_s(self, n_left: int) -> float:
        """Return when the next of so many fits to one trial must be over: they share the time."""
        now = time.monotonic()
        return now + (self.fit_ends_s() - now) / n_left

    def left_s(self) -> float:
        """Return the seconds in which trials can still be run."""
        return self.fit_ends_s() - time.monotonic()

    def shortest_s(self) -> float:
        """Return the least time that a training is worth starting with."""
        return SHORTEST_S + JUDGED * self.n_val * self.s_per_image
