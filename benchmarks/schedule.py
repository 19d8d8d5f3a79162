"""Batch, learning rate, steps and epochs by the number of images, and one fit to many images.

The first table is computed from the defaults. `--fit` adds a full fine-tuning of 20,000 images
like those of CIFAR-10: all but 50 of each class of the shared train images, repeated with random
shifts of up to 3 pixels and changes of brightness and contrast of up to a fifth. The images that
were held out are the validation images; test is that of the shared data. The same fit with the
600 steps of 32 images that were the most before is its comparison. BatchNorm statistics are
trained: at 32 px those of the pretrained network do not hold, and fine-tuning with them ends at
chance.

Run:      python benchmarks/schedule.py [--fit --images FOLDER --scratch FOLDER]
Cost:     the first table a second; `--fit` a quarter of an hour on one core.
Expected: docs/benchmarks/training.md.
"""

import argparse
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from strategies.core.allocator import keep_freed_memory
from strategies.core.context import RunContext, make_context
from strategies.data.dataset import Dataset, load_dataset
from strategies.full_fine_tune import FullFineTune
from strategies.models.backbone import load_backbone
from strategies.models.catalogue import DEFAULT_BACKBONE
from strategies.models.classifier import ImageClassifier, evaluate
from strategies.training.dataloader import row_batches
from strategies.training.defaults import default_batch_size, default_steps, lr_factor
from strategies.training.recipe import BATCH_SIZE

SIZES = (100, 1000, 2400, 4800, 9600, 20_000, 50_000, 100_000, 200_000, 1_000_000)
HELD_OUT = 50
MAX_SHIFT_PX, MAX_CHANGE = 3, 0.2
SETTINGS = {"batch_norm": "trained"}
BEFORE = {"steps": 600, "batch_size": BATCH_SIZE}
"""The longest default fit before batch and epochs followed the number of images."""


@dataclass(frozen=True)
class Schedule:
    """What a training run of some images looks like."""

    n: int
    batch_size: int
    steps: int

    @property
    def n_seen(self) -> int:
        """How often the image is seen that is seen least often."""
        rows = row_batches(self.n, self.batch_size, 0)
        counts = np.zeros(self.n, dtype=np.int64)
        for _ in range(self.steps):
            counts[next(rows)] += 1
        return int(counts.min())

    @property
    def epochs(self) -> float:
        """Number of epochs."""
        return self.steps * self.batch_size / self.n

    def row(self) -> str:
        """Return the schedule as a line of a table."""
        factor = lr_factor(self.batch_size)
        return (
            f"{self.n:,} | {self.batch_size} | {factor:.2f} | {self.steps:,} | {self.epochs:.2f}"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of the defaults; with `--fit`, make the images and fit them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--images", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--scratch", type=Path, help="folder for the images that are made")
    parser.add_argument("--n", type=int, default=20_000, help="number of train images")
    parser.add_argument("--input-px", type=int, default=32)
    args = parser.parse_args(argv)
    print("| train images | batch | factor of the learning rate | steps | epochs |")
    print("|---|---|---|---|---|")
    for n in SIZES:
        batch_size = default_batch_size(n)
        print(f"| {Schedule(n, batch_size, default_steps(n, batch_size)).row()} |")
    if not args.fit:
        return
    keep_freed_memory()
    folder = args.scratch / "many-images"
    try:
        make_images(args.images, folder, args.n)
        compare(load_dataset(folder, max_images=None), args.input_px, args.scratch / "cache")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_images(source: Path, folder: Path, n: int) -> None:
    """Write `n` train images, the images held out as validation images, and the test images."""
    rng = np.random.default_rng(0)
    shutil.copytree(source / "test", folder / "test")
    classes = sorted(p for p in (source / "train").iterdir() if p.is_dir())
    for number, place in enumerate(classes):
        for split in ("train", "val"):
            (folder / split / place.name).mkdir(parents=True)
        paths = sorted(place.iterdir())
        held_out, repeated = paths[:HELD_OUT], paths[HELD_OUT:]
        for path in held_out:
            shutil.copy(path, folder / "val" / place.name)
        for i in range((n - number + len(classes) - 1) // len(classes)):
            image = Image.open(repeated[i % len(repeated)]).convert("RGB")
            changed = image if i < len(repeated) else augmented(image, rng)
            changed.save(folder / "train" / place.name / f"{i:05d}.png")


def augmented(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Shift an image by up to `MAX_SHIFT_PX` pixels; change brightness and contrast a little."""
    left, top = rng.integers(0, 2 * MAX_SHIFT_PX + 1, 2).tolist()
    padded = ImageOps.expand(image, MAX_SHIFT_PX)
    shifted = padded.crop((left, top, left + image.width, top + image.height))
    brightness, contrast = 1 + rng.uniform(-MAX_CHANGE, MAX_CHANGE, 2)
    return ImageEnhance.Contrast(ImageEnhance.Brightness(shifted).enhance(brightness)).enhance(
        contrast
    )


def compare(dataset: Dataset, input_px: int, cache: Path) -> None:
    """Fit with the default schedule and with that of before; print a table."""
    ctx = make_context(device="cpu", cache_dir=cache, seed=0)
    backbone = load_backbone(DEFAULT_BACKBONE, input_px=input_px)
    assert dataset.test is not None
    print()
    print("| schedule | batch | steps | least often seen | test accuracy, % | CPU time |")
    print("|---|---|---|---|---|---|")
    for title, settings in (("default", {}), ("600 steps of 32", BEFORE)):
        start = time.process_time()
        strategy = FullFineTune.from_hyperparameters({**SETTINGS, **settings})
        fitted = strategy.fit(dataset.hide_test(), backbone, ctx)
        minutes = (time.process_time() - start) / 60
        used = {"batch_size": BATCH_SIZE, **fitted.hyperparameters}
        done = Schedule(len(dataset.train), used["batch_size"], used["steps"])
        cells = (title, done.batch_size, done.steps, done.n_seen, accuracy(fitted, dataset, ctx))
        print(f"| {' | '.join(map(str, cells))} | {minutes:.1f} min |", flush=True)


def accuracy(fitted: ImageClassifier, dataset: Dataset, ctx: RunContext) -> str:
    """Return the test accuracy in per cent with its interval."""
    assert dataset.test is not None
    found = evaluate(fitted, dataset.test, n_workers=ctx.n_workers)
    return found.accuracy.percent()


if __name__ == "__main__":
    main()
