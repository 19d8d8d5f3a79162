"""Commands tl-auto evaluate, compare, similar and embed: use the classifiers of finished runs."""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from advisor.cli.console import (
    configure_process,
    errors,
    fail,
    print_json,
    print_note,
    print_skipped,
    progress,
    stdout,
)
from advisor.cli.options import DATASET, Output, check_run, data_folder, with_flags
from advisor.types.flags import Flag
from advisor.types.options import AUTO, CacheDir, DeviceName, Workers
from strategies.core.progress import OnProgress

if TYPE_CHECKING:
    from advisor.deploy.embed import EmbeddedDataset
    from advisor.deploy.similar import SimilarImages
    from strategies.core.context import RunContext

By = Literal["classifier", "features"]
Split = Literal["auto", "train", "val", "test", "all"]
RunOrClassifier = Annotated[
    Path, typer.Argument(help="Run folder, or the classifier folder in it.")
]
LabelledData = Annotated[Path, typer.Argument(help=DATASET)]
Root = Annotated[
    Path | None, Flag("Folder that a manifest's relative paths start from.", panel="Data")
]


@dataclass(frozen=True)
class Machine:
    """Where a command computes."""

    device: DeviceName = AUTO
    workers: Workers = None
    cache_dir: CacheDir = None

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


@with_flags
def evaluate_command(
    run: RunOrClassifier,
    data: LabelledData,
    split: Annotated[
        Split,
        Flag(
            "Images to evaluate on; auto: the test split if the dataset has one, else all.",
            panel="Data",
        ),
    ] = "auto",
    ignore_unknown_classes: Annotated[
        bool,
        Flag(
            "Leave out images of classes that the classifier does not know.",
            name="--ignore-unknown-classes",
            panel="Data",
        ),
    ] = False,
    root: Root = None,
    html: Annotated[
        Path | None,
        Flag("Also write the report to this file as a single HTML page.", panel="Output"),
    ] = None,
    *,
    machine: Machine,
    output: Output,
) -> None:
    """Evaluate the classifier of a run on labelled images: scores with 90% intervals."""
    check_run(run)
    data = data_folder(data, False, None)
    check_html(html)
    with progress(output.quiet) as on_progress, errors():
        from advisor.deploy.evaluate import evaluate_dataset, evaluation_record

        ctx = machine.context(on_progress)
        found = evaluate_dataset(
            run, data, ctx, split=split, root=root, ignore_unknown=ignore_unknown_classes
        )
        if html is not None:
            from advisor.deploy.evaluation_page import evaluation_page
            from advisor.deploy.explain import explain_evaluation
            from strategies.core.atomic_files import write_text

            explained = explain_evaluation(found, ctx)
            write_text(html, evaluation_page(found, ctx.n_workers, explained))
    if output.json:
        print_json(evaluation_record(found))
    elif output.quiet:
        line = f"{found.scores.accuracy.percent()} on {found.scores.n:,} images"
        stdout.print(line, highlight=False)
    else:
        from advisor.deploy.evaluation_page import print_evaluation

        print_skipped(found.quarantine)
        print_evaluation(stdout, found)


def check_html(html: Path | None) -> None:
    """Refuse a page in a folder that does not exist, before anything is computed."""
    if html is not None and not html.resolve().parent.is_dir():
        fail(f"--html {html}: there is no folder {html.resolve().parent}. Create it first.")


@with_flags
def compare_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")],
    *,
    machine: Machine,
    output: Output,
) -> None:
    """Compare finished runs: accuracy, paired differences, time, size and speed."""
    for run in runs:
        check_run(run)
    with progress(output.quiet) as on_progress, errors():
        from advisor.deploy.compare import compare_runs, comparison_record

        found = compare_runs(runs, machine.context(on_progress))
    if output.json:
        print_json(comparison_record(found))
    elif output.quiet:
        stdout.print(str(found[0].run), highlight=False, markup=False, soft_wrap=True)
    else:
        from advisor.deploy.tables import print_comparison

        print_comparison(stdout, found)


@with_flags
def similar_command(
    run: RunOrClassifier,
    images: Annotated[list[Path], typer.Argument(help="Image files or folders.")],
    folder: Annotated[
        Path | None,
        Flag(
            "Search the images below this folder; default: the train images of the run.",
            name="--in",
            panel="Data",
        ),
    ] = None,
    k: Annotated[
        int, Flag("Number of similar images of each.", name="-k", panel="Output", min=1)
    ] = 5,
    by: Annotated[
        By,
        Flag(
            "classifier: mean of the cosine of features and the agreement of class probabilities; "
            "features: the cosine alone.",
            panel="Output",
        ),
    ] = "classifier",
    as_csv: Annotated[bool, Flag("Print CSV to stdout.", name="--csv", panel="Output")] = False,
    *,
    machine: Machine,
    output: Output,
) -> None:
    """Find the images that the classifier of a run sees as most similar to given ones."""
    if output.json and as_csv:
        fail("--json and --csv cannot be used together. Both print to stdout; give one.")
    check_run(run)
    missing = [path for path in (*images, *([folder] if folder else [])) if not path.exists()]
    if missing:
        fail(f"{missing[0]} does not exist.")
    if folder is not None and not folder.is_dir():
        fail(f"--in {folder} is not a folder.")
    with progress(output.quiet) as on_progress, errors():
        from advisor.deploy.similar import find_similar, similar_record

        ctx = machine.context(on_progress)
        found = find_similar(run, images, ctx, folder=folder, k=k, by=by)
    if output.json:
        print_json(similar_record(found))
        return
    print_skipped(found.skipped)
    if as_csv:
        _print_similar_csv(found)
    else:
        from advisor.deploy.tables import print_similar

        print_similar(stdout, found)


def _print_similar_csv(found: "SimilarImages") -> None:
    from strategies.data.image import shown

    writer = csv.writer(sys.stdout)
    writer.writerow(["image", "rank", "path", "class", "similarity"])
    for path, neighbours in found.found:
        for rank, n in enumerate(neighbours, start=1):
            row = [shown(path), rank, shown(n.path), n.label, f"{n.similarity:.6f}"]
            writer.writerow(row)


@with_flags
def embed_command(
    data: Annotated[
        Path,
        typer.Argument(help="Dataset as for tl-advise, or a folder of images without classes."),
    ],
    out: Annotated[
        Path | None, Flag("File to write: .parquet, .csv or .npz.", panel="Output")
    ] = None,
    run: Annotated[
        Path | None,
        Flag(
            "Run folder: features of its classifier instead of a pretrained backbone.",
            panel="Backbone",
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        Flag(
            "timm model name, hf-hub:... or local-dir:...; default: the embedded backbone.",
            panel="Backbone",
        ),
    ] = None,
    input_px: Annotated[
        int | None,
        Flag(
            "Input resolution; default: that of the backbone's pretraining.",
            panel="Backbone",
            min=16,
        ),
    ] = None,
    root: Root = None,
    *,
    machine: Machine,
    output: Output,
) -> None:
    """Write the penultimate features of all images of a dataset to a file."""
    if out is None:
        fail("--out is missing. Give the file to write: .parquet, .csv or .npz.")
    _check_source(run, backbone, input_px)
    data = data_folder(data, False, None)
    with progress(output.quiet) as on_progress, errors():
        from dataclasses import replace

        import torch

        from advisor.deploy.embed import check_out, embed_dataset
        from advisor.deploy.features import backbone_embedder, classifier_embedder
        from advisor.deploy.predict import load_classifier
        from strategies.models.catalogue import DEFAULT_BACKBONE

        check_out(out)
        ctx = replace(machine.context(on_progress), precision=torch.float32)
        if run is None:
            embedder = backbone_embedder(backbone or DEFAULT_BACKBONE, input_px, ctx)
        else:
            embedder = classifier_embedder(load_classifier(run, ctx.device), ctx)
        found = embed_dataset(data, out, embedder, ctx, root)
    _print_embedded(found, output)


def _print_embedded(found: "EmbeddedDataset", output: Output) -> None:
    if output.json:
        from advisor.deploy.embed import embedded_record

        print_json(embedded_record(found))
        return
    print_skipped(found.skipped)
    if output.quiet:
        stdout.print(str(found.out), highlight=False, markup=False, soft_wrap=True)
        return
    about = f"{found.embedder.width:,} features of {found.embedder.name}"
    stdout.print(
        f"{found.out}: {found.n:,} images, {about} at {found.embedder.input_px} px "
        f"(columns {', '.join(found.columns)}, features)",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _check_source(run: Path | None, backbone: str | None, input_px: int | None) -> None:
    """Refuse a run folder together with options of a pretrained network."""
    if run is None:
        return
    check_run(run)
    for flag, value in (("--backbone", backbone), ("--input-px", input_px)):
        if value is not None:
            fail(f"--run and {flag} cannot be used together. The run has its own network.")
