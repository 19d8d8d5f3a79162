"""Consoles, progress bars, error handling and exit of the commands."""

import gc
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn, cast

import typer

from strategies.core.limits import OtherLoad, thread_settings
from strategies.core.progress import OnProgress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from strategies.data.image import Skipped


STARTED_S = time.monotonic() - time.process_time()
"""About when this process started, on the clock of `time.monotonic`."""
_OTHERS = OtherLoad()
USAGE_ERROR, FINDINGS, INTERRUPTED = 2, 3, 130
"""Exit codes besides 0 (answered) and 1 (a bug): what the user can mend, and --fail-on."""
UNWRAPPED = 1_000_000
"""Width of output that is not to a terminal: no line of a report or a message is broken."""
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
GC_THRESHOLD = 100_000
"""Objects that are created before the garbage collector runs."""


class _LazyConsole:
    """Rich console that is imported at its first use, to keep ``--help`` fast."""

    def __init__(self, to_stderr: bool) -> None:
        self._to_stderr = to_stderr

    @cached_property
    def _console(self) -> "Console":
        from rich.console import Console

        class Unwrapped(Console):
            """Console of a file or pipe: no line is broken, and none ends with spaces."""

            def print(self, *objects: Any, **settings: Any) -> None:
                with self.capture() as captured:
                    super().print(*objects, **settings)
                self.file.write(re.sub(r" +$", "", captured.get(), flags=re.MULTILINE))
                self.file.flush()

        console = Console(stderr=self._to_stderr)
        if console.is_terminal:
            return console
        return Unwrapped(stderr=self._to_stderr, width=UNWRAPPED)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._console, name)

    def __enter__(self) -> "Console":
        # Python looks up the methods of a `with` statement on the class; progress bars use it.
        return self._console.__enter__()

    def __exit__(self, *error: object) -> None:
        self._console.__exit__(*error)


stdout = cast("Console", _LazyConsole(to_stderr=False))
stderr = cast("Console", _LazyConsole(to_stderr=True))


def seconds_left(limit_s: float) -> float:
    """Return the seconds left of a time limit counted from the start of this process."""
    return limit_s - (time.monotonic() - STARTED_S)


def run_and_exit(app: typer.Typer) -> None:
    """Run a command, then exit without interpreter shutdown: all output is on disk by then.

    Shutdown would unload every module, which takes a third as long as importing them did. The
    garbage collector runs rarely: by default it takes a tenth of the time of imports, which create
    many objects and no garbage. The threads of torch, which is not imported yet, are set unless
    the user has set them.
    """
    gc.set_threshold(GC_THRESHOLD)
    for name, value in thread_settings(_OTHERS.share()).items():
        os.environ.setdefault(name, value)
    try:
        app()
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        with suppress(BrokenPipeError):  # the reader closed the pipe
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(end.code)


def configure_process() -> None:
    """Set memory allocation and Optuna's log level for the whole process of a command."""
    import optuna

    from strategies.core.allocator import keep_freed_memory

    keep_freed_memory()
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def print_note(sentence: str) -> None:
    """Print to stderr that a training run deviates from its settings."""
    stderr.print(sentence, highlight=False, markup=False)


def print_note_once() -> Callable[[str], None]:
    """Return a function that prints a note to stderr, but not a second time.

    Trials of a run differ from their settings in the same ways.
    """
    printed: set[str] = set()

    def print_new(sentence: str) -> None:
        if sentence not in printed:
            printed.add(sentence)
            print_note(sentence)

    return print_new


class _ConsoleHandler(logging.Handler):
    """Log handler that prints above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a log line to stderr."""
        stderr.print(self.format(record), highlight=False, markup=False, soft_wrap=True)


@contextmanager
def log_lines(verbosity: int) -> Iterator[None]:
    """Print the log lines of this program to stderr.

    Parameters
    ----------
    verbosity
        0: warnings; 1: also INFO; 2: also DEBUG.
    """
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    handler = _ConsoleHandler()
    handler.setFormatter(logging.Formatter("%(message)s" if not verbosity else LOG_FORMAT))
    loggers = [logging.getLogger(name) for name in ("advisor", "strategies")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, old in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(old)


def print_skipped(skipped: Iterable["Skipped"]) -> None:
    """Print the files that were left out to stderr, with reasons."""
    from strategies.data.image import shown

    for file in skipped:
        line = f"skipped: {shown(file.path)}: {file.reason}"
        stderr.print(line, highlight=False, markup=False, soft_wrap=True)


def fail(message: str) -> NoReturn:
    """Print an error that the user can fix to stderr, and exit with code 2."""
    stderr.print(f"Error: {message}", highlight=False, markup=False)
    raise typer.Exit(USAGE_ERROR)


@contextmanager
def errors() -> Iterator[None]:
    """Turn the program's own errors into a message and exit code 2; other errors are bugs."""
    from strategies.core.errors import TransferError

    try:
        yield
    except TransferError as error:
        fail(str(error))
    except KeyboardInterrupt:
        stderr.print("Interrupted.", highlight=False)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def progress(quiet: bool, below: Sequence["RenderableType"] = ()) -> Iterator[OnProgress]:
    """Show progress bars on stderr, if it is a terminal and not `quiet`.

    Parameters
    ----------
    below
        What is shown below the bars, and removed with them. It may change at any time.
    """
    if quiet or not stderr.is_terminal:
        yield lambda what, done, total: None
        return
    from advisor.report.live.bars import progress_bars

    with progress_bars(stderr, below) as show:
        yield show


def print_json(value: object) -> None:
    """Print JSON to stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
