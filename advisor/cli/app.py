"""Entry points of tl-advise and tl-auto: commands, lookup in the advice cache, and printing."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advisor.cli.cache import cache_app
from advisor.cli.classifier import export_command, predict_command
from advisor.cli.console import (
    STARTED_S,
    configure_process,
    errors,
    fail,
    print_json,
    progress,
    run_and_exit,
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
)
from advisor.cli.run import about_auto, resume_command, run_command, status_command, worker_command

if TYPE_CHECKING:
    from advisor.types.advice import Advice
    from advisor.types.options import Options
    from strategies.core.progress import PhaseTimer

advise_app = typer.Typer(add_completion=True, rich_markup_mode=None)
auto_app = typer.Typer(add_completion=True, no_args_is_help=True, rich_markup_mode=None)
auto_app.callback()(about_auto)
auto_app.command("run")(run_command)
auto_app.command("resume")(resume_command)
auto_app.command("worker")(worker_command)
auto_app.command("status")(status_command)
auto_app.command("export")(export_command)
auto_app.command("predict")(predict_command)
auto_app.add_typer(cache_app, name="cache", help="Show or clear the feature cache.")


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
    workers: Workers = None,
    cache_dir: CacheDir = None,
    root: Root = None,
    group_by: GroupBy = None,
    max_images: MaxImages = 5000,
    max_quarantine: MaxQuarantine = 0.1,
    reference: ReferenceFolder = None,
    prefer: PreferOption = "balanced",
    pilot: PilotOption = "auto",
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Also write the report to this file as a single HTML page."),
    ] = None,
    as_markdown: Annotated[
        bool,
        typer.Option("--markdown", help="Print only the report, as Markdown, to stdout."),
    ] = False,
    explain: Annotated[
        str | None,
        typer.Option("--explain", help="Explain a finding by its code, e.g. TL003, and exit."),
    ] = None,
    as_json: Json = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Print the time of every phase to stderr.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Recommend a transfer-learning strategy for a dataset of labelled images."""
    given = locals()
    if explain is not None:
        _explain(explain)
        return
    if as_json and as_markdown:
        fail("--json and --markdown cannot be used together. Both print to stdout; give one.")
    if html is not None and not html.resolve().parent.is_dir():
        fail(f"--html {html}: there is no folder {html.resolve().parent}. Create it first.")
    folder = data_folder(data, demo, cache_dir)
    with progress(quiet) as on_progress, errors():
        from strategies.core.progress import PhaseTimer

        phase_timer = PhaseTimer(on_progress, last_s=STARTED_S)
        advice = _cached_or_new(folder, options_of(given, phase_timer), phase_timer, html)
    _print_advice(advice, as_json, as_markdown, quiet)
    if profile:
        phase_timer.end("report")
        _print_phase_times(phase_timer)


def _print_advice(advice: "Advice", as_json: bool, as_markdown: bool, quiet: bool) -> None:
    if as_json:
        from advisor.report.to_json import advice_record

        print_json(advice_record(advice))
    elif as_markdown:
        from advisor.report.markdown import advice_markdown

        sys.stdout.write(advice_markdown(advice))
    elif quiet:
        from advisor.report.words import headline

        stdout.print(headline(advice), highlight=False)
    else:
        from advisor.report.terminal import print_advice

        print_advice(stdout, advice)


def _cached_or_new(
    folder: Path, options: "Options", phase_timer: "PhaseTimer", html: Path | None
) -> "Advice":
    """Return cached advice if data, options and program are unchanged; otherwise measure.

    With --html the advice is always recomputed, because the thumbnails are not cached. Features
    still come from the cache.
    """
    from advisor.cli.advice_cache import advice_key, store_advice, stored_advice
    from strategies.core.cache import ArrayCache, default_cache_dir

    cache = ArrayCache(options.cache_dir or default_cache_dir())
    key = advice_key(folder, options)
    cached = stored_advice(cache, key) if html is None else None
    phase_timer.end("cache lookup")
    if cached is not None:
        message = "Data and options are unchanged: the advice comes from the cache."
        stderr.print(message, highlight=False)
        return cached
    from advisor.advise import advise

    configure_process()
    phase_timer.end("imports")
    advice = advise(folder, options, html=html)
    store_advice(cache, key, advice)
    return advice


def _explain(code: str) -> None:
    """Print the documentation of a finding."""
    from rich.markdown import Markdown

    from advisor.findings.explain import explanation
    from strategies.core.errors import TransferError

    try:
        text = explanation(code)
    except TransferError as error:
        fail(str(error))
    stdout.print(Markdown(text) if stdout.is_terminal else text, markup=False, highlight=False)


def _print_phase_times(phase_timer: "PhaseTimer") -> None:
    total = sum(phase_timer.seconds.values())
    for name, seconds in phase_timer.seconds.items():
        line = f"{name:<32}{seconds:8.2f} s{seconds / total:6.0%}"
        stderr.print(line, highlight=False, markup=False)


def tl_advise() -> None:
    """Run ``tl-advise``."""
    run_and_exit(advise_app)


def tl_auto() -> None:
    """Run ``tl-auto``."""
    run_and_exit(auto_app)
