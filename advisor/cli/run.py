"""Commands tl-auto run, resume and status: hyperparameter search in a run folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advisor.cli import console
from advisor.cli.console import (
    INTERRUPTED,
    configure_process,
    errors,
    print_json,
    print_note_once,
    progress,
    seconds_left,
    stderr,
    stdout,
)
from advisor.cli.options import Data, Demo, Json, Output, Run, Version, data_folder, with_flags
from advisor.types.flags import Flag
from advisor.types.options import Options, RunOptions
from strategies.core.progress import OnProgress

if TYPE_CHECKING:
    from advisor.types.events import Event, OnEvent
    from advisor.types.outcome import Outcome


@dataclass(frozen=True)
class RunOutput(Output):
    """What tl-auto run and resume print and write."""

    tensorboard: Annotated[
        bool, Flag("Also write validation accuracies for TensorBoard.", panel="Output")
    ] = False


def about_auto(version: Version = False) -> None:
    """Search hyperparameters within a time limit, and use the resulting classifier."""


@with_flags
def run_command(
    data: Data = None,
    demo: Demo = False,
    out: Annotated[
        Path | None, Flag("Run folder to create; default: runs/NAME-1.", panel="Output")
    ] = None,
    *,
    options: Options,
    run: RunOptions,
    output: RunOutput,
) -> None:
    """Tune the advised strategies within a time; save a classifier."""
    dataset = data_folder(data, demo, options.cache_dir)
    folder = out or _new_run_folder(dataset)
    with show_events(folder, output) as (on_progress, on_event), run_errors(folder):
        from advisor.tune.driver import auto
        from advisor.tune.interrupt import Interrupt

        options = replace(options, on_progress=on_progress, on_note=print_note_once())
        outcome = auto(
            dataset,
            folder,
            options,
            run,
            on_event=on_event,
            interrupt=Interrupt(),
            began_s=console.STARTED_S,
        )
    _print_outcome(outcome, output)


@with_flags
def resume_command(
    run: Run,
    time_s: Annotated[
        float | None,
        Flag(
            "Time limit from now on; default: the time that was left.",
            name="--time",
            panel="Budget",
            is_duration=True,
        ),
    ] = None,
    *,
    output: RunOutput,
) -> None:
    """Resume a run that was interrupted or killed."""
    with show_events(run, output) as (on_progress, on_event), run_errors(run):
        from advisor.tune.interrupt import Interrupt
        from advisor.tune.resume import resume
        from advisor.tune.run_dir.directory import RunDir

        if RunDir.open(run).is_done():
            stderr.print(f"{run} is finished: there is nothing to resume.", highlight=False)
            if output.json:
                print_json(RunDir.open(run).read("outcome.json"))
            return
        outcome = resume(
            run,
            time_s=None if time_s is None else seconds_left(time_s),
            on_progress=on_progress,
            on_note=print_note_once(),
            on_event=on_event,
            interrupt=Interrupt(),
        )
    _print_outcome(outcome, output)


@with_flags
def status_command(run: Run, as_json: Json = False) -> None:
    """Show the state of a run: trials, best so far, time left."""
    with errors():
        from advisor.tune.run_dir.directory import RunDir
        from advisor.tune.run_dir.status import status_lines, status_record

        folder = RunDir.open(run)
        record = status_record(folder)
        lines = status_lines(folder, record)
    if as_json:
        print_json(record)
    else:
        stdout.print("\n".join(lines), highlight=False, markup=False)


@contextmanager
def show_events(folder: Path, output: RunOutput) -> Iterator[tuple[OnProgress, "OnEvent"]]:
    """Show progress and trials on stderr; with --tensorboard, also write its event files."""
    with progress(output.quiet) as on_progress, errors():
        from advisor.cli.live import TensorBoard
        from advisor.report.live.lines import line_of

        configure_process()
        board = TensorBoard(folder / "tensorboard") if output.tensorboard else None

        def on_event(event: "Event") -> None:
            line = None if output.quiet else line_of(event)
            if line is not None:
                stderr.print(line, highlight=False, markup=False, soft_wrap=True)
            if board is not None:
                board(event)

        try:
            yield on_progress, on_event
        finally:
            if board is not None:
                board.close()


@contextmanager
def run_errors(folder: Path) -> Iterator[None]:
    """Turn errors into messages, and print how to resume an interrupted run."""
    try:
        with errors():
            yield
    except typer.Exit as end:
        if end.exit_code == INTERRUPTED and (folder / "run.json").exists():
            stderr.print(f"Resume it with: tl-auto resume {folder}", highlight=False)
        raise


def _print_outcome(outcome: "Outcome", output: RunOutput) -> None:
    if output.json:
        from advisor.report.outcome_json import outcome_record

        print_json(outcome_record(outcome))
    elif output.quiet:
        from advisor.types.summary import winner

        accuracy = "no test" if outcome.test is None else outcome.test.accuracy.percent()
        stdout.print(f"{winner(outcome)}: {accuracy} -> {outcome.folder}", highlight=False)
    else:
        from advisor.report.terminal import print_outcome

        print_outcome(stdout, outcome)
    if outcome.ended == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _new_run_folder(data: Path) -> Path:
    number = 1
    while (folder := Path("runs") / f"{data.resolve().name}-{number}").exists():
        number += 1
    return folder
