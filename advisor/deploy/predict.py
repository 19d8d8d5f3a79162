"""A saved classifier on new images, batch by batch; what cannot be read is set aside."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from advisor.tune.run_dir.directory import RunDir
from strategies.core.allocator import keep_freed_memory
from strategies.core.context import choose_precision, make_device
from strategies.core.errors import DataError
from strategies.core.progress import OnProgress
from strategies.data.dataset import Skipped
from strategies.data.decoding import Pixels, UnreadableImage, known_suffixes
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier
from strategies.models.features import eval_pixels, read_ahead

CHUNK = 512
"""As many images of a list are taken at a time: some are read while others are classified."""
Ranked = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Predictions:
    """Classes with probabilities, likeliest first, for every image that could be read."""

    rows: tuple[tuple[Path, Ranked], ...]
    skipped: tuple[Skipped, ...]


def predict(
    run: Path, given: Iterable[Path], *, device: str = "auto", on_progress: OnProgress
) -> Iterator[Predictions]:
    """Classify image files and all images below folders, and yield them batch by batch.

    What was given may be an endless list: no more than a batch of it is held.

    Parameters
    ----------
    run
        A run folder, or a classifier folder in it.

    Raises
    ------
    StorageError
        If there is no readable classifier.
    DataError
        If there is no image.
    """
    keep_freed_memory()
    folder = RunDir(run).classifier()
    classifier = ImageClassifier.load(folder if folder.is_dir() else run, make_device(device))
    precision = choose_precision(classifier.device)
    done = 0
    paths = _list_images(given)
    while chunk := list(islice(paths, CHUNK)):
        found = _predict_chunk(classifier, chunk, precision)
        done += len(chunk)
        on_progress("predictions", done, 0)
        yield found
    if not done:
        raise DataError("There is no image in what was given.")


def _predict_chunk(
    classifier: ImageClassifier, chunk: Sequence[Path], precision: torch.dtype
) -> Predictions:
    rows: list[tuple[Path, Ranked]] = []
    skipped: list[Skipped] = []
    waiting = iter(chunk)
    n_workers = max(2, os.cpu_count() or 2)

    def read(some: Sequence[Path]) -> list[Pixels | str]:
        return [_pixels(path, classifier.backbone) for path in some]

    for found in read_ahead(chunk, read, n_workers):
        both = list(zip(islice(waiting, len(found)), found, strict=True))
        skipped += [Skipped(path, reason) for path, reason in both if isinstance(reason, str)]
        good = [(path, pixels) for path, pixels in both if not isinstance(pixels, str)]
        if good:
            said = classifier.classify(np.stack([pixels for _, pixels in good]), precision)
            rows += [
                (path, _ranked(classifier.classes, row))
                for (path, _), row in zip(good, said, strict=True)
            ]
    return Predictions(tuple(rows), tuple(skipped))


def _pixels(path: Path, backbone: Backbone) -> Pixels | str:
    """Read an image as the network is to see it, or say why it cannot be read."""
    try:
        return eval_pixels(path, backbone)
    except UnreadableImage as error:
        return str(error)


def _ranked(classes: Sequence[str], row: NDArray[np.float32]) -> Ranked:
    return tuple(sorted(zip(classes, row.tolist(), strict=True), key=lambda pair: -pair[1]))


def _list_images(given: Iterable[Path]) -> Iterator[Path]:
    suffixes = known_suffixes()
    for entry in given:
        if entry.is_dir():
            for parent, folders, names in os.walk(entry):
                folders.sort()
                yield from (
                    Path(parent) / name
                    for name in sorted(names)
                    if Path(name).suffix.lower() in suffixes and not name.startswith(".")
                )
        else:
            yield entry
