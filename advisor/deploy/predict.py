"""Prediction with a saved classifier on new images, in files or in memory, batch by batch."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from advisor.tune.run_dir.directory import RunDir
from strategies.core.devices import make_device, predict_precision
from strategies.core.errors import DataError
from strategies.core.limits import usable_cpus
from strategies.core.prefetch import chunks, prefetch
from strategies.core.progress import OnProgress, ignore_progress
from strategies.data.dataset import Skipped
from strategies.data.decoding import ImageSource, Pixels, known_suffixes
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier
from strategies.models.features import INFERENCE_BATCH, eval_pixels

CHUNK = 512
"""Images per batch: the next ones are read while others are classified."""
Ranked = tuple[tuple[str, float], ...]
_Named = tuple[Path | int, ImageSource]


@dataclass(frozen=True)
class Predictions:
    """Predictions of one batch of images.

    Attributes
    ----------
    rows
        Classes with probabilities, most probable first, for every readable image. An image in
        memory has its position in what was given, from 0, in the place of a path.
    skipped
        Unreadable files, with the reason.
    """

    rows: tuple[tuple[Path | int, Ranked], ...]
    skipped: tuple[Skipped, ...]


def predict(
    run: Path,
    given: Iterable[ImageSource],
    *,
    device: str = "auto",
    on_progress: OnProgress = ignore_progress,
) -> Iterator[Predictions]:
    """Classify images and all images below folders; yield predictions batch by batch.

    `given` may be an endless stream: no more than one batch of it is held in memory.

    Parameters
    ----------
    run
        A run folder, or the classifier folder in it.
    given
        Files, folders and images in memory, see `decoding.read_image`.

    Raises
    ------
    StorageError
        If there is no readable classifier.
    DataError
        If `given` holds no image, or an image in memory cannot be used.
    """
    classifier = load_classifier(run, make_device(device))
    precision = predict_precision(classifier.device)
    done = 0
    images = list_images(given)
    while chunk := list(islice(images, CHUNK)):
        predictions = _predict_chunk(classifier, chunk, precision)
        done += len(chunk)
        on_progress("predictions", done, 0)
        yield predictions
    if not done:
        raise DataError("There is no image in the given files and folders.")


def load_classifier(run: Path, device: torch.device) -> ImageClassifier:
    """Load the classifier of a run folder, or of the classifier folder in it.

    Raises
    ------
    StorageError
        If there is no readable classifier.
    """
    folder = RunDir(run).classifier()
    return ImageClassifier.load(folder if folder.is_dir() else run, device)


def _predict_chunk(
    classifier: ImageClassifier, chunk: Sequence[_Named], precision: torch.dtype
) -> Predictions:
    readable: list[Path | int] = []
    skipped: list[Skipped] = []
    n_workers = max(2, usable_cpus())

    def read(images: Sequence[_Named]) -> list[Pixels | Skipped]:
        return [_pixels(image, classifier.backbone) for image in images]

    def batches() -> Iterator[Pixels]:
        remaining = iter(chunk)
        for decoded in prefetch(read, chunks(chunk, INFERENCE_BATCH), n_workers):
            pairs = list(zip(islice(remaining, len(decoded)), decoded, strict=True))
            skipped.extend(pixels for _, pixels in pairs if isinstance(pixels, Skipped))
            found = [
                (name, pixels) for (name, _), pixels in pairs if not isinstance(pixels, Skipped)
            ]
            readable.extend(name for name, _ in found)
            if found:
                yield np.stack([pixels for _, pixels in found])

    probabilities = chain.from_iterable(classifier.classify_batches(batches(), precision))
    rows = [ranked(classifier.classes, row) for row in probabilities]
    return Predictions(tuple(zip(readable, rows, strict=True)), tuple(skipped))


def _pixels(image: _Named, backbone: Backbone) -> Pixels | Skipped:
    """Return an image preprocessed for the network, or the reason why its file is unreadable."""
    name, source = image
    try:
        return eval_pixels(source, backbone)
    except DataError as error:
        if isinstance(name, int):
            raise DataError(f"Image {name}, in memory, cannot be used. {error}") from error
        return Skipped(name, str(error))


def ranked(classes: Sequence[str], row: NDArray[np.float32]) -> Ranked:
    """Return the classes with their probabilities, most probable first."""
    return tuple(sorted(zip(classes, row.tolist(), strict=True), key=lambda pair: -pair[1]))


def list_images(given: Iterable[ImageSource]) -> Iterator[_Named]:
    """Yield every image with its path, or with its position if it is in memory."""
    suffixes = known_suffixes()
    for number, entry in enumerate(given):
        if not isinstance(entry, Path | str):
            yield number, entry
            continue
        path = Path(entry)
        if not path.is_dir():
            yield path, path
            continue
        for parent, folders, names in os.walk(path):
            folders.sort()
            for name in sorted(names):
                if Path(name).suffix.lower() in suffixes and not name.startswith("."):
                    yield Path(parent) / name, Path(parent) / name
