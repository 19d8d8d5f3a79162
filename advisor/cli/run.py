"""tl-auto: tune, go on, join, look on; take away and use."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advisor.cli.console import (
    INTERRUPTED,
    OnProgress,
    errors,
    note,
    print_json,
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
Out = Annotated[Path | None, typer.Option(help="Run folder; default: runs/NAME-1.")]
TimeLimit = Annotated[str, typer.Option("--time", help="Limit of everything: 90s, 10m, 2h.")]
MaxTrials = Annotated[int | None, typer.Option(min=1, help="At most this many trials.")]
Heartbeat = Annotated[
    int, typer.Option("--heartbeat", min=1, help="Seconds between two heartbeats of a worker.")
]
WithControl = Annotated[
    bool, typer.Option(help="Spend a tenth of the time on a control without pretrained weights.")
]
WithSoup = Annotated[
    bool,
    typer.Option(help="Average the weights of the best trials; keep that if validation says so."),
]
Devices = Annotated[
    str | None,
    typer.Option(help="A worker on each: all GPUs, or names with commas: cuda:0,cuda:2."),
]
DataParallel = Annotated[
    int, typer.Option(min=1, help="GPUs that share every batch of a training run.")
]
Storage = Annotated[
    str | None,
    typer.Option(help="Database for trials that other machines reach: postgresql://USER@HOST/DB."),
]
Artifacts = Annotated[
    str | None,
    typer.Option(help="Folder or s3://BUCKET/PREFIX for machines that do not see the run folder."),
]
WithBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Write validation accuracy for TensorBoard too.")
]


def about_auto() -> None:
    """Tune the advised strategy and leave a classifier; use classifiers."""


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
    """Take the advice: tune it under a time limit and leave a classifier in a run folder."""
    given = locals()
    limit_s = parse_duration_s(time_limit)
    images = data_folder(data, demo, cache_dir)
    folder = out or _fresh_run(images)
    with watching(folder, quiet, tensorboard) as (on_progress, on_event), run_errors(folder):
        from advisor.tune.driver import auto

        outcome = auto(
            images,
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
        str | None, typer.Option("--time", help="Limit from now on; default: what was left.")
    ] = None,
    storage: Storage = None,
    tensorboard: WithBoard = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a run that was killed."""
    limit_s = parse_duration_s(time_limit) if time_limit else None
    with watching(run, quiet, tensorboard) as (on_progress, on_event), run_errors(run):
        from advisor.tune.resume import resume
        from advisor.tune.run_dir.directory import RunDir

        if RunDir.open(run).is_done():
            stderr.print(f"{run} is finished; nothing is left to do.", highlight=False)
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
            on_note=note,
            on_event=on_event,
        )
    _print_outcome(outcome, as_json, quiet)


def worker_command(
    run: Annotated[
        str, typer.Argument(help="Run folder; or a run's name, with --storage and --artifacts.")
    ],
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda:N or mps; default: as the run.")
    ] = None,
    storage: Storage = None,
    artifacts: Artifacts = None,
    data: Annotated[
        Path | None, typer.Option(help="Where this machine sees the data; default: as the run.")
    ] = None,
    cache_dir: CacheDir = None,
    quiet: Quiet = False,
) -> None:
    """Help a run that is going on: from any process or machine that sees the same data.

    It must see the run folder as well, or else the database (--storage) and the --artifacts that
    the run was started with.
    """
    with watching(Path(run), quiet, False) as (on_progress, on_event), run_errors(Path(run)):
        from advisor.tune.distributed.joining import join

        helped = join(
            run,
            device=device,
            storage=storage,
            artifacts=artifacts,
            data=data,
            cache_dir=cache_dir,
            on_progress=on_progress,
            on_event=on_event,
        )
    if not helped:
        stderr.print(f"{run} is not searching any more; nothing was left to help with.")


def status_command(run: Run, as_json: Json = False) -> None:
    """Say how far a run is."""
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
def watching(
    folder: Path, quiet: bool, tensorboard: bool
) -> Iterator[tuple[OnProgress, "OnEvent"]]:
    """Show progress and trials on stderr; with `tensorboard`, write its files too."""
    with progress(quiet) as on_progress, errors():
        from advisor.cli.live import TensorBoard, line_of

        board = TensorBoard(folder / "tensorboard") if tensorboard else None

        def hear(event: "Event") -> None:
            line = None if quiet else line_of(event)
            if line is not None:
                stderr.print(line, highlight=False, markup=False, soft_wrap=True)
            if board is not None:
                board(event)

        try:
            yield on_progress, hear
        finally:
            if board is not None:
                board.close()


@contextmanager
def run_errors(folder: Path) -> Iterator[None]:
    """Turn errors into a sentence, and say that an interrupted run can go on."""
    try:
        with errors():
            yield
    except typer.Exit as end:
        if end.exit_code == INTERRUPTED and (folder / "run.json").exists():
            stderr.print(f"Go on with it: tl-auto resume {folder}", highlight=False)
        raise


def _print_outcome(outcome: "Outcome", as_json: bool, quiet: bool) -> None:
    if as_json:
        from advisor.report.outcome_json import outcome_record

        print_json(outcome_record(outcome))
    elif quiet:
        from advisor.report.words import winner

        said = "no test" if outcome.test is None else outcome.test.accuracy.percent()
        stdout.print(f"{winner(outcome)}: {said} -> {outcome.folder}", highlight=False)
    else:
        from advisor.report.terminal import print_outcome

        print_outcome(stdout, outcome)
    if outcome.ended == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _fresh_run(data: Path) -> Path:
    number = 1
    while (folder := Path("runs") / f"{data.resolve().name}-{number}").exists():
        number += 1
    return folder
