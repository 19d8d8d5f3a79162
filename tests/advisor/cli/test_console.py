"""Progress bars on a terminal."""

import io
import time

import pytest
from rich.console import Console

from advisor.cli import console


def test_a_terminal_shows_what_is_done_of_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=80)
    monkeypatch.setattr(console, "stderr", terminal)
    with console.progress(quiet=False) as show:
        show("features", 3, 8)
        show("features", 8, 8)
    assert "features" in shown.getvalue()
    assert "8/8" in shown.getvalue()


def test_what_is_below_the_bars_changes_in_place_and_is_removed_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=80)
    monkeypatch.setattr(console, "stderr", terminal)
    below: list[str] = []
    with console.progress(quiet=False, below=below) as show:
        show("features", 3, 8)
        for answer in ("first answer", "better answer"):
            below[:] = [answer]
            until_s = time.monotonic() + 10
            while answer not in shown.getvalue() and time.monotonic() < until_s:
                time.sleep(0.01)
    first, last = shown.getvalue().rsplit("better answer", 1)
    assert "first answer" in first
    assert "\x1b[1A\x1b[2K" in last  # the line above is erased


@pytest.mark.parametrize(("is_terminal", "quiet"), [(False, False), (True, True)])
def test_nothing_is_shown_in_a_pipe_or_when_quiet(
    is_terminal: bool, quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=is_terminal, width=80)
    monkeypatch.setattr(console, "stderr", terminal)
    with console.progress(quiet=quiet) as show:
        show("features", 3, 8)
    assert shown.getvalue() == ""


def test_the_console_that_is_imported_late_shows_progress_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=80)
    monkeypatch.setitem(vars(console.stderr), "_console", terminal)
    with console.progress(quiet=False) as show:
        show("features", 8, 8)
    assert "8/8" in shown.getvalue()
