"""Progress bars on a terminal."""

import io

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
