"""Commands tl-auto evaluate, compare, similar and embed: use the classifiers of finished runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from advisor.cli.console import (
    OnProgress,
    configure_process,
    errors,
    fail,
    print_json,
    print_note,
    print_skipped,
    progress,
    stdout,
)
from advisor.cli.options import Output, data_folder, with_flags
from advisor.types.flags import Flag, check_values
from advisor.types.options import AUTO, CacheDir, DeviceName

if TYPE_CHECKING:
    from strategies.core.context import RunContext

Split = Literal["auto", "train", "val", "test", "all"]
RunOrClassifier = Annotated[
    Path, typer.Argument(help="Run folder, or the classifier folder in it.")
]
LabelledData = Annotated[
    Path,
    typer.Argument(
        help="Dataset: a folder with one subfolder per class, or with train/ [val/] [test/]; a "
        "CSV, TSV or Parquet manifest; a .tar archive; or hfds/NAME."
    ),
]
Root = Annotated[Path | None, Flag("Folder that a manifest's relative paths start from.")]


@dataclass(frozen=True)
class Machine:
    """Where a command computes."""

    device: DeviceName = AUTO
    workers: Annotated[
        int | None,
        Flag("Threads that read images; default: one per CPU core.", min=1, is_local=True),
    ] = None
    cache_dir: CacheDir = None

    def __post_init__(self) -> None:
        """Check bounds."""
        check_values(self)

    def context(self, on_progress: OnProgress) -> "RunContext":
        """Return the context that this machine computes in."""
        from strategies.core.context import make_context
        from strategies.core.progress import Reporter

        configure_process()
        reporter = Reporter(on_progress, print_note)
        return make_context(
            device=self.device,
            cache_dir=self.cache_dir,
            workers=self.workers,
            reporter=reporter,
        )


@dataclass(frozen=True)
class EvaluationOutput(Output):
    """What tl-auto evaluate prints and writes."""

    html: Annotated[
        Path | None, Flag("Also write the report to this file as a single HTML page.")
    ] = None


@with_flags
def evaluate_command(
    run: RunOrClassifier,
    data: LabelledData,
    split: Annotated[
        Split,
        Flag("Images to evaluate on; auto: the test split if the dataset has one, else all."),
    ] = "auto",
    ignore_unknown_classes: Annotated[
        bool,
        Flag(
            "Leave out images of classes that the classifier does not know.",
            name="--ignore-unknown-classes",
        ),
    ] = False,
    root: Root = None,
    *,
    machine: Machine,
    output: EvaluationOutput,
) -> None:
    """Evaluate the classifier of a run on labelled images: scores with 90% intervals."""
    check_run(run)
    data = data_folder(data, False, None)
    check_html(output.html)
    with progress(output.quiet) as on_progress, errors():
        from advisor.deploy.evaluate import evaluate_dataset, evaluation_record

        ctx = machine.context(on_progress)
        found = evaluate_dataset(
            run, data, ctx, split=split, root=root, ignore_unknown=ignore_unknown_classes
        )
        if output.html is not None:
            from advisor.deploy.evaluation_page import evaluation_page
            from strategies.core.atomic_files import write_text

            write_text(output.html, evaluation_page(found, ctx.n_workers))
    if output.json:
        print_json(evaluation_record(found))
    elif output.quiet:
        line = f"{found.scores.accuracy.percent()} on {found.scores.n:,} images"
        stdout.print(line, highlight=False)
    else:
        from advisor.deploy.evaluation_page import print_evaluation

        print_skipped(found.quarantine)
        print_evaluation(stdout, found)


def check_run(run: Path) -> None:
    """Refuse what is no folder before heavy imports."""
    if not run.is_dir():
        fail(f"{run} is not a folder. Give the folder that tl-auto run wrote (--out).")


def check_html(html: Path | None) -> None:
    """Refuse a page in a folder that does not exist, before anything is computed."""
    if html is not None and not html.resolve().parent.is_dir():
        fail(f"--html {html}: there is no folder {html.resolve().parent}. Create it first.")
