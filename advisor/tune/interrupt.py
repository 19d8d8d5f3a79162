"""Ctrl-C handling: the first press finishes the run cleanly, the second stops it at once."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupt:
    """Flag that records whether Ctrl-C (SIGINT) was pressed, once or twice.

    Nothing is recorded, and Ctrl-C raises KeyboardInterrupt as ever, outside `handle_sigint`: the
    commands ask for it, a call of the library leaves the signal handlers of its host alone. The
    first Ctrl-C raises KeyboardInterrupt only inside an `interruptible` block. Elsewhere it
    only sets `requested`, which the program polls. The second Ctrl-C raises anywhere.

    Attributes
    ----------
    requested
        Whether Ctrl-C was pressed.
    requested_twice
        Whether it was pressed at least twice.
    """

    def __init__(self) -> None:
        self.requested = False
        self.requested_twice = False
        self._is_interruptible = False

    @contextlib.contextmanager
    def handle_sigint(self) -> Iterator[None]:
        """Install the SIGINT handler in this block; outside the main thread do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let the first Ctrl-C raise KeyboardInterrupt in this block."""
        self._is_interruptible = True
        try:
            if self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._is_interruptible = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested, self.requested_twice = True, self.requested
        if self.requested_twice or self._is_interruptible:
            raise KeyboardInterrupt
