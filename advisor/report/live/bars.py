"""Progress bars on a terminal, a text that changes in place in a notebook, or lines elsewhere."""

import contextlib
import importlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from advisor.report.live.lines import line_of
from advisor.types.events import Event
from strategies.core.progress import OnProgress

REFRESH_PER_S = 10
SECONDS_PER_UPDATE = 0.2
"""Least time between two changes of the text in a notebook."""
SECONDS_PER_LINE = 10.0
"""Least time between two lines about one phase where there is neither terminal nor notebook."""


class Display(Protocol):
    """Something that shows the progress of a call."""

    def on_progress(self, what: str, done: int, total: int) -> None:
        """Show how much of a phase is done."""

    def on_line(self, line: str) -> None:
        """Show a sentence that stays."""


def on_event(display: Display, event: Event) -> None:
    """Show an event of a search, if it is worth a line."""
    line = line_of(event)
    if line is not None:
        display.on_line(line)


@contextlib.contextmanager
def opened(console: Console) -> Iterator[Display]:
    """Show progress in the way that suits where the console is."""
    if console.is_jupyter:
        notebook = NotebookDisplay()
        try:
            yield notebook
        finally:
            notebook.update()
    elif console.is_terminal:
        with progress_bars(console) as show:
            yield TerminalDisplay(console, show)
    else:
        yield LineDisplay(console)


@contextlib.contextmanager
def progress_bars(console: Console, below: Sequence[RenderableType] = ()) -> Iterator[OnProgress]:
    """Show a bar for every phase on a terminal, and remove them at the end.

    Parameters
    ----------
    below
        What is shown below the bars, and removed with them. It may change at any time.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bars = Progress(*columns, TimeElapsedColumn(), console=console)
    task_ids: dict[str, Any] = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in task_ids:
            task_ids[what] = bars.add_task(what, total=None)
        bars.update(task_ids[what], completed=done, total=total or None)

    screen = Live(
        get_renderable=lambda: Group(bars, *below),
        console=console,
        transient=True,
        refresh_per_second=REFRESH_PER_S,
    )
    with screen:
        yield show


class TerminalDisplay:
    """Lines above the progress bars of a terminal."""

    def __init__(self, console: Console, show: OnProgress) -> None:
        self._console, self.on_progress = console, show

    def on_line(self, line: str) -> None:
        """Print a line above the bars."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class LineDisplay:
    """Lines of text: one when a phase ends, and now and then while it lasts."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._printed_s: dict[str, float] = {}

    def on_progress(self, what: str, done: int, total: int) -> None:
        """Print how much is done, unless that was printed just now."""
        now = time.monotonic()
        last_s = self._printed_s.setdefault(what, now)
        if done == total or now - last_s >= SECONDS_PER_LINE:
            self._printed_s[what] = now
            self.on_line(_phase(what, done, total))

    def on_line(self, line: str) -> None:
        """Print a line."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class NotebookDisplay:
    """Text below a cell that changes in place; it needs no widgets."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._phases: dict[str, tuple[int, int]] = {}
        self._updated_s = time.monotonic()
        display = importlib.import_module("IPython.display").display
        self._handle = display(self._text(), raw=True, display_id=True)

    def on_progress(self, what: str, done: int, total: int) -> None:
        """Show how much is done below the lines."""
        self._phases[what] = (done, total)
        if time.monotonic() - self._updated_s >= SECONDS_PER_UPDATE:
            self.update()

    def on_line(self, line: str) -> None:
        """Add a line."""
        self._lines.append(line)
        self.update()

    def update(self) -> None:
        """Show the present text."""
        self._updated_s = time.monotonic()
        self._handle.update(self._text(), raw=True)

    def _text(self) -> dict[str, str]:
        phases = " · ".join(_phase(what, *counts) for what, counts in self._phases.items())
        return {"text/plain": "\n".join([*self._lines, phases])}


def _phase(what: str, done: int, total: int) -> str:
    if total == 1:
        return what
    return f"{what} {done:,}/{total:,}" if total else f"{what} {done:,}"
