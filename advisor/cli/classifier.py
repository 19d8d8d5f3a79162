"""Commands tl-auto export and tl-auto predict: use the classifier of a run."""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advisor.cli.console import (
    errors,
    fail,
    print_json,
    progress,
    stderr,
    stdout,
)
from advisor.cli.options import Output, Run, with_flags
from advisor.types.flags import Flag
from advisor.types.options import AUTO, DeviceName

if TYPE_CHECKING:
    from advisor.deploy.predict import Predictions


def export_command(
    run: Run,
    kind: Annotated[
        str, typer.Option("--format", help="onnx, timm, or hf: timm folder with a model card.")
    ] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(help="File or folder to write; default: export/FORMAT in the run folder."),
    ] = None,
) -> None:
    """Export the classifier of a run to ONNX, timm or the Hugging Face hub format."""
    with errors():
        from advisor.deploy.export import export_run

        target = export_run(run, kind, out)
    stdout.print(str(target), highlight=False, markup=False, soft_wrap=True)


@with_flags
def predict_command(
    run: Annotated[Path, typer.Argument(help="Run folder, or the classifier folder in it.")],
    images: Annotated[
        list[Path], typer.Argument(help="Image files or folders; - reads paths from stdin.")
    ],
    top: Annotated[
        int, typer.Option("--top-k", "--top", min=1, help="Number of classes per image.")
    ] = 3,
    device: DeviceName = AUTO,
    as_csv: Annotated[
        bool, Flag("Print the top class of every image as CSV to stdout.", name="--csv")
    ] = False,
    *,
    output: Output,
) -> None:
    """Classify images and print classes with probabilities."""
    if output.json and as_csv:
        fail("--json and --csv cannot be used together. Both print to stdout; give one.")
    if not run.is_dir():
        fail(f"{run} is not a folder. Give the folder that tl-auto run wrote (--out).")
    missing = [p for p in images if str(p) != "-" and not p.exists()]
    if missing:
        fail(f"{missing[0]} does not exist.")
    with progress(output.quiet) as on_progress, errors():
        from advisor.deploy.predict import predict
        from strategies.core.allocator import keep_freed_memory

        keep_freed_memory()
        batches = predict(run, _expand_stdin(images), device=device, on_progress=on_progress)
        if output.json:
            _predictions_as_json(batches, top)
        elif as_csv:
            _predictions_as_csv(batches)
        else:
            _predictions_as_table(batches, top)


def _expand_stdin(images: list[Path]) -> Iterator[Path]:
    """Yield the given paths, with ``-`` replaced by the lines of stdin."""
    for path in images:
        if str(path) == "-":
            yield from (Path(line.rstrip("\n")) for line in sys.stdin if line.strip())
        else:
            yield path


def _predictions_as_json(batches: Iterator["Predictions"], top: int) -> None:
    from strategies.data.image import shown

    predictions, quarantine = [], []
    for batch in batches:
        for path, row in batch.rows:
            classes = [{"class": c, "probability": v} for c, v in row[:top]]
            predictions.append({"path": shown(str(path)), "classes": classes})
        quarantine += [{"path": shown(s.path), "reason": s.reason} for s in batch.skipped]
    print_json({"predictions": predictions, "quarantine": quarantine})


def _predictions_as_csv(batches: Iterator["Predictions"]) -> None:
    from strategies.data.image import shown

    writer = csv.writer(sys.stdout)
    writer.writerow(["path", "class", "probability"])
    for batch in batches:
        _print_skipped(batch)
        writer.writerows([shown(str(p)), row[0][0], f"{row[0][1]:.6f}"] for p, row in batch.rows)


def _predictions_as_table(batches: Iterator["Predictions"], top: int) -> None:
    from advisor.report.terminal import print_predictions
    from strategies.data.image import shown

    for batch in batches:
        _print_skipped(batch)
        print_predictions(stdout, [(shown(str(path)), row[:top]) for path, row in batch.rows])


def _print_skipped(batch: "Predictions") -> None:
    from strategies.data.image import shown

    for skipped in batch.skipped:
        line = f"skipped: {shown(skipped.path)}: {skipped.reason}"
        stderr.print(line, highlight=False, markup=False, soft_wrap=True)
