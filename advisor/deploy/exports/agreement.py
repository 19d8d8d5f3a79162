"""Check of an exported classifier against tl-auto predict, on given images."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from advisor.deploy.exports.judgements import JudgementAgreement, judgement_agreement
from advisor.deploy.labelled import ALL, LabelledFile, list_any
from advisor.measure.paired import paired_gain
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.run_dir.images import image_rows
from strategies.core.errors import DataError
from strategies.core.metrics import Interval, Labels, Scores
from strategies.core.progress import OnProgress, ignore
from strategies.data.decoding import Pixels, known_formats, read_bytes, read_image
from strategies.models.classifier import ImageClassifier
from strategies.models.reliability.outputs import Outputs, Predictor

MAX_CHECKED, MAX_CALIBRATION = 300, 200
MIN_AGREEMENT, MAX_DIFFERENCE = 0.995, 0.02
"""Share of images of the same class, and largest difference of a probability, of an export that
predicts what the classifier does."""
MAX_LOSS = 0.01
"""Accuracy that an export of lower precision may lose without a warning."""
_BATCH = 8
"""Images that are held at once, at full size."""


@dataclass(frozen=True)
class CheckImages:
    """Images that an export is checked on, and others that int8 is calibrated on.

    Attributes
    ----------
    about
        What the checked images are, as text: "validation images of the run".
    files
        Labels are empty where they are not known, or not those of a class.
    reason
        Why there are none, as a sentence; None if there are some.
    """

    about: str
    files: tuple[LabelledFile, ...]
    calibration: tuple[Path, ...]
    reason: str | None = None


@dataclass(frozen=True)
class Agreement:
    """How well an exported classifier agrees with the classifier itself.

    The classifier computes in float32. On processors with bfloat16, tl-auto predict rounds more.

    Attributes
    ----------
    n, about
        Number of images, and what they are.
    top_1
        Share of images for which both predict the same class.
    largest_difference
        Largest absolute difference of a probability.
    accuracy, own_accuracy, gain
        Accuracy of the export and of the classifier, and the paired difference, on the images
        with a label; None without them.
    ms_per_image
        Median time of an image in memory, one at a time, on this machine's CPU.
    n_read_otherwise
        Images whose pixels differ when Pillow alone reads them, as users of the export do:
        transparency, 16 bits, or JPEG files of more than 4 megapixels.
    judgements
        How both judge unknown images, and their prediction sets; None: the classifier has no
        reliability.
    """

    n: int
    about: str
    top_1: float
    largest_difference: float
    accuracy: float | None
    own_accuracy: float | None
    gain: Interval | None
    ms_per_image: float
    n_read_otherwise: int = 0
    judgements: JudgementAgreement | None = None

    @property
    def agrees(self) -> bool:
        """Whether the export predicts what the classifier does."""
        return self.top_1 >= MIN_AGREEMENT and self.largest_difference <= MAX_DIFFERENCE

    @property
    def loses(self) -> bool:
        """Whether the export has lost more than `MAX_LOSS` of accuracy on these images."""
        return self.gain is not None and self.gain.mid < -MAX_LOSS

    def sentences(self) -> list[str]:
        """Return the result as sentences."""
        lines = [
            f"Checked on {self.n:,} {self.about}: top-1 agreement with tl-auto predict "
            f"{100 * self.top_1:.1f}%, largest difference of a probability "
            f"{self.largest_difference:.4f}."
        ]
        if self.gain is not None and self.accuracy is not None and self.own_accuracy is not None:
            lines.append(
                f"Accuracy on them {100 * self.accuracy:.1f}%, that of tl-auto predict "
                f"{100 * self.own_accuracy:.1f}%: {self.gain.points()}."
            )
        return lines if self.judgements is None else [*lines, *self.judgements.sentences()]

    def warnings(self, precision: str) -> list[str]:
        """Return what is wrong with an export of a precision, as sentences; empty: nothing."""
        lines = []
        if not self.agrees:
            bars = f"wanted: at least {100 * MIN_AGREEMENT:.1f}%, at most {MAX_DIFFERENCE}"
            if precision == "float32":
                verdict = f"DISAGREES with tl-auto predict ({bars}). Do not use it"
            else:
                verdict = f"differs from tl-auto predict ({bars}): {precision} rounds more"
            lines.append(f"This export {verdict}.")
        if self.loses and self.gain is not None:
            lines.append(
                f"This export loses {-100 * self.gain.mid:.1f} points of accuracy, more than "
                f"{100 * MAX_LOSS:.0f}."
            )
        if self.judgements is not None:
            lines += self.judgements.warnings()
        if self.n_read_otherwise and lines:
            lines.append(
                f"Pillow alone reads {self.n_read_otherwise:,} of the images otherwise than "
                "tl-auto predict (transparency, more than 8 bits, or a large JPEG)."
            )
        return lines

    def record(self) -> dict[str, Any]:
        """Return the result as plain JSON values."""
        gain = self.gain
        return {
            "images": self.about,
            "n": self.n,
            "top_1_agreement": round(self.top_1, 6),
            "largest_difference": round(self.largest_difference, 6),
            "accuracy": self.accuracy,
            "accuracy_of_predict": self.own_accuracy,
            "accuracy_difference": None if gain is None else [gain.low, gain.mid, gain.high],
            "ms_per_image": round(self.ms_per_image, 2),
            "n_read_otherwise": self.n_read_otherwise,
            "agrees": self.agrees,
            "judgements": None if self.judgements is None else self.judgements.record(),
        }


def images_of_run(folder: RunDir) -> CheckImages:
    """Return the validation images of a finished run; its train images calibrate."""
    rows = [LabelledFile(r.path, r.label, r.split) for r in image_rows(folder)]
    found = {split: mixed(f for f in rows if f.split == split) for split in ("train", "val")}
    val = tuple(f for f in found["val"] if _is_there(f.path))[:MAX_CHECKED]
    train = tuple(f.path for f in found["train"] if _is_there(f.path))[:MAX_CALIBRATION]
    reason = None
    if not val:
        reason = "The validation images of the run are gone. Give others with --check DATA."
    return CheckImages("validation images of the run", val, train, reason)


def images_of_data(data: Path, classes: Sequence[str]) -> CheckImages:
    """Return images of a dataset: those of validation if it is split, else all.

    Raises
    ------
    DataError
        If there is no image.
    """
    listed = list_any(data)
    split = "val" if "val" in listed.splits else ALL
    files = [
        LabelledFile(f.path, f.label if f.label in classes else "", f.split)
        for f in mixed(listed.of(split))
    ]
    chosen = tuple(files[:MAX_CHECKED])
    others = mixed(listed.of("train")) if split == "val" and "train" in listed.splits else files
    calibration = tuple(f.path for f in reversed(others))[:MAX_CALIBRATION]
    return CheckImages(f"images of {data.name}", chosen, calibration)


def check(
    predict: Predictor,
    classifier: ImageClassifier,
    images: CheckImages,
    on_progress: OnProgress = ignore,
) -> Agreement:
    """Compare an exported classifier with the classifier itself on images.

    The export gets every image as its users read it: with Pillow alone, upright and as RGB, at its
    own size. Unreadable images are left out.

    Raises
    ------
    DataError
        If no image is readable.
    """
    found_rows: list[Outputs] = []
    own_rows: list[Outputs] = []
    labels: list[int] = []
    index = {name: number for number, name in enumerate(classifier.classes)}
    seconds, n_otherwise = [], 0
    for files, plain, own in _batches(images.files):
        own_rows.append(classifier.predict_outputs(own))
        labels += [index.get(file.label, -1) for file in files]
        for image, read in zip(plain, own, strict=True):
            start = time.perf_counter()
            found_rows.append(predict(image))
            seconds.append(time.perf_counter() - start)
            n_otherwise += not np.array_equal(image, np.asarray(read))
        on_progress("check of the export", len(labels), len(images.files))
    if not labels:
        raise DataError(f"None of the {images.about} is readable: the export was not checked.")
    found, expected = Outputs.joined(found_rows), Outputs.joined(own_rows)
    classes = np.array(labels)
    times_ms = 1000 * np.array(seconds)
    result = agreement(
        found.probabilities, expected.probabilities, classes, images.about, times_ms
    )
    reliability, judgements = classifier.reliability, None
    if reliability is not None:
        judgements = judgement_agreement(found, expected, classes, reliability)
    return replace(result, n_read_otherwise=n_otherwise, judgements=judgements)


def agreement(
    found: Scores, own: Scores, labels: Labels, about: str, times_ms: NDArray[np.float64]
) -> Agreement:
    """Return how well the probabilities of an export agree with the classifier's.

    Parameters
    ----------
    found, own
        Probabilities of the export and of the classifier, (n, classes) each.
    labels
        Classes of the images, (n,); -1 where they are not known.
    times_ms
        Milliseconds that the export took for every image.
    """
    known = labels >= 0
    hits, own_hits = (x.argmax(axis=1)[known] == labels[known] for x in (found, own))
    return Agreement(
        n=len(found),
        about=about,
        top_1=float(np.mean(found.argmax(axis=1) == own.argmax(axis=1))),
        largest_difference=float(np.abs(found - own).max()),
        accuracy=float(hits.mean()) if known.any() else None,
        own_accuracy=float(own_hits.mean()) if known.any() else None,
        gain=paired_gain(hits, own_hits) if known.any() else None,
        ms_per_image=float(np.median(times_ms)),
    )


def plain_pixels(path: Path) -> Pixels:
    """Read an image as users of an export do: Pillow alone, upright, RGB, at its own size.

    Raises
    ------
    OSError
        If Pillow cannot read it.
    """
    known_formats()  # makes Pillow read HEIF where pillow-heif is installed
    image = Image.open(BytesIO(read_bytes(path)))
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def _batches(
    files: Sequence[LabelledFile],
) -> Iterator[tuple[list[LabelledFile], list[Pixels], list[Image.Image]]]:
    """Yield the readable images: files, pixels as Pillow reads them, and as this program does."""
    for start in range(0, len(files), _BATCH):
        readable, plain, own = [], [], []
        for file in files[start : start + _BATCH]:
            try:
                both = plain_pixels(file.path), read_image(file.path)
            except (DataError, OSError):
                continue
            readable.append(file)
            plain.append(both[0])
            own.append(both[1])
        if readable:
            yield readable, plain, own


def mixed(files: Iterable[LabelledFile]) -> list[LabelledFile]:
    """Return files so that the classes take turns, in a random but repeatable order."""
    by_label: dict[str, list[LabelledFile]] = {}
    for file in sorted(files, key=lambda f: str(f.path)):
        by_label.setdefault(file.label, []).append(file)
    rng = np.random.default_rng(0)
    shuffled = [[group[i] for i in rng.permutation(len(group))] for group in by_label.values()]
    return [file for turn in zip_longest(*shuffled) for file in turn if file is not None]


def _is_there(path: Path) -> bool:
    """Whether a file exists; members of an archive are found when they are read."""
    return path.exists() or any(p.is_file() for p in path.parents)
