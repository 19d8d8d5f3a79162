"""What a fit reports to its caller, and a timer that records the seconds of each phase."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

OnProgress = Callable[[str, int, int], None]
"""Called with (phase, done, total)."""
OnNote = Callable[[str], None]
"""Called with a sentence for the user."""
OnEpoch = Callable[[int, float | None], None]
"""Called with (epoch from 1, validation accuracy or None without validation images)."""


def ignore(*reported: object) -> None:
    """Ignore what is reported (default callback)."""


@contextlib.contextmanager
def unlogged(logger: str) -> Iterator[None]:
    """Keep a logger's messages from what this thread does in the block out of the log.

    Level and handlers of the logger, which belong to the calling program, stay as they are.
    """
    thread, found = threading.get_ident(), logging.getLogger(logger)

    def is_of_another_thread(record: logging.LogRecord) -> bool:
        return record.thread != thread

    found.addFilter(is_of_another_thread)
    try:
        yield
    finally:
        found.removeFilter(is_of_another_thread)


@dataclass(frozen=True)
class Reporter:
    """The callbacks through which a fit reports to its caller.

    Attributes
    ----------
    on_progress
        Called with (phase, done, total).
    on_note
        Called with a sentence when a fit deviates from what was asked for.
    on_epoch
        Called at the end of every epoch with the validation accuracy. It may raise to end the fit.
    """

    on_progress: OnProgress = ignore
    on_note: OnNote = ignore
    on_epoch: OnEpoch = ignore


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

    on_progress: OnProgress = ignore
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
