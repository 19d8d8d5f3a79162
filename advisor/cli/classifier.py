"""tl-auto predict and export: using the classifier of a run."""

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
from advisor.cli.options import (
    Device,
    Json,
    Quiet,
)

if TYPE_CHECKING:
    from advisor.deploy.predict import Predictions


def export_command(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    kind: Annotated[
        str, typer.Option("--format", help="onnx, timm, or hf: a folder ready for a model hub.")
    ] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="What to write; default: export/FORMAT in the run folder.")
    ] = None,
) -> None:
    """Write a run's classifier for others to use."""
    with errors():
        from advisor.deploy.export import export_run

        target = export_run(run, kind, out)
    stdout.print(str(target), highlight=False, markup=False, soft_wrap=True)


def predict_command(
    run: Annotated[Path, typer.Argument(help="Run folder, or its classifier folder.")],
    images: Annotated[
        list[Path], typer.Argument(help="Image files or folders; - reads a list from stdin.")
    ],
    top: Annotated[int, typer.Option("--top-k", "--top", min=1, help="Classes to name.")] = 3,
    device: Device = "auto",
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV to stdout.")] = False,
    quiet: Quiet = False,
) -> None:
    """Print classes and probabilities for images."""
    if as_json and as_csv:
        fail("--json and --csv were both given. Leave one of them out.")
    if not run.is_dir():
        fail(f"{run} is not a folder. Give the folder that tl-auto run wrote (--out).")
    missing = [p for p in images if str(p) != "-" and not p.exists()]
    if missing:
        fail(f"{missing[0]} does not exist.")
    with progress(quiet) as on_progress, errors():
        from advisor.deploy.predict import predict

        found = predict(run, _given(images), device=device, on_progress=on_progress)
        if as_json:
            _predictions_as_json(found, top)
        elif as_csv:
            _predictions_as_csv(found)
        else:
            _predictions_as_table(found, top)


def _given(images: list[Path]) -> Iterator[Path]:
    """Yield what was given; ``-`` stands for the lines of stdin."""
    for path in images:
        if str(path) == "-":
            yield from (Path(line.rstrip("\n")) for line in sys.stdin if line.strip())
        else:
            yield path


def _predictions_as_json(found: Iterator["Predictions"], top: int) -> None:
    from strategies.data.image import shown

    predictions, quarantine = [], []
    for part in found:
        for path, row in part.rows:
            classes = [{"class": c, "probability": v} for c, v in row[:top]]
            predictions.append({"path": shown(path), "classes": classes})
        quarantine += [{"path": shown(s.path), "reason": s.reason} for s in part.skipped]
    print_json({"predictions": predictions, "quarantine": quarantine})


def _predictions_as_csv(found: Iterator["Predictions"]) -> None:
    from strategies.data.image import shown

    writer = csv.writer(sys.stdout)
    writer.writerow(["path", "class", "probability"])
    for part in found:
        _say_left_out(part)
        writer.writerows([shown(p), row[0][0], f"{row[0][1]:.6f}"] for p, row in part.rows)


def _predictions_as_table(found: Iterator["Predictions"], top: int) -> None:
    from advisor.report.terminal import print_predictions
    from strategies.data.image import shown

    for part in found:
        _say_left_out(part)
        print_predictions(stdout, [(shown(path), row[:top]) for path, row in part.rows])


def _say_left_out(part: "Predictions") -> None:
    from strategies.data.image import shown

    for skipped in part.skipped:
        said = f"left out: {shown(skipped.path)}: {skipped.reason}"
        stderr.print(said, highlight=False, markup=False, soft_wrap=True)
