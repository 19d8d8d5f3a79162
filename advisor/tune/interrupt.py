"""Ctrl-C: once to finish cleanly with what was found, twice to stop at once."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupt:
    """Whether somebody pressed Ctrl-C.

    The first time, only a block that says it may be interrupted is left, by KeyboardInterrupt;
    everything else runs on and looks at `asked`. The second time, anything is.
    """

    def __init__(self) -> None:
        self.asked = False
        self.asked_twice = False
        self._may_raise = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Handle Ctrl-C in this block; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextlib.contextmanager
    def allowed(self) -> Iterator[None]:
        """Let the first Ctrl-C leave this block."""
        self._may_raise = True
        try:
            if self.asked:
                raise KeyboardInterrupt
            yield
        finally:
            self._may_raise = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.asked, self.asked_twice = True, self.asked
        if self.asked_twice or self._may_raise:
            raise KeyboardInterrupt
