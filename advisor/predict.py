"""A saved classifier on new pictures; what cannot be read is set aside, not fatal."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from strategies.core.backbone import Backbone
from strategies.core.classifier import ImageClassifier
from strategies.core.errors import DataError
from strategies.core.features import BATCH, ahead, eval_pixels
from strategies.core.images import Pixels, UnreadableImage, known_suffixes
from strategies.core.progress import OnProgress
from strategies.core.run import choose_precision, make_device
from strategies.core.task import Skipped


@dataclass(frozen=True)
class Predictions:
    """Classes with probabilities, likeliest first, for every picture that could be read."""

    rows: tuple[tuple[Path, tuple[tuple[str, float], ...]], ...]
    skipped: tuple[Skipped, ...]


def predict(
    run: Path, given: Sequence[Path], *, device: str = "auto", on_progress: OnProgress
) -> Predictions:
    """Classify picture files and all pictures below folders.

    Parameters
    ----------
    run
        A run folder, or a classifier folder in it.

    Raises
    ------
    StorageError
        If there is no readable classifier.
    DataError
        If there is no picture.
    """
    folder = run / "classifier" if (run / "classifier").is_dir() else run
    classifier = ImageClassifier.load(folder, make_device(device))
    precision = choose_precision(classifier.device)
    paths = _list_pictures(given)
    skipped: list[Skipped] = []
    rows: list[tuple[Path, tuple[tuple[str, float], ...]]] = []

    def read(chunk: Sequence[Path]) -> list[Pixels | str]:
        return [_pixels(path, classifier.backbone) for path in chunk]

    n_workers = max(2, os.cpu_count() or 2)
    for number, found in enumerate(ahead(paths, read, n_workers)):
        chunk = paths[number * BATCH : number * BATCH + len(found)]
        both = list(zip(chunk, found, strict=True))
        skipped += [Skipped(path, reason) for path, reason in both if isinstance(reason, str)]
        good = [(path, pixels) for path, pixels in both if not isinstance(pixels, str)]
        if good:
            said = classifier.classify(np.stack([pixels for _, pixels in good]), precision)
            rows += [
                (path, _ranked(classifier.classes, row))
                for (path, _), row in zip(good, said, strict=True)
            ]
        on_progress("predictions", number * BATCH + len(chunk), len(paths))
    return Predictions(tuple(rows), tuple(skipped))


def _pixels(path: Path, backbone: Backbone) -> Pixels | str:
    """Read a picture as the network is to see it, or say why it cannot be read."""
    try:
        return eval_pixels(path, backbone)
    except UnreadableImage as error:
        return str(error)


def _ranked(classes: Sequence[str], row: NDArray[np.float32]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(zip(classes, row.tolist(), strict=True), key=lambda pair: -pair[1]))


def _list_pictures(given: Sequence[Path]) -> list[Path]:
    suffixes = known_suffixes()
    paths: list[Path] = []
    for entry in given:
        if entry.is_dir():
            paths += sorted(
                Path(parent) / name
                for parent, _, names in os.walk(entry)
                for name in names
                if Path(name).suffix.lower() in suffixes and not name.startswith(".")
            )
        else:
            paths.append(entry)
    if not paths:
        raise DataError(f"There is no picture in {', '.join(map(str, given))}.")
    return paths
