"""Commands tl-auto run, resume, worker and status: hyperparameter search in a run folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advisor.cli.console import (
    INTERRUPTED,
    OnProgress,
    configure_process,
    errors,
    print_json,
    print_note,
    progress,
    seconds_left,
    stderr,
    stdout,
)
from advisor.cli.options import (
    BackboneName,
    CacheDir,
    Data,
    Demo,
    Device,
    GroupBy,
    InputPx,
    Json,
    MaxImages,
    MaxQuarantine,
    PilotOption,
    PreferOption,
    Quiet,
    ReferenceFolder,
    Root,
    Seed,
    StrategyName,
    Test,
    Val,
    Workers,
    data_folder,
    options_of,
    parse_duration_s,
)

if TYPE_CHECKING:
    from advisor.types.events import Event, OnEvent
    from advisor.types.outcome import Outcome

Run = Annotated[Path, typer.Argument(help="Run folder.")]
Out = Annotated[Path | None, typer.Option(help="Run folder to create; default: runs/NAME-1.")]
TimeLimit = Annotated[
    str, typer.Option("--time", help="Time limit of the whole command: 90s, 10m, 2h.")
]
MaxTrials = Annotated[int | None, typer.Option(min=1, help="Maximum number of trials.")]
Heartbeat = Annotated[
    int,
    typer.Option("--heartbeat", min=1, help="Seconds between two heartbeats of a worker process."),
]
WithControl = Annotated[
    bool,
    typer.Option(
        help="Use a tenth of the time for a random-init control, to measure the transfer gain."
    ),
]
WithSoup = Annotated[
    bool,
    typer.Option(
        help="Average the weights of the best trials (model soup); keep the average if it scores "
        "better on validation."
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(
        help="Start a worker process on each of these devices: all, or e.g. cuda:0,cuda:2."
    ),
]
DataParallel = Annotated[
    int, typer.Option(min=1, help="Data-parallel processes per training run, each on its own GPU.")
]
Storage = Annotated[
    str | None,
    typer.Option(
        help="Database of the trials, for workers on other machines: postgresql://USER@HOST/DB."
    ),
]
Artifacts = Annotated[
    str | None,
    typer.Option(
        help="Artifact store for machines without access to the run folder: a folder or "
        "s3://BUCKET/PREFIX."
    ),
]
WithBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Also write validation accuracies for TensorBoard.")
]


def about_auto() -> None:
    """Search hyperparameters within a time limit, and use the resulting classifier."""


def run_command(
    data: Data = None,
    demo: Demo = False,
    out: Out = None,
    time_limit: TimeLimit = "10m",
    trials: MaxTrials = None,
    storage: Storage = None,
    heartbeat_s: Heartbeat = 10,
    control: WithControl = True,
    soup: WithSoup = True,
    devices: Devices = None,
    artifacts: Artifacts = None,
    ddp: DataParallel = 1,
    tensorboard: WithBoard = False,
    backbone: BackboneName = "auto",
    input_px: InputPx = None,
    strategy: StrategyName = "auto",
    val: Val = None,
    test: Test = None,
    seed: Seed = 0,
    device: Device = "auto",
    workers: Workers = None,
    cache_dir: CacheDir = None,
    root: Root = None,
    group_by: GroupBy = None,
    max_images: MaxImages = 5000,
    max_quarantine: MaxQuarantine = 0.1,
    reference: ReferenceFolder = None,
    prefer: PreferOption = "balanced",
    pilot: PilotOption = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Tune the recommended strategies within a time limit and save a classifier."""
    given = locals()
    limit_s = parse_duration_s(time_limit)
    dataset = data_folder(data, demo, cache_dir)
    folder = out or _new_run_folder(dataset)
    with show_events(folder, quiet, tensorboard) as (on_progress, on_event), run_errors(folder):
        from advisor.tune.driver import auto

        outcome = auto(
            dataset,
            folder,
            options_of(given, on_progress),
            time_s=seconds_left(limit_s),
            max_trials=trials,
            storage=storage,
            heartbeat_s=heartbeat_s,
            control=control,
            soup=soup,
            devices=devices,
            artifacts=artifacts,
            on_event=on_event,
        )
    _print_outcome(outcome, as_json, quiet)


def resume_command(
    run: Run,
    time_limit: Annotated[
        str | None,
        typer.Option("--time", help="Time limit from now on; default: the time that was left."),
    ] = None,
    storage: Storage = None,
    tensorboard: WithBoard = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Resume a run that was interrupted or killed."""
    limit_s = parse_duration_s(time_limit) if time_limit else None
    with show_events(run, quiet, tensorboard) as (on_progress, on_event), run_errors(run):
        from advisor.tune.resume import resume
        from advisor.tune.run_dir.directory import RunDir

        if RunDir.open(run).is_done():
            stderr.print(f"{run} is finished: there is nothing to resume.", highlight=False)
            if as_json:
                print_json(RunDir.open(run).read("outcome.json"))
            return
        if limit_s is not None:
            limit_s = seconds_left(limit_s)
        outcome = resume(
            run,
            time_s=limit_s,
            storage=storage,
            on_progress=on_progress,
            on_note=print_note,
            on_event=on_event,
        )
    _print_outcome(outcome, as_json, quiet)


def worker_command(
    run: Annotated[
        str,
        typer.Argument(help="Run folder; or the name of a run, with --storage and --artifacts."),
    ],
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda:N or mps; default: as in the run.")
    ] = None,
    storage: Storage = None,
    artifacts: Artifacts = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Path of the dataset on this machine; default: as in the run."),
    ] = None,
    cache_dir: CacheDir = None,
    quiet: Quiet = False,
) -> None:
    """Join a running search as another worker process, on this or another machine.

    The worker needs the dataset. It also needs the run folder, or else the database (--storage)
    and the artifact store (--artifacts) that the run was started with.
    """
    with show_events(Path(run), quiet, False) as (on_progress, on_event), run_errors(Path(run)):
        from advisor.tune.distributed.joining import join

        joined = join(
            run,
            device=device,
            storage=storage,
            artifacts=artifacts,
            data=data,
            cache_dir=cache_dir,
            on_progress=on_progress,
            on_event=on_event,
        )
    if not joined:
        stderr.print(f"{run} is no longer searching: there were no trials to run.")


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
def show_events(
    folder: Path, quiet: bool, tensorboard: bool
) -> Iterator[tuple[OnProgress, "OnEvent"]]:
    """Show progress and trials on stderr; with `tensorboard`, also write its event files."""
    with progress(quiet) as on_progress, errors():
        from advisor.cli.live import TensorBoard, line_of

        configure_process()
        board = TensorBoard(folder / "tensorboard") if tensorboard else None

        def on_event(event: "Event") -> None:
            line = None if quiet else line_of(event)
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


def _print_outcome(outcome: "Outcome", as_json: bool, quiet: bool) -> None:
    if as_json:
        from advisor.report.outcome_json import outcome_record

        print_json(outcome_record(outcome))
    elif quiet:
        from advisor.report.words import winner

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
