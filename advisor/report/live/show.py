"""Progress of a library call, shown if its caller asks for it."""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVarTuple

from advisor.types.events import Event, OnEvent
from advisor.types.options import Options
from strategies.core.progress import ignore

Ts = TypeVarTuple("Ts")


@contextlib.contextmanager
def showing(
    show_progress: bool, options: Options, on_event: OnEvent = ignore
) -> Iterator[tuple[Options, OnEvent]]:
    """Return options and callback that also show progress, if `show_progress`.

    Callbacks that are given are called as well.
    """
    if not show_progress:
        yield options, on_event
        return
    # Imported here: importing rich takes as long as reading a hundred images.
    bars = importlib.import_module("advisor.report.live.bars")
    console = importlib.import_module("rich.console").Console(stderr=True)
    with bars.opened(console) as display:

        def show_event(event: Event) -> None:
            bars.on_event(display, event)

        shown = replace(
            options,
            on_progress=_both(display.on_progress, options.on_progress),
            on_note=_both(display.on_line, options.on_note),
        )
        yield shown, _both(show_event, on_event)


def _both(first: Callable[[*Ts], None], second: Callable[[*Ts], None]) -> Callable[[*Ts], None]:
    """Return a callback that calls both."""

    def call(*given: *Ts) -> None:
        first(*given)
        second(*given)

    return call
