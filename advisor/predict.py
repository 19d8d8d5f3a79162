"""A saved classifier on new pictures; what cannot be read is set aside, not fatal."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from strategies.core.classifier import ImageClassifier
from strategies.core.errors import DataError
from strategies.core.images import UnreadableImage, known_suffixes, read_image
from strategies.core.progress import OnProgress
from strategies.core.run import make_device
from strategies.core.task import Skipped

CHUNK = 128


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
    paths = _list_pictures(given)
    skipped: list[Skipped] = []
    rows = []
    for start in range(0, len(paths), CHUNK):
        chunk = paths[start : start + CHUNK]
        readable = []
        for path in chunk:
            try:
                read_image(path)
                readable.append(path)
            except UnreadableImage as error:
                skipped.append(Skipped(path, str(error)))
        for path, row in zip(readable, classifier.predict_proba(readable), strict=True):
            ranked = sorted(
                zip(classifier.classes, row.tolist(), strict=True), key=lambda pair: -pair[1]
            )
            rows.append((path, tuple(ranked)))
        on_progress("predictions", start + len(chunk), len(paths))
    return Predictions(tuple(rows), tuple(skipped))


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
