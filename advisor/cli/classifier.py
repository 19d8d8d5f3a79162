"""Commands tl-auto export and tl-auto predict: use the classifier of a run."""

import csv
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advisor.cli.console import (
    errors,
    fail,
    print_json,
    print_note,
    print_skipped,
    progress,
    stderr,
    stdout,
)
from advisor.cli.options import Output, check_run, with_flags
from advisor.types.flags import Flag
from advisor.types.options import AUTO, DeviceName
from strategies.core.progress import OnProgress

if TYPE_CHECKING:
    from advisor.deploy.export import Exported
    from advisor.deploy.predict import Asked, Judgement, Predictions, UnknownCount


@dataclass(frozen=True)
class Judging:
    """What is asked about an image besides its class."""

    coverage: Annotated[
        float | None,
        Flag(
            "Print a set of classes for every image. A set holds the class of an image like the "
            "training images with at least this probability, e.g. 0.9. It is never empty, so it "
            "is right at least as often as the most probable class is.",
            panel="Output",
        ),
    ] = None
    false_alarms: Annotated[
        float | None,
        Flag(
            "Call an image unknown that is unlike the training images; share of images like them "
            "that may be called so too. Default: 0.05.",
            panel="Output",
        ),
    ] = None

    def asked(self) -> "Asked | None":
        """Return it in the terms of `predict`; None if nothing is asked."""
        from advisor.deploy.predict import Asked
        from strategies.models.reliability.reliability import FALSE_ALARMS

        if self.coverage is None and self.false_alarms is None:
            return None
        return Asked(
            FALSE_ALARMS if self.false_alarms is None else self.false_alarms, self.coverage
        )


@dataclass(frozen=True)
class Upload:
    """Where an export is uploaded."""

    push_to_hub: Annotated[
        str | None,
        Flag(
            "Upload it with its model card to this repository, OWNER/NAME, of the Hugging Face "
            "hub; a new one is private.",
            panel="Output",
        ),
    ] = None
    public: Annotated[
        bool, Flag("Everybody may read the repository of --push-to-hub.", panel="Output")
    ] = False


@with_flags
def export_command(
    run: Annotated[Path, typer.Argument(help="Run folder, or the classifier folder in it.")],
    kind: Annotated[
        str,
        Flag(
            "onnx; pt2: torch.export; timm: a folder for timm; hf: the same with a model card.",
            name="--format",
            panel="Output",
        ),
    ] = "onnx",
    precision: Annotated[
        str,
        Flag(
            "float32, float16 or int8. The last two make a smaller onnx file, and cost accuracy.",
            panel="Output",
        ),
    ] = "float32",
    out: Annotated[
        Path | None,
        Flag("File or folder to write; default: export/FORMAT in the run folder.", panel="Output"),
    ] = None,
    check: Annotated[
        Path | None,
        Flag(
            "Dataset whose images the export is checked on; default: validation images of the "
            "run.",
            panel="Data",
        ),
    ] = None,
    *,
    upload: Upload,
    output: Output,
) -> None:
    """Export the classifier of a run to ONNX, torch.export, timm or Hugging Face, and check it."""
    if upload.public and upload.push_to_hub is None:
        fail("--public needs --push-to-hub OWNER/NAME.")
    if check is not None and not check.exists() and check.parts[:1] != ("hfds",):
        fail(f"--check {check} does not exist. Give a dataset or a folder of images.")
    with progress(output.quiet) as on_progress, errors():
        from advisor.deploy.export import export_run
        from advisor.deploy.exports.hub import Repository

        name = upload.push_to_hub
        repository = None if name is None else Repository(name, upload.public)
        found = export_run(
            run,
            kind,
            out,
            precision=precision,
            check_data=check,
            repository=repository,
            on_progress=on_progress,
        )
    _print_exported(found, output)


def _print_exported(found: "Exported", output: Output) -> None:
    """Print what was exported to stdout, and what is wrong with it to stderr."""
    if output.json:
        print_json(found.record())
    else:
        stdout.print(str(found.path), highlight=False, markup=False, soft_wrap=True)
    if not (output.json or output.quiet):
        for sentence in found.sentences():
            stdout.print(f"  {sentence}", highlight=False, markup=False)
        if found.url is not None:
            stdout.print(f"  Pushed to {found.url}", highlight=False, markup=False)
    for warning in found.warnings():
        stderr.print(f"Warning: {warning}", highlight=False, markup=False, style="bold red")


@with_flags
def predict_command(
    run: Annotated[Path, typer.Argument(help="Run folder, or the classifier folder in it.")],
    images: Annotated[
        list[Path], typer.Argument(help="Image files or folders; - reads paths from stdin.")
    ],
    top: Annotated[
        int,
        Flag("Number of classes per image.", name="--top-k", alias="--top", panel="Output", min=1),
    ] = 3,
    device: DeviceName = AUTO,
    as_csv: Annotated[
        bool,
        Flag("Print the top class of every image as CSV to stdout.", name="--csv", panel="Output"),
    ] = False,
    explain: Annotated[
        str | None,  # as in tl-advise: one environment variable has one kind of value
        Flag(
            "New or empty folder: also write where each image speaks for its class, and the "
            "most similar train images.",
            panel="Output",
        ),
    ] = None,
    *,
    judging: Judging,
    output: Output,
) -> None:
    """Classify images; print classes with probabilities, and which images are unknown."""
    if output.json and as_csv:
        fail("--json and --csv cannot be used together. Both print to stdout; give one.")
    check_run(run)
    missing = [p for p in images if str(p) != "-" and not p.exists()]
    if missing:
        fail(f"{missing[0]} does not exist.")
    streamed = stdout.is_terminal and Path("-") in images
    with errors(), ExitStack() as bars:
        from advisor.deploy.predict import UnknownCount, predict
        from strategies.core.allocator import keep_freed_memory

        keep_freed_memory()
        asked = judging.asked()
        on_progress = bars.enter_context(progress(output.quiet or streamed))
        if explain is None:
            given = _expand_stdin(images)
            batches = predict(run, given, device=device, asked=asked, on_progress=on_progress)
        else:
            batches = _explained(run, images, Path(explain), device, asked, on_progress)
        if stdout.is_terminal and not streamed:
            batches = iter(list(batches))
            bars.close()  # lines on the same terminal would begin behind the bar
        count = UnknownCount(asked)
        batches = _with_notes(batches, judging.coverage, count)
        if output.json:
            _predictions_as_json(batches, top, count)
        elif as_csv:
            _predictions_as_csv(batches, with_sets=judging.coverage is not None)
        else:
            _predictions_as_table(batches, top)
        if explain is not None:
            print_note(f"Explanations: {Path(explain) / 'index.html'}")


def _explained(
    run: Path,
    images: list[Path],
    out: Path,
    device: str,
    asked: "Asked | None",
    on_progress: OnProgress,
) -> Iterator["Predictions"]:
    """Classify images, and write explanations of the predictions."""
    from advisor.deploy.explain import check_out, explain
    from strategies.core.context import make_context
    from strategies.core.progress import Reporter

    check_out(out, images)
    ctx = make_context(device=device, reporter=Reporter(on_progress, print_note))
    return explain(run, _expand_stdin(images), out, ctx, asked)


def _with_notes(
    batches: Iterator["Predictions"], coverage: float | None, count: "UnknownCount"
) -> Iterator["Predictions"]:
    """Yield the batches, and count them; say on stderr what the classifier does not promise.

    Before the first batch: for any images. After the last: for these, if too many are unknown.
    """
    from strategies.models.reliability.reliability import ENOUGH_IMAGES

    for number, batch in enumerate(batches):
        reliability = batch.reliability
        if number == 0 and batch.not_calibrated is not None:
            print_note(batch.not_calibrated)
        elif number == 0 and reliability and coverage and not reliability.promises_sets:
            print_note(
                f"The prediction sets were calibrated on {reliability.n} images. Their coverage "
                f"is not promised with fewer than {ENOUGH_IMAGES}."
            )
        elif number == 0 and coverage:
            print_note(
                f"A set holds the class of an image like the training images in at least "
                f"{100 * coverage:g}% of cases. No set is empty: where the most probable class is "
                "right more often, so are the sets."
            )
        count.add(batch)
        yield batch
    if count.warning is not None:
        print_note(count.warning)


def _expand_stdin(images: list[Path]) -> Iterator[Path]:
    """Yield the given paths, with ``-`` replaced by the lines of stdin."""
    for path in images:
        if str(path) == "-":
            yield from (Path(line.rstrip("\n")) for line in sys.stdin if line.strip())
        else:
            yield path


def _predictions_as_json(
    batches: Iterator["Predictions"], top: int, count: "UnknownCount"
) -> None:
    """Print all batches as JSON; `count` has counted them when they are over (`_with_notes`)."""
    from strategies.data.image import shown

    predictions, quarantine = [], []
    reliability: dict[str, Any] | None = None
    reason: str | None = None
    for batch in batches:
        reason = batch.not_calibrated
        reliability = None if batch.reliability is None else batch.reliability.record()
        judgements = batch.judgements or [None] * len(batch.rows)
        for (path, row), judgement in zip(batch.rows, judgements, strict=True):
            classes = [{"class": c, "probability": v} for c, v in row[:top]]
            found = {"path": shown(str(path)), "classes": classes}
            predictions.append({**found, **_judgement_record(judgement)})
        quarantine += [{"path": shown(s.path), "reason": s.reason} for s in batch.skipped]
    answer: dict[str, Any] = {"predictions": predictions, "quarantine": quarantine}
    answer |= {"unknown_images": count.record(), "reliability": reliability}
    print_json({**answer, "not_calibrated": reason})


def _judgement_record(judgement: "Judgement | None") -> dict[str, Any]:
    """Return a judgement as plain JSON values; null where the classifier is not calibrated."""
    if judgement is None:
        return {"unknown": None, "unknown_score": None}
    found: dict[str, Any] = {"unknown": judgement.unknown, "unknown_score": judgement.score}
    if judgement.prediction_set is not None:
        found["prediction_set"] = list(judgement.prediction_set)
    return found


def _predictions_as_csv(batches: Iterator["Predictions"], *, with_sets: bool) -> None:
    from strategies.data.image import shown

    writer = csv.writer(sys.stdout)
    columns = ["path", "class", "probability", "unknown", "unknown_score"]
    writer.writerow([*columns, *(["prediction_set"] if with_sets else [])])
    for batch in batches:
        print_skipped(batch.skipped)
        judgements = batch.judgements or [None] * len(batch.rows)
        for (path, row), judgement in zip(batch.rows, judgements, strict=True):
            cells = ["", ""]
            if judgement is not None:
                cells = [str(judgement.unknown).lower(), f"{judgement.score:.6f}"]
                cells += [] if not with_sets else ["|".join(judgement.prediction_set or ())]
            writer.writerow([shown(str(path)), row[0][0], f"{row[0][1]:.6f}", *cells])


def _predictions_as_table(batches: Iterator["Predictions"], top: int) -> None:
    from advisor.report.terminal import print_predictions
    from strategies.data.image import shown

    for batch in batches:
        print_skipped(batch.skipped)
        rows = [(shown(str(path)), row[:top]) for path, row in batch.rows]
        judged = [(j.unknown, j.prediction_set) for j in batch.judgements or ()]
        print_predictions(stdout, rows, judged)
