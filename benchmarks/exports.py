"""Whether exported classifiers predict what tl-auto predict does, and what float16 and int8 cost.

For every dataset, a strategy is fitted to the train images on the embedded backbone, and its
classifier is exported in every format and precision. int8 is calibrated on train images. The
images are those of test and validation, in a scratch folder: a sixth of them as they are, the
others as PNG files (RGB, grey, palette, cut to odd sizes) and as JPEG files that EXIF turns. An
export gets them as its users read them, with Pillow alone.

Everything is compared with tl-auto predict, which computes in float32 on a CPU. The row "bfloat16"
is the classifier itself in that precision, which other commands use on processors that have it.
The last columns are the shares of images about which an export says otherwise than the classifier
whether they are unknown, at 5% of false alarms, or which classes are in the set, at 90% coverage.

Run:      python benchmarks/exports.py --scratch FOLDER [--data-root FOLDER] [--cache-dir DIR]
Cost:     half an hour on two busy cores.
Expected: float32 files have a top-1 agreement of at least 99.5% and a largest difference
          of at most 0.02; int8 loses at most 1 point.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from shared_datasets import DATA

from advisor.deploy.exports.agreement import Agreement, agreement, mixed, plain_pixels
from advisor.deploy.exports.judgements import judgement_agreement
from advisor.deploy.labelled import LabelledFile
from advisor.deploy.predict import predict
from advisor.tune.trials.reliability import calibrate_head, calibrate_network
from strategies.core.context import RunContext, make_context
from strategies.core.metrics import Labels
from strategies.data.dataset import Dataset, load_dataset
from strategies.data.decoding import read_image
from strategies.data.image import LabelledImage
from strategies.models.backbone import load_backbone
from strategies.models.classifier import ImageClassifier
from strategies.models.formats.export import PRECISIONS, export, predictor
from strategies.models.reliability.outputs import Outputs
from strategies.registry import get_strategy

FITS = (
    ("flowers5", "linear_probe", 224),
    ("trash6", "layer_svm", 96),
    ("neu_surface", "full_fine_tune", 96),
)
N_IMAGES, N_CALIBRATION = 500, 200
VARIANTS = ("as it is", "png", "grey", "palette", "turned", "odd")
HEADER = (
    "| dataset | strategy | format | top-1 agreement | largest difference "
    "| difference of accuracy (points) | ms/image | MB | unknown differs | sets differ |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row per dataset and file."""
    args = _arguments(argv)
    print(HEADER, flush=True)
    for name, strategy, px in args.fits:
        ctx = make_context(cache_dir=args.cache_dir, seed=0)
        dataset = load_dataset(args.data_root / name, seed=0, cache=ctx.cache)
        classifier = fitted(dataset, strategy, min(px, args.input_px), args.steps, ctx)
        folder = args.scratch / f"{name}-{strategy}"
        classifier.save(folder / "classifier")
        files = write_variants(dataset, folder / "images", args.images)
        compare_formats(classifier, dataset, files, folder)


def fitted(
    dataset: Dataset, strategy: str, px: int, steps: int, ctx: RunContext
) -> ImageClassifier:
    """Fit a strategy to the train images, and calibrate it; training takes a number of steps."""
    kind = get_strategy(strategy)
    given = {"steps": steps} if "steps" in kind().hyperparameters() else {}
    chosen = kind.from_hyperparameters(given)
    found = chosen.fit(dataset.hide_test(), load_backbone(input_px=px), ctx)
    calibrate = calibrate_network if kind.trains_network else calibrate_head
    reliability = calibrate(found, dataset.hide_test(), ctx)
    if isinstance(reliability, str):
        print(f"{strategy}: {reliability}", flush=True)
        return found
    return replace(found, reliability=reliability)


def compare_formats(
    classifier: ImageClassifier, dataset: Dataset, files: Sequence[LabelledFile], folder: Path
) -> None:
    """Export a classifier in every format and precision, and print a row for each."""
    paths = [file.path for file in files]
    labels = np.array([classifier.classes.index(file.label) for file in files])
    own = predicted(folder / "classifier", paths, classifier.classes)
    rounded = classifier.predict_outputs(paths, precision=torch.bfloat16)
    start = time.perf_counter()
    for path in paths[:50]:
        classifier.predict_proba([read_image(path)])
    ms = np.full(len(paths), 1000 * (time.perf_counter() - start) / len(paths[:50]))
    size = (folder / "classifier" / "classifier.safetensors").stat().st_size / 1e6
    for what, rows in (("tl-auto predict", own), ("bfloat16", rounded)):
        result = compared(rows, own, labels, ms, classifier)
        print(_row(folder.name, what, result, size), flush=True)
    calibration = mixed(_files(dataset, dataset.train))[:N_CALIBRATION]
    for format, precisions in PRECISIONS.items():
        if format == "timm" and classifier.depths != (classifier.backbone.n_depths,):
            continue
        for precision in precisions:
            target = folder / f"{precision}.{format}"
            images = [file.path for file in calibration]
            export(classifier, target, format, precision=precision, calibration=images)
            found, times = exported(target, format, paths)
            result = compared(found, own, labels, times, classifier)
            size = sum(f.stat().st_size for f in (target, *target.rglob("*")) if f.is_file()) / 1e6
            print(_row(folder.name, f"{format} {precision}", result, size), flush=True)


def compared(
    found: Outputs,
    own: Outputs,
    labels: Labels,
    times_ms: NDArray[np.float64],
    classifier: ImageClassifier,
) -> Agreement:
    """Compare outputs of an export with those of the classifier."""
    result = agreement(found.probabilities, own.probabilities, labels, "images", times_ms)
    if classifier.reliability is None:
        return result
    judged = judgement_agreement(found, own, labels, classifier.reliability)
    return replace(result, judgements=judged)


def exported(
    target: Path, format: str, paths: Sequence[Path]
) -> tuple[Outputs, NDArray[np.float64]]:
    """Return the outputs of an exported file, and the milliseconds of every image."""
    run, rows, times = predictor(target, format), [], []
    for path in paths:
        image = plain_pixels(path)
        start = time.perf_counter()
        rows.append(run(image))
        times.append(1000 * (time.perf_counter() - start))
    return Outputs.joined(rows), np.array(times)


def predicted(folder: Path, paths: Sequence[Path], classes: Sequence[str]) -> Outputs:
    """Return the outputs of tl-auto predict."""
    batches = list(predict(folder, paths))
    by_path = {path: dict(row) for batch in batches for path, row in batch.rows}
    rows = np.array([[by_path[path][c] for c in classes] for path in paths], dtype=np.float32)
    scores = {
        path: judgement.score
        for batch in batches
        for (path, _), judgement in zip(batch.rows, batch.judgements or (), strict=False)
    }
    unknown = np.array([scores[path] for path in paths], np.float32) if scores else None
    return Outputs(rows, unknown)


def write_variants(dataset: Dataset, folder: Path, most: int) -> list[LabelledFile]:
    """Write test and validation images as files of several kinds."""
    folder.mkdir(parents=True, exist_ok=True)
    both = (*(dataset.test or ()), *dataset.val)
    chosen = mixed(_files(dataset, both))[:most]
    return [
        LabelledFile(
            _variant(file.path, VARIANTS[i % len(VARIANTS)], folder / str(i)), file.label, ""
        )
        for i, file in enumerate(chosen)
    ]


def _variant(path: Path, kind: str, stem: Path) -> Path:
    image = Image.open(path)
    rgb = image.convert("RGB")
    exif = Image.Exif()
    if kind == "as it is":
        target = stem.with_suffix(path.suffix)
        target.write_bytes(path.read_bytes())
    elif kind == "turned":
        target = stem.with_suffix(".jpg")
        exif[0x0112] = 6  # shown turned by 90 degrees
        rgb.transpose(Image.Transpose.ROTATE_90).save(target, quality=95, exif=exif)
    else:
        target = stem.with_suffix(".png")
        odd = rgb.crop((0, 0, rgb.width - 1 + rgb.width % 2, rgb.height - 1 + rgb.height % 2))
        made = {"png": rgb, "grey": rgb.convert("L"), "palette": rgb.quantize(64), "odd": odd}
        made[kind].save(target)
    return target


def _files(dataset: Dataset, images: Sequence[LabelledImage]) -> list[LabelledFile]:
    return [LabelledFile(image.path, dataset.classes[image.label], "") for image in images]


def _row(fit: str, what: str, result: Agreement, size_mb: float) -> str:
    dataset, _, strategy = fit.partition("-")
    assert result.gain is not None
    agrees = f"{100 * result.top_1:.1f}% | {result.largest_difference:.4f}"
    numbers = f"{result.ms_per_image:.1f} | {size_mb:.1f} | {_judged(result)}"
    gain = result.gain.points(unit="")
    return f"| {dataset} | {strategy} | {what} | {agrees} | {gain} | {numbers} |"


def _judged(result: Agreement) -> str:
    found = result.judgements
    if found is None:
        return "– | –"
    changed = found.unknown_changed
    unknown = "–" if changed is None else f"{100 * changed:.1f}%"
    return f"{unknown} | {100 * found.sets_changed:.1f}%"


def _fit(text: str) -> tuple[str, str, int]:
    dataset, strategy, px = text.split(":")
    return dataset, strategy, int(px)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=DATA)
    parser.add_argument("--scratch", type=Path, required=True, help="empty folder for files")
    parser.add_argument(
        "--fits", nargs="+", type=_fit, default=FITS, metavar="DATASET:STRATEGY:PX"
    )
    parser.add_argument("--images", type=int, default=N_IMAGES)
    parser.add_argument("--input-px", type=int, default=1024, help="largest input size")
    parser.add_argument("--steps", type=int, default=150, help="of training")
    parser.add_argument("--cache-dir", type=Path)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
