"""Prediction with a saved classifier on new images, batch by batch."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from advisor.tune.run_dir.directory import RunDir
from strategies.core.devices import choose_precision, make_device
from strategies.core.errors import DataError
from strategies.core.limits import usable_cpus
from strategies.core.prefetch import chunks, prefetch
from strategies.core.progress import OnProgress
from strategies.data.dataset import Skipped
from strategies.data.decoding import Pixels, UnreadableImage, known_suffixes
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier
from strategies.models.features import INFERENCE_BATCH, eval_pixels

CHUNK = 512
"""Images per batch: the next ones are read while others are classified."""
Ranked = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Predictions:
    """Predictions of one batch of images.

    Attributes
    ----------
    rows
        Classes with probabilities, most probable first, for every readable image.
    skipped
        Unreadable images, with the reason.
    """

    rows: tuple[tuple[Path, Ranked], ...]
    skipped: tuple[Skipped, ...]


def predict(
    run: Path, given: Iterable[Path], *, device: str = "auto", on_progress: OnProgress
) -> Iterator[Predictions]:
    """Classify image files and all images below folders; yield predictions batch by batch.

    `given` may be an endless stream: no more than one batch of it is held in memory.

    Parameters
    ----------
    run
        A run folder, or the classifier folder in it.

    Raises
    ------
    StorageError
        If there is no readable classifier.
    DataError
        If `given` holds no image.
    """
    folder = RunDir(run).classifier()
    classifier = ImageClassifier.load(folder if folder.is_dir() else run, make_device(device))
    precision = choose_precision(classifier.device)
    done = 0
    paths = _list_images(given)
    while chunk := list(islice(paths, CHUNK)):
        predictions = _predict_chunk(classifier, chunk, precision)
        done += len(chunk)
        on_progress("predictions", done, 0)
        yield predictions
    if not done:
        raise DataError("There is no image in the given files and folders.")


def _predict_chunk(
    classifier: ImageClassifier, chunk: Sequence[Path], precision: torch.dtype
) -> Predictions:
    readable: list[Path] = []
    skipped: list[Skipped] = []
    n_workers = max(2, usable_cpus())

    def read(paths: Sequence[Path]) -> list[Pixels | str]:
        return [_pixels(path, classifier.backbone) for path in paths]

    def batches() -> Iterator[Pixels]:
        remaining = iter(chunk)
        for decoded in prefetch(read, chunks(chunk, INFERENCE_BATCH), n_workers):
            pairs = list(zip(islice(remaining, len(decoded)), decoded, strict=True))
            skipped.extend(Skipped(path, why) for path, why in pairs if isinstance(why, str))
            found = [(path, pixels) for path, pixels in pairs if not isinstance(pixels, str)]
            readable.extend(path for path, _ in found)
            if found:
                yield np.stack([pixels for _, pixels in found])

    probabilities = chain.from_iterable(classifier.classify_batches(batches(), precision))
    ranked = [_ranked(classifier.classes, row) for row in probabilities]
    return Predictions(tuple(zip(readable, ranked, strict=True)), tuple(skipped))


def _pixels(path: Path, backbone: Backbone) -> Pixels | str:
    """Return an image preprocessed for the network, or the reason why it is unreadable."""
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
