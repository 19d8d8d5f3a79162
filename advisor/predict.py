"""A saved classifier on new pictures, batch by batch; what cannot be read is set aside."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from advisor.run_folder import RunFolder
from strategies.core.classifier import ImageClassifier
from strategies.core.errors import DataError
from strategies.core.images import UnreadableImage, known_suffixes, read_image
from strategies.core.run import OnProgress, make_device
from strategies.core.task import Skipped

CHUNK = 128
Ranked = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Predictions:
    """Classes with probabilities, likeliest first, for every picture that could be read."""

    rows: tuple[tuple[Path, Ranked], ...]
    skipped: tuple[Skipped, ...]


def predict(
    run: Path, given: Iterable[Path], *, device: str = "auto", on_progress: OnProgress
) -> Iterator[Predictions]:
    """Classify picture files and all pictures below folders, and yield them batch by batch.

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
        If there is no picture.
    """
    folder = RunFolder(run).classifier()
    classifier = ImageClassifier.load(folder if folder.is_dir() else run, make_device(device))
    done = 0
    paths = _list_pictures(given)
    while chunk := list(islice(paths, CHUNK)):
        found = _predict_chunk(classifier, chunk)
        done += len(chunk)
        on_progress("predictions", done, 0)
        yield found
    if not done:
        raise DataError("There is no picture in what was given.")


def _predict_chunk(classifier: ImageClassifier, chunk: Iterable[Path]) -> Predictions:
    readable, skipped = [], []
    for path in chunk:
        try:
            read_image(path)
            readable.append(path)
        except UnreadableImage as error:
            skipped.append(Skipped(path, str(error)))
    rows = classifier.predict_proba(readable)
    ranked = (
        tuple(
            sorted(
                zip(classifier.classes, row.tolist(), strict=True),
                key=lambda pair: -pair[1],
            )
        )
        for row in rows
    )
    return Predictions(tuple(zip(readable, ranked, strict=True)), tuple(skipped))


def _list_pictures(given: Iterable[Path]) -> Iterator[Path]:
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
