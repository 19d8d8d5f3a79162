"""Entry points of tl-advise and tl-auto: commands, lookup in the advice cache, and printing."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from advisor.cli.cache import cache_app
from advisor.cli.classifier import export_command, predict_command
from advisor.cli.console import (
    FINDINGS,
    STARTED_S,
    configure_process,
    errors,
    fail,
    print_json,
    print_note,
    progress,
    run_and_exit,
    stderr,
    stdout,
)
from advisor.cli.finding_files import FindingFiles, advise_with_files
from advisor.cli.options import App, Data, Demo, Output, Version, data_folder, with_flags
from advisor.cli.run import about_auto, resume_command, run_command, status_command
from advisor.cli.use import compare_command, embed_command, evaluate_command, similar_command
from advisor.types.flags import Flag
from advisor.types.options import Options

if TYPE_CHECKING:
    from rich.console import RenderableType

    from advisor.types.advice import Advice, Recommendation
    from strategies.core.progress import PhaseTimer

logger = logging.getLogger(__name__)

advise_app = App()
auto_app = App(no_args_is_help=True)
auto_app.callback()(about_auto)
auto_app.command("run")(run_command)
auto_app.command("resume")(resume_command)
auto_app.command("status")(status_command)
auto_app.command("export")(export_command)
auto_app.command("predict")(predict_command)
auto_app.command("evaluate")(evaluate_command)
auto_app.command("compare")(compare_command)
auto_app.command("similar")(similar_command)
auto_app.command("embed")(embed_command)
auto_app.add_typer(cache_app, name="cache", help="Show or clear the feature cache.")

FailOn = Literal["never", "void", "issue", "tip"]


@dataclass(frozen=True)
class AdviceOutput(Output):
    """What tl-advise prints and writes."""

    html: Annotated[
        Path | None,
        Flag("Also write the report to this file as a single HTML page.", panel="Output"),
    ] = None
    markdown: Annotated[
        bool, Flag("Print only the report, as Markdown, to stdout.", panel="Output")
    ] = False
    full: Annotated[
        bool,
        Flag(
            "Print the full report: measurements, tips and the reason for every choice.",
            panel="Output",
        ),
    ] = False
    explain: Annotated[
        str | None,
        Flag("Explain a finding by its code, e.g. TL003, and exit.", panel="Output"),
    ] = None
    profile: Annotated[bool, Flag("Print the time of every phase to stderr.", panel="Output")] = (
        False
    )
    fail_on: Annotated[
        FailOn,
        Flag(
            f"Exit with code {FINDINGS} if the advice is void, if it also has an issue, or if it "
            "has any finding. It is printed all the same.",
            panel="Output",
        ),
    ] = "never"


@advise_app.command()
@with_flags
def advise_command(
    data: Data = None,
    demo: Demo = False,
    version: Version = False,
    time_s: Annotated[
        float | None,
        Flag(
            "Time for the fit on this machine: 30s, 2m, 1h. Default: no limit.",
            name="--time",
            panel="Budget",
            is_duration=True,
        ),
    ] = None,
    *,
    options: Options,
    files: FindingFiles,
    output: AdviceOutput,
) -> None:
    """Recommend a transfer-learning strategy for a dataset of labelled images."""
    html = output.html
    if output.explain is not None:
        _explain(output.explain)
        return
    if output.json and output.markdown:
        fail("--json and --markdown cannot be used together. Both print to stdout; give one.")
    if output.full and output.quiet:
        fail("--full and --quiet cannot be used together. One prints all, the other one line.")
    if html is not None and not html.resolve().parent.is_dir():
        fail(f"--html {html}: there is no folder {html.resolve().parent}. Create it first.")
    folder = data_folder(data, demo, options.cache_dir)
    with errors():
        files.check()
    below: list[RenderableType] = []
    with progress(output.quiet, below) as on_progress, errors():
        from strategies.core.progress import PhaseTimer

        phase_timer = PhaseTimer(on_progress, last_s=STARTED_S)
        options = replace(options, on_progress=phase_timer, on_note=print_note)
        if not (output.json or output.markdown):
            options = replace(options, on_ranking=lambda ranking: _show_ranking(below, ranking))
        advice = _cached_or_new(folder, options, time_s, phase_timer, html, files)
    _print_advice(advice, output)
    if output.profile:
        phase_timer.end("report")
        _print_phase_times(phase_timer)
    _exit_on_findings(advice, output.fail_on)


def _exit_on_findings(advice: "Advice", fail_on: FailOn) -> None:
    """Exit with a code of its own if the advice has findings that --fail-on names."""
    failing = {
        "never": [],
        "void": [f for f in advice.findings if f.voids_advice],
        "issue": [f for f in advice.findings if f.voids_advice or f.severity == "issue"],
        "tip": list(advice.findings),
    }[fail_on]
    if failing:
        codes = ", ".join(dict.fromkeys(f.code for f in failing))
        stderr.print(f"--fail-on {fail_on}: {codes}", highlight=False, markup=False)
        raise typer.Exit(FINDINGS)


def _show_ranking(below: list["RenderableType"], ranking: Sequence["Recommendation"]) -> None:
    """Show a ranking that is not final below the progress bars, in place of an earlier one."""
    from advisor.report.brief import ranking_so_far

    below[:] = [ranking_so_far(ranking)]


def _print_advice(advice: "Advice", output: AdviceOutput) -> None:
    if output.json:
        from advisor.report.to_json import advice_record

        print_json(advice_record(advice))
    elif output.markdown:
        from advisor.report.markdown import advice_markdown

        sys.stdout.write(advice_markdown(advice))
    elif output.quiet:
        from advisor.types.summary import headline

        stdout.print(headline(advice), highlight=False)
    elif output.full:
        from advisor.report.terminal import print_advice

        print_advice(stdout, advice)
    else:
        from advisor.report.brief import print_brief

        print_brief(stdout, advice)


def _cached_or_new(
    folder: Path,
    options: Options,
    time_s: float | None,
    phase_timer: "PhaseTimer",
    html: Path | None,
    files: FindingFiles,
) -> "Advice":
    """Return cached advice if data, options and program are unchanged; otherwise measure.

    With --html and with files of findings the advice is always recomputed, because neither
    thumbnails nor the affected images are cached. Features still come from the cache.
    """
    from advisor.cli.advice_cache import advice_key, store_advice, stored_advice
    from strategies.core.cache import ArrayCache, default_cache_dir

    cache = ArrayCache(options.cache_dir or default_cache_dir())
    key = advice_key(folder, options, time_s)
    is_all = html is None and not files.are_wanted
    cached = stored_advice(cache, key) if is_all else None
    phase_timer.end("cache lookup")
    logger.info("advice in the cache: %s", "none" if cached is None else key)
    if cached is not None:
        message = "Data and options are unchanged: the advice comes from the cache."
        stderr.print(message, highlight=False)
        return cached
    from advisor.advise import prepare

    configure_process()
    phase_timer.end("imports")
    advice = advise_with_files(prepare(folder, options), time_s, html, files)
    store_advice(cache, key, advice)
    return advice


def _explain(code: str) -> None:
    """Print the documentation of a finding."""
    from rich.markdown import Markdown

    from advisor.findings.explain import explanation

    with errors():
        text = explanation(code)
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
