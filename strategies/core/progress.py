"""Who wants to hear how far the work has come, and where the time went."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

OnProgress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""
OnNote = Callable[[str], None]
"""Called with a sentence."""


def ignore_note(note: str) -> None:
    """Hear of a remark and do nothing."""


def ignore_progress(what: str, done: int, total: int) -> None:
    """Hear of progress and do nothing."""


@dataclass
class PhaseTimer:
    """Seconds by phase: every report of progress ends a lap of the phase that it names.

    What is reported once a phase is over thus costs nobody a stopwatch.

    Attributes
    ----------
    seconds
        By phase, in the order in which they were first heard of.
    """

    on_progress: OnProgress = ignore_progress
    seconds: dict[str, float] = field(default_factory=dict)
    last_s: float = field(default_factory=time.monotonic)

    def __call__(self, what: str, done: int, total: int) -> None:
        """Hear of progress, and pass it on."""
        self.end(what)
        self.on_progress(what, done, total)

    def end(self, what: str) -> None:
        """Add the time since the last report to a phase."""
        now = time.monotonic()
        self.seconds[what] = self.seconds.get(what, 0.0) + now - self.last_s
        self.last_s = now
