"""tl-advise and tl-auto: the only module that prints or exits.

Heavy modules are imported inside the functions that need them, so that ``--help`` and a wrong path
answer at once.
"""

import csv
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, cast

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from advisor.options import Options
    from advisor.types import Advice
    from strategies.core.progress import Laps

STARTED_S = time.monotonic()
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

advise_app = typer.Typer(add_completion=True, rich_markup_mode=None)
auto_app = typer.Typer(add_completion=True, no_args_is_help=True, rich_markup_mode=None)

Data = Annotated[
    Path | None,
    typer.Argument(
        help="Folder of class folders or of train/ [val/] [test/]; a csv, tsv or parquet "
        "manifest; a tar; or hfds/NAME."
    ),
]
Demo = Annotated[bool, typer.Option("--demo", help="Use scikit-learn's handwritten digits.")]
BackboneName = Annotated[
    str,
    typer.Option(
        help="timm name, hf-hub:..., local-dir:..., or auto; a,b,c compares.", show_default=True
    ),
]
InputPx = Annotated[int | None, typer.Option(min=16, help="Side of the network's input.")]
StrategyName = Annotated[str, typer.Option(help="Force a strategy by name, or auto.")]
Val = Annotated[Path | None, typer.Option(help="Folder of val pictures, given apart.")]
Test = Annotated[Path | None, typer.Option(help="Folder of test pictures, given apart.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of splits, folds and training.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
CacheDir = Annotated[Path | None, typer.Option(help="Where features are kept.")]
Root = Annotated[Path | None, typer.Option(help="Where a manifest's relative paths start.")]
GroupBy = Annotated[
    str | None,
    typer.Option(
        help="Regular expression: pictures whose paths match alike stay together; or none."
    ),
]
MaxImages = Annotated[
    int, typer.Option(min=0, help="Read at most this many pictures of a split; 0: all.")
]
MaxQuarantine = Annotated[
    float, typer.Option(min=0, max=1, help="Largest share of unreadable pictures.")
]
ReferenceFolder = Annotated[
    Path | None,
    typer.Option("--reference", help="Pictures like those that the backbone was pretrained with."),
]
PreferOption = Annotated[
    Literal["accuracy", "balanced", "cheap"],
    typer.Option(help="What decides: accuracy at any cost, balanced, or cheap."),
]
PilotOption = Annotated[
    Literal["auto", "on", "off"],
    typer.Option("--pilot", help="A short fine-tuning as evidence: auto, on or off."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to stdout.")]
ShowLaps = Annotated[bool, typer.Option("--profile", help="Say on stderr where the time went.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print the answer alone, no progress.")]


@advise_app.command()
def advise_command(
    data: Data = None,
    demo: Demo = False,
    backbone: BackboneName = "auto",
    input_px: InputPx = None,
    strategy: StrategyName = "auto",
    val: Val = None,
    test: Test = None,
    seed: Seed = 0,
    device: Device = "auto",
    cache_dir: CacheDir = None,
    root: Root = None,
    group_by: GroupBy = None,
    max_images: MaxImages = 5000,
    max_quarantine: MaxQuarantine = 0.1,
    reference: ReferenceFolder = None,
    prefer: PreferOption = "balanced",
    pilot: PilotOption = "auto",
    as_json: Json = False,
    profile: ShowLaps = False,
    quiet: Quiet = False,
) -> None:
    """Say which kind of transfer learning suits a folder of labelled pictures."""
    folder = _data_folder(data, demo, cache_dir)
    with _progress(quiet) as on_progress, _errors():
        from advisor.options import Options
        from advisor.report.as_json import advice_record
        from advisor.report.terminal import headline, print_advice
        from strategies.core.progress import Laps

        laps = Laps(on_progress, last_s=STARTED_S)
        options = Options(
            backbone,
            input_px,
            strategy,
            val,
            test,
            seed,
            device,
            cache_dir,
            laps,
            root,
            group_by,
            max_images or None,
            max_quarantine,
            reference,
            prefer,
            pilot,
        )
        advice = _answer(folder, options, laps)
    if as_json:
        _print_json(advice_record(advice))
    elif quiet:
        stdout.print(headline(advice), highlight=False)
    else:
        print_advice(stdout, advice)
    if profile:
        laps.end("report")
        _print_laps(laps)


def _answer(folder: Path, options: "Options", laps: "Laps") -> "Advice":
    """Return the advice that was given before if nothing has changed; else measure."""
    from advisor.answers import question, recall, remember
    from strategies.core.cache import ArrayCache, default_cache_dir

    cache = ArrayCache(options.cache_dir or default_cache_dir())
    asked = question(folder, options)
    known = recall(cache, asked)
    laps.end("looking for an earlier answer")
    if known is not None:
        said = "Nothing has changed since this was measured: answered from the cache."
        stderr.print(said, highlight=False)
        return known
    from advisor.pipeline import advise

    laps.end("imports")
    advice = advise(folder, options)
    remember(cache, asked, advice)
    return advice


@auto_app.callback()
def _auto() -> None:
    """Tune the advised strategy and leave a classifier; use classifiers."""


@auto_app.command("run")
def run_command(
    data: Data = None,
    demo: Demo = False,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/NAME-1.")] = None,
    time_limit: Annotated[
        str, typer.Option("--time", help="Limit of everything: 90s, 10m, 2h.")
    ] = "10m",
    trials: Annotated[int | None, typer.Option(min=1, help="At most this many trials.")] = None,
    backbone: BackboneName = "auto",
    input_px: InputPx = None,
    strategy: StrategyName = "auto",
    val: Val = None,
    test: Test = None,
    seed: Seed = 0,
    device: Device = "auto",
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
    limit_s = parse_duration_s(time_limit)
    folder = _data_folder(data, demo, cache_dir)
    with _progress(quiet) as on_progress, _errors():
        from advisor.options import Options
        from advisor.pipeline import auto
        from advisor.report.as_json import outcome_record
        from advisor.report.terminal import print_outcome

        options = Options(
            backbone,
            input_px,
            strategy,
            val,
            test,
            seed,
            device,
            cache_dir,
            on_progress,
            root,
            group_by,
            max_images or None,
            max_quarantine,
            reference,
            prefer,
            pilot,
            _note,
        )
        outcome = auto(
            folder,
            out or _fresh_run(folder),
            options,
            time_s=limit_s - (time.monotonic() - STARTED_S),
            max_trials=trials,
        )
    if as_json:
        _print_json(outcome_record(outcome))
    elif quiet:
        said = "no test" if outcome.test is None else outcome.test.accuracy.percent()
        stdout.print(f"{outcome.best.strategy}: {said} -> {outcome.folder}", highlight=False)
    else:
        print_outcome(stdout, outcome)


@auto_app.command("predict")
def predict_command(
    run: Annotated[Path, typer.Argument(help="Run folder, or its classifier folder.")],
    pictures: Annotated[list[Path], typer.Argument(help="Picture files or folders of them.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 3,
    device: Device = "auto",
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV to stdout.")] = False,
    quiet: Quiet = False,
) -> None:
    """Print classes and probabilities for pictures."""
    if as_json and as_csv:
        _fail("--json and --csv were both given. Leave one of them out.")
    if not run.is_dir():
        _fail(f"{run} is not a folder. Give the folder that tl-auto run wrote (--out).")
    missing = [p for p in pictures if not p.exists()]
    if missing:
        _fail(f"{missing[0]} does not exist.")
    with _progress(quiet) as on_progress, _errors():
        from advisor.predict import predict

        result = predict(run, pictures, device=device, on_progress=on_progress)
        from strategies.core.pictures import shown
    for skipped in result.skipped:
        said = f"left out: {shown(skipped.path)}: {skipped.reason}"
        stderr.print(said, highlight=False, markup=False)
    ranked = [(shown(path), row[:top]) for path, row in result.rows]
    if as_json:
        _print_json(
            {
                "predictions": [
                    {"path": p, "classes": [{"class": c, "probability": v} for c, v in row]}
                    for p, row in ranked
                ],
                "quarantine": [
                    {"path": shown(s.path), "reason": s.reason} for s in result.skipped
                ],
            }
        )
    elif as_csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(["path", "class", "probability"])
        writer.writerows([p, row[0][0], f"{row[0][1]:.6f}"] for p, row in ranked)
    else:
        from advisor.report.terminal import print_predictions

        print_predictions(stdout, ranked)


cache_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
auto_app.add_typer(cache_app, name="cache", help="Look at what was computed before, or forget it.")


@cache_app.command("info")
def cache_info_command(cache_dir: CacheDir = None) -> None:
    """Say where the cache is, and how much it holds."""
    with _errors():
        from strategies.core.cache import MAX_BYTES, ArrayCache, default_cache_dir

        info = ArrayCache(cache_dir or default_cache_dir()).info()
    size = f"{info.n_bytes / 2**20:,.1f} MB of at most {MAX_BYTES / 2**20:,.0f}"
    lines = [str(info.path), f"{info.n_rows:,} entries, {size}"]
    lines += [f"set aside because it was damaged: {path}" for path in info.damaged]
    for text in lines:
        stdout.print(text, highlight=False, markup=False)


@cache_app.command("clear")
def cache_clear_command(cache_dir: CacheDir = None) -> None:
    """Forget all that was computed; pictures, runs and files set aside stay."""
    with _errors():
        from strategies.core.cache import ArrayCache, default_cache_dir

        cache = ArrayCache(cache_dir or default_cache_dir())
        n_rows = cache.info().n_rows
        cache.clear()
    stdout.print(f"{n_rows:,} entries forgotten: {cache.path}", highlight=False, markup=False)


def tl_advise() -> None:
    """Run ``tl-advise``."""
    advise_app()


def tl_auto() -> None:
    """Run ``tl-auto``."""
    auto_app()


def parse_duration_s(text: str) -> float:
    """Return the seconds of ``"90s"``, ``"10m"``, ``"1.5h"`` or plain seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)?", text.strip())
    if not found or float(found[1]) <= 0:
        _fail(f"--time {text!r} is not a duration. Give for example 90s, 10m or 2h.")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, None: 1}[found[2]]


def _data_folder(data: Path | None, demo: bool, cache_dir: Path | None) -> Path:
    """Return the folder to work on; refuse a wrong path before anything heavy is imported."""
    if demo:
        if data is not None:
            _fail(f"{data} and --demo were both given. Leave one of them out.")
        with _errors():
            from advisor.demo import write_digits
            from strategies.core.cache import default_cache_dir

            return write_digits(cache_dir or default_cache_dir())
    if data is None:
        _fail("No folder was given. Give a folder with one subfolder per class, or --demo.")
    if not data.exists() and data.parts[:1] != ("hfds",):
        _fail(
            f"{data} does not exist. Give a folder with one subfolder per class, a CSV manifest "
            "(path,label[,split]), a .tar archive, or hfds/NAME."
        )
    if data.is_file() and data.suffix.lower() not in (".csv", ".tsv", ".parquet", ".tar"):
        _fail(
            f"{data} is a file of no known kind. Give a folder with one subfolder per class, a "
            "CSV, TSV or Parquet manifest (path,label[,split]), or an uncompressed .tar archive."
        )
    return data


def _fresh_run(data: Path) -> Path:
    number = 1
    while (folder := Path("runs") / f"{data.resolve().name}-{number}").exists():
        number += 1
    return folder


def _fail(message: str) -> NoReturn:
    stderr.print(f"Error: {message}", highlight=False, markup=False)
    raise typer.Exit(USAGE_ERROR)


@contextmanager
def _errors() -> Iterator[None]:
    """Turn the program's own errors into a sentence and exit code 2; the rest are bugs."""
    from strategies.core.errors import TransferError

    try:
        yield
    except TransferError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        stderr.print("Interrupted.", highlight=False)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
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

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=stderr, transient=True) as bars:
        known: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in known:
                known[what] = bars.add_task(what, total=total or None)
            bars.update(known[what], completed=done)

        yield show


def _note(sentence: str) -> None:
    stderr.print(sentence, highlight=False, markup=False)


def _print_laps(laps: "Laps") -> None:
    total = sum(laps.seconds.values())
    for name, seconds in laps.seconds.items():
        said = f"{name:<32}{seconds:8.2f} s{seconds / total:6.0%}"
        stderr.print(said, highlight=False, markup=False)


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
