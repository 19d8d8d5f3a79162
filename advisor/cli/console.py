"""Consoles, progress and errors of the commands."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn, cast

import typer

if TYPE_CHECKING:
    from rich.console import Console


OnProgress = Callable[[str, int, int], None]


STARTED_S = time.monotonic() - time.process_time()


USAGE_ERROR, INTERRUPTED = 2, 130


class _LazyConsole:
    """A rich console that is imported at its first use: ``--help`` needs none."""

    def __init__(self, to_stderr: bool) -> None:
        self._to_stderr = to_stderr

    @cached_property
    def _console(self) -> "Console":
        from rich.console import Console

        return Console(stderr=self._to_stderr)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._console, name)


stdout = cast("Console", _LazyConsole(to_stderr=False))


stderr = cast("Console", _LazyConsole(to_stderr=True))


def seconds_left(limit_s: float) -> float:
    """Return what is left of a limit on this process."""
    return limit_s - (time.monotonic() - STARTED_S)


def run_and_leave(app: typer.Typer) -> None:
    """Run a command, and leave at once: all that it wrote is on disk.

    The interpreter would take apart every module first, for a third as long as loading them took.
    """
    try:
        app()
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        with suppress(BrokenPipeError):  # who has stopped reading wants no more
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(end.code)


def note(sentence: str) -> None:
    """Say what a training does otherwise than it was meant to."""
    stderr.print(sentence, highlight=False, markup=False)


def fail(message: str) -> NoReturn:
    """Say what the user can mend, and end."""
    stderr.print(f"Error: {message}", highlight=False, markup=False)
    raise typer.Exit(USAGE_ERROR)


@contextmanager
def errors() -> Iterator[None]:
    """Turn the program's own errors into a sentence and exit code 2; the rest are bugs."""
    from strategies.core.errors import TransferError

    try:
        yield
    except TransferError as error:
        fail(str(error))
    except KeyboardInterrupt:
        stderr.print("Interrupted.", highlight=False)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def progress(quiet: bool) -> Iterator[OnProgress]:
    """Show progress on stderr, where it is a terminal and wanted."""
    if quiet or not stderr.is_terminal:
        yield lambda what, done, total: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (TextColumn("{dataset.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=stderr, transient=True) as bars:
        known: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in known:
                known[what] = bars.add_task(what, total=total or None)
            bars.update(known[what], completed=done)

        yield show


def print_json(value: object) -> None:
    """Print JSON to stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
