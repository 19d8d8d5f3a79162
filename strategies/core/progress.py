"""Progress callbacks, and a timer that records the seconds spent in each phase."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

OnProgress = Callable[[str, int, int], None]
"""Called with (phase, done, total)."""
OnNote = Callable[[str], None]
"""Called with a sentence for the user."""


def ignore_note(note: str) -> None:
    """Ignore a note (default callback)."""


def ignore_progress(what: str, done: int, total: int) -> None:
    """Ignore progress (default callback)."""


@dataclass
class PhaseTimer:
    """Progress callback that adds up the seconds of each phase.

    The time since the previous report is added to the phase that the current report names. So a
    phase that reports progress needs no timer of its own.

    Attributes
    ----------
    on_progress
        The callback to which progress is passed on.
    seconds
        Seconds by phase, in the order of the first reports.
    last_s
        Value of ``time.monotonic()`` at the last report.
    """

    on_progress: OnProgress = ignore_progress
    seconds: dict[str, float] = field(default_factory=dict)
    last_s: float = field(default_factory=time.monotonic)

    def __call__(self, what: str, done: int, total: int) -> None:
        """Record the time since the last report, and pass the progress on."""
        self.end(what)
        self.on_progress(what, done, total)

    def end(self, what: str) -> None:
        """Add the time since the last report to a phase."""
        now = time.monotonic()
        self.seconds[what] = self.seconds.get(what, 0.0) + now - self.last_s
        self.last_s = now
