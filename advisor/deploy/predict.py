"""Prediction with a saved classifier on new images, in files or in memory, batch by batch."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from advisor.tune.run_dir.directory import RunDir
from strategies.core.devices import make_device, predict_precision
from strategies.core.errors import DataError, TransferError
from strategies.core.limits import usable_cpus
from strategies.core.prefetch import chunks, prefetch
from strategies.core.progress import OnProgress, ignore
from strategies.data.decoding import ImageSource, Pixels, known_suffixes
from strategies.data.image import Skipped
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier
from strategies.models.features import INFERENCE_BATCH, eval_pixels
from strategies.models.reliability.conformal import chance_of_as_many
from strategies.models.reliability.outputs import Outputs
from strategies.models.reliability.reliability import FALSE_ALARMS, Reliability, check_coverage

_NO_REASON = (
    "it has not been calibrated. An older release made it, or its run had no time or too few "
    "images for it."
)
CHUNK = 512
"""Images per batch: the next ones are read while others are classified."""
SMALL_CHANCE = 0.001
"""With a smaller probability of as many unknown images, they are not like the training images."""
Ranked = tuple[tuple[str, float], ...]
_Named = tuple[Path | int, ImageSource]


@dataclass(frozen=True)
class Judgement:
    """Whether an image is like the training images, and the classes that it may be of.

    Attributes
    ----------
    unknown, score
        Whether it is unlike the training images, and how much: its score is above the threshold.
    prediction_set
        Classes of its prediction set, most probable first; None: no coverage was asked for.
    """

    unknown: bool
    score: float
    prediction_set: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Asked:
    """What is asked of the reliability of a classifier.

    Attributes
    ----------
    false_alarms
        Share of images like the training images that may be called unknown.
    coverage
        Share of such images whose class is to be in the prediction set; None: no sets.
    """

    false_alarms: float = FALSE_ALARMS
    coverage: float | None = None


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
    judgements
        One for each of `rows`; None: the classifier has no reliability (`ImageClassifier`).
    reliability
        That of the classifier.
    not_calibrated
        Why the classifier has no reliability, as a sentence; None: it has.
    """

    rows: tuple[tuple[Path | int, Ranked], ...]
    skipped: tuple[Skipped, ...]
    judgements: tuple[Judgement, ...] | None = None
    reliability: Reliability | None = None
    not_calibrated: str | None = None


class UnknownCount:
    """Counts the unknown images of batches of predictions, and tells whether they are too many.

    Attributes
    ----------
    stated
        Share of images like the training images that may be called unknown (false alarms).
    """

    def __init__(self, asked: Asked | None = None) -> None:
        self.stated = (asked or Asked()).false_alarms
        self.n_images = self.n_unknown = 0
        self.n_held_out: int | None = None

    def add(self, batch: Predictions) -> None:
        """Count the images of a batch."""
        self.n_images += len(batch.rows)
        self.n_unknown += sum(judgement.unknown for judgement in batch.judgements or ())
        self.n_held_out = None if batch.reliability is None else batch.reliability.n

    @property
    def chance(self) -> float | None:
        """Probability of as many unknown ones, if all images are like the training images.

        None if the classifier cannot tell unknown images.
        """
        if self.n_held_out is None:
            return None
        return chance_of_as_many(self.n_unknown, self.n_images, self.n_held_out, self.stated)

    @property
    def warning(self) -> str | None:
        """What to expect of images that differ from the training images; None: they may not."""
        if self.chance is None or self.chance >= SMALL_CHANCE:
            return None
        share = 100 * self.n_unknown / self.n_images
        return (
            f"{self.n_unknown:,} of {self.n_images:,} images are unknown ({share:.0f}%). Of "
            f"images like the training images, {100 * self.stated:g}% would be. Expect more wrong "
            "classes than the run measured on its test images, also among those that are not "
            "called unknown."
        )

    def record(self) -> dict[str, Any] | None:
        """Return it as plain JSON values; None if the classifier cannot tell unknown images."""
        if self.chance is None:
            return None
        counts = {"n_images": self.n_images, "n_unknown": self.n_unknown}
        return {**counts, "stated": self.stated, "chance": self.chance, "warning": self.warning}


def predict(
    run: Path,
    given: Iterable[ImageSource],
    *,
    device: str = "auto",
    asked: Asked | None = None,
    on_progress: OnProgress = ignore,
) -> Iterator[Predictions]:
    """Classify images and all images below folders; yield predictions batch by batch.

    `given` may be an endless stream: no more than one batch of it is held in memory.

    Parameters
    ----------
    run
        A run folder, or the classifier folder in it.
    given
        Files, folders and images in memory, see `decoding.read_image`.
    asked
        Which images are called unknown, and the coverage of prediction sets. None: the default,
        and no judgement if the classifier has no reliability.

    Raises
    ------
    StorageError
        If there is no readable classifier.
    DataError
        If `given` holds no image, or an image in memory cannot be used.
    TransferError
        If something is asked that the classifier's reliability cannot answer, or it has none.
    """
    classifier = load_classifier(run, make_device(device))
    judge = make_judge(classifier, asked)
    precision = predict_precision(classifier.device)
    done = 0
    images = list_images(given)
    while chunk := list(islice(images, CHUNK)):
        predictions = _predict_chunk(classifier, chunk, precision, judge)
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


def not_calibrated(classifier: ImageClassifier) -> str | None:
    """Return why a classifier has no reliability, as a sentence; None: it has."""
    if classifier.reliability is not None:
        return None
    return (
        "This classifier cannot tell unknown images, and has no prediction sets: "
        f"{classifier.not_calibrated or _NO_REASON}"
    )


Judge = Callable[[Outputs], list[Judgement]]


def make_judge(classifier: ImageClassifier, asked: Asked | None) -> Judge | None:
    """Return what judges outputs of a classifier; None if it has no reliability.

    Raises
    ------
    TransferError
        As `predict`.
    """
    reliability = classifier.reliability
    if reliability is None:
        if asked is None:
            return None
        raise TransferError(not_calibrated(classifier))
    asked = asked or Asked()
    threshold, coverage = reliability.threshold(asked.false_alarms), asked.coverage
    if coverage is not None:
        check_coverage(coverage)

    def judged(outputs: Outputs) -> list[Judgement]:
        assert outputs.unknown is not None
        scores = outputs.unknown.tolist()
        if coverage is None:
            return [Judgement(score > threshold, score) for score in scores]
        inside = reliability.prediction_sets(outputs.probabilities, coverage)
        ranks = np.argsort(-outputs.probabilities, axis=1, kind="stable")
        names = [
            tuple(classifier.classes[c] for c in row if has[c])
            for row, has in zip(ranks, inside, strict=True)
        ]
        return [Judgement(s > threshold, s, n) for s, n in zip(scores, names, strict=True)]

    return judged


def _predict_chunk(
    classifier: ImageClassifier,
    chunk: Sequence[_Named],
    precision: torch.dtype,
    judge: Judge | None,
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

    found: list[Ranked] = []
    judgements: list[Judgement] = []
    for outputs in classifier.output_batches(batches(), precision):
        found += [ranked(classifier.classes, row) for row in outputs.probabilities]
        judgements += judge(outputs) if judge else []
    rows = tuple(zip(readable, found, strict=True))
    judged = tuple(judgements) if judge else None
    reason = not_calibrated(classifier)
    return Predictions(rows, tuple(skipped), judged, classifier.reliability, reason)


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
