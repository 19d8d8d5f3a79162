"""Progress bars on a terminal, whole lines in a pipe, and log lines."""

import io
import logging
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

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


LONG = "/a folder/" + "/".join(["with a long name"] * 20)
PRINTS = f"""
from rich.padding import Padding
from rich.table import Table
from advisor.cli.console import stdout, stderr
table = Table.grid(padding=(0, 2))
table.add_row("path", {LONG!r})
table.add_row("x", "short")
for console in (stdout, stderr):
    console.print({LONG!r}, Padding(table, (0, 0, 0, 2), expand=False), sep=chr(10))
"""


def test_no_line_is_broken_and_none_ends_with_spaces_in_a_pipe() -> None:
    environment = {**os.environ, "COLUMNS": "80"}
    found = subprocess.run(
        [sys.executable, "-c", PRINTS], capture_output=True, text=True, env=environment, check=True
    )
    for output in (found.stdout, found.stderr):
        assert output.splitlines() == [LONG, f"  path  {LONG}", "  x     short"]


def test_lines_are_broken_on_a_terminal() -> None:
    reader, writer = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "dumb"}
    with subprocess.Popen(
        [sys.executable, "-c", PRINTS], stdout=writer, stderr=subprocess.PIPE, env=environment
    ) as process:
        os.close(writer)
        shown = b""
        while True:
            try:
                part = os.read(reader, 4096)
            except OSError:  # Linux: the other end is closed
                break
            if not part:
                break
            shown += part
    os.close(reader)
    assert process.returncode == 0
    assert max(map(len, shown.decode().splitlines())) <= 80


COMMANDS = (
    (["tl_auto", "cache", "info", "--cache-dir", "{path}"], 0),
    (["tl_auto", "cache", "clear", "--cache-dir", "{path}"], 0),
    (["tl_advise", "{path}"], 2),
    (["tl_auto", "run", "{path}", "--config", "{path}/missing.toml"], 2),
    (["tl_auto", "status", "{path}"], 2),
    (["tl_auto", "export", "{path}"], 2),
    (["tl_auto", "predict", "{path}", "x.png"], 2),
)


@pytest.mark.parametrize(("words", "code"), COMMANDS, ids=[" ".join(c[:3]) for c, _ in COMMANDS])
def test_commands_print_long_paths_whole_in_a_pipe(
    words: list[str], code: int, tmp_path: Path
) -> None:
    path = tmp_path / "a name with spaces that is much longer than a line of a terminal" / "of 80"
    program, *arguments = (word.format(path=path) for word in words)
    if "cache" not in words[1]:
        path = path / "missing"
        arguments = [word.format(path=path) for word in words[1:]]
    start = f"from advisor.cli.app import {program}; {program}()"
    found = subprocess.run(
        [sys.executable, "-c", start, *arguments], capture_output=True, text=True
    )
    assert found.returncode == code
    assert found.stdout == "" or code == 0
    lines = (found.stdout if code == 0 else found.stderr).splitlines()
    assert any(str(path) in line for line in lines), lines


def test_a_note_that_trials_repeat_is_printed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(console, "stderr", Console(file=shown, width=80))
    note = console.print_note_once()
    for sentence in ("The head is fitted to 8 images.", "One view.", "One view."):
        note(sentence)
    assert shown.getvalue() == "The head is fitted to 8 images.\nOne view.\n"


@pytest.mark.parametrize(
    ("verbosity", "levels"),
    [(0, ["warning"]), (1, ["info", "warning"]), (2, ["debug", "info", "warning"]), (9, None)],
)
def test_log_lines_of_this_program_go_to_stderr(
    verbosity: int, levels: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(console, "stderr", Console(file=shown, width=80))
    own, foreign = logging.getLogger("strategies.core.cache"), logging.getLogger("timm.models")
    with console.log_lines(verbosity):
        for logger in (own, foreign):
            for level in ("debug", "info", "warning"):
                if logger is own or level != "warning":
                    getattr(logger, level)("%s of %s: %s", level, logger.name, LONG)
    own.warning("after the command")
    lines = shown.getvalue().splitlines()
    expected = levels or ["debug", "info", "warning"]
    messages = [f"{level} of strategies.core.cache: {LONG}" for level in expected]
    assert [line[-len(text) :] for line, text in zip(lines, messages, strict=True)] == messages
    heads = [" INFO strategies.core.cache: " in line for line in lines if "info of" in line]
    assert all(heads)
    assert logging.getLogger("strategies").handlers == []


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "PASSIVE False"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE False")]
)
def test_on_a_busy_machine_threads_sleep_unless_the_user_says_otherwise(
    given: dict[str, str], expected: str
) -> None:
    """The variable counts if it is set before torch is imported."""
    code = (
        "import os, sys; from advisor.cli import app, console\n"
        "console._OTHERS.share = lambda: 1.0\n"
        "def end(code):\n"
        "    print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules, file=sys.stderr)\n"
        "os._exit = end; sys.argv[1:] = ['--version']; app.tl_auto()"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | given
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert found.stderr.strip() == expected
