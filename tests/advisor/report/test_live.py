"""Progress of a library call: on a terminal, in a notebook, and as lines of text."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from advisor import advise
from advisor.report.live import bars
from advisor.report.live.show import showing
from advisor.types.events import Event
from advisor.types.options import Options
from strategies.core.metrics import proportion

ENDED = Event("ended", 3, "lora", 60.0, accuracy=proportion(0.9, 50))


def test_a_call_shows_nothing_unless_asked(
    make_folder: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, seen = make_folder("data", 8), list[str]()
    options = Options(
        input_px=32,
        device="cpu",
        cache_dir=tmp_path / "cache",
        on_progress=lambda what, done, total: seen.append(what),
    )
    silent = advise(data, options)
    assert capfd.readouterr() == ("", "")
    n_silent = len(seen)
    shown = advise(data, options, show_progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "images 24/24" in err.splitlines()
    assert len(err.splitlines()) < 30
    assert len(seen) > n_silent  # the caller's own callback is called as well
    assert shown.recommendations[0].strategy == silent.recommendations[0].strategy


def test_without_a_terminal_the_end_of_every_phase_is_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = io.StringIO()
    with bars.opened(Console(file=page, width=80)) as display:
        for done in range(1, 1001):
            display.on_progress("features", done, 1000)
        display.on_line("a note with [brackets] that is longer than the eighty columns of a line")
        bars.on_event(display, ENDED)
        bars.on_event(display, Event("round", 3, "lora", 60.0, step=1))
    lines = page.getvalue().splitlines()
    assert lines[0] == "features 1,000/1,000"
    assert lines[1].startswith("a note with [brackets]")
    assert lines[2].startswith("trial 3 lora: validation accuracy 90.0%")
    assert len(lines) == 3


def test_a_long_phase_is_mentioned_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    page = io.StringIO()
    monkeypatch.setattr(bars, "SECONDS_PER_LINE", 0.0)
    with bars.opened(Console(file=page, width=80)) as display:
        display.on_progress("features", 1, 3)
    assert page.getvalue() == "features 1/3\n"


def test_a_terminal_shows_bars_with_lines_above_them() -> None:
    page = io.StringIO()
    terminal = Console(file=page, force_terminal=True, width=80)
    with bars.opened(terminal) as display:
        display.on_progress("features", 8, 8)
        display.on_line("first")
    assert "8/8" in page.getvalue()
    assert "first" in page.getvalue()


def test_a_phase_that_ends_with_another_total_has_a_full_bar() -> None:
    page = io.StringIO()
    with bars.progress_bars(Console(file=page, force_terminal=True, width=80)) as show:
        show("similarity", 200, 200)
        show("similarity", 1, 1)
        show("scan", 3, 0)
    assert "1/1" in page.getvalue()
    assert "1/200" not in page.getvalue()
    assert "3/?" in page.getvalue()


def test_a_notebook_shows_one_text_that_changes_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, data: dict[str, str], *, raw: bool) -> None:
            assert raw
            shown.append(data["text/plain"])

    def display(data: dict[str, str], *, raw: bool, display_id: bool) -> Handle:
        assert raw
        assert display_id
        return Handle()

    module: Any = ModuleType("IPython.display")
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    with bars.opened(Console(file=io.StringIO(), force_jupyter=True)) as found:
        for done in range(1, 501):
            found.on_progress("features", done, 500)
        bars.on_event(found, ENDED)
        found.on_progress("findings", 1, 1)
    lines = shown[-1].splitlines()
    assert lines[0].startswith("trial 3 lora: ")
    assert lines[1] == "features 500/500 · findings"
    assert len(shown) < 50  # not one message per image


def test_callbacks_of_the_caller_are_called_once_and_errors_in_them_are_raised() -> None:
    def fail(event: Event) -> None:
        raise RuntimeError("of the caller")

    with (
        pytest.raises(RuntimeError, match="of the caller"),
        showing(True, Options(), fail) as (_, on_event),
    ):
        on_event(ENDED)
    options = Options()
    with showing(False, options, fail) as (same, on_event):
        assert same is options
        assert on_event is fail
