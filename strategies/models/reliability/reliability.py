"""Reliability of a classifier: threshold of the unknown score, prediction sets, their files."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load as arrays_of
from safetensors.numpy import save as bytes_of

from strategies.core.atomic_files import atomic_file
from strategies.core.errors import StorageError, TransferError
from strategies.core.metrics import Scores
from strategies.models.reliability.conformal import (
    Sorted,
    classes_in_sets,
    fewest_images,
    upper_quantile,
)
from strategies.models.reliability.graph import UnknownScore

RELIABILITY, RELIABILITY_FILE = "reliability", "reliability.safetensors"
"""Key in the record of a classifier, and the file beside it."""
FALSE_ALARMS, COVERAGE = 0.05, 0.9
"""Share of images like the training images that are called unknown, and coverage of prediction
sets, where nothing else is asked for."""
ENOUGH_IMAGES = 100
"""With fewer held-out images, the coverage of the sets of one classifier varies by more than 3
points (its standard deviation at 90% is that of a beta distribution, 3.0 points with 100)."""
_RATES, _COVERAGES = (0.01, 0.02, 0.05, 0.1, 0.2), (0.8, 0.9, 0.95, 0.99)
_KNOWN, _NONCONFORMITY = "held_out_unknown", "held_out_nonconformity"
HeldOut = Literal["validation", "folds"]


@dataclass(frozen=True)
class Depths:
    """Depths whose mean-pooled activations the unknown score reads.

    Attributes
    ----------
    numbers
        Counted from 1, ascending.
    widths
        Number of features of each.
    """

    numbers: tuple[int, ...]
    widths: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Reliability:
    """What a classifier knows about its own predictions, measured on images that it did not learn.

    Attributes
    ----------
    tensors
        Buffers of the `UnknownScore`.
    depths
        Depths that it reads.
    unknown
        Unknown scores of the held-out images, ascending, (n,). Every threshold is one of these.
    nonconformity
        One minus the probability of their true class, ascending, (n,).
    held_out
        Where these images come from. "validation": validation images, predicted by the classifier
        itself, which was not fitted to them. "folds": images that it was fitted to, each predicted
        by a classifier that was fitted without its fold.
    """

    tensors: Mapping[str, NDArray[np.float32]]
    depths: Depths
    unknown: Sorted
    nonconformity: Sorted
    held_out: HeldOut

    @property
    def n(self) -> int:
        """Number of held-out images."""
        return len(self.unknown)

    @property
    def promises_sets(self) -> bool:
        """Whether there are enough held-out images for the coverage to be relied on."""
        return self.n >= ENOUGH_IMAGES

    def module(self) -> UnknownScore:
        """Return the unknown score as a network module on the CPU, in evaluation mode."""
        tensors = {name: torch.from_numpy(np.array(x)) for name, x in self.tensors.items()}
        return UnknownScore(tensors, self.depths.widths).eval()

    def threshold(self, false_alarms: float = FALSE_ALARMS) -> float:
        """Return the score above which an image is unknown.

        Parameters
        ----------
        false_alarms
            Probability that an image like the training images is called unknown, above 0 and
            below 1. It holds on average over such images, see `conformal.upper_quantile`.

        Raises
        ------
        TransferError
            If it is out of range, or needs more held-out images than there are.
        """
        if not 0 < false_alarms < 1:
            raise TransferError(
                f"The rate of false alarms must be above 0 and below 1, got {false_alarms:g}."
            )
        found = upper_quantile(self.unknown, false_alarms)
        if math.isinf(found):
            raise TransferError(
                f"A rate of false alarms of {false_alarms:g} needs at least "
                f"{fewest_images(false_alarms)} held-out images, and there were {self.n}. Give a "
                f"rate of at least {math.ceil(1000 / (self.n + 1)) / 1000:g}, or more images to "
                "the run."
            )
        return found

    def prediction_sets(
        self, probabilities: Scores, coverage: float = COVERAGE
    ) -> NDArray[np.bool_]:
        """Return which classes are in the prediction set of every image, (n, classes).

        With too few held-out images for a coverage, a set holds all classes. See
        `conformal.classes_in_sets` for what is guaranteed.

        Raises
        ------
        TransferError
            If the coverage is not above 0 and below 1.
        """
        check_coverage(coverage)
        return classes_in_sets(probabilities, self.nonconformity, coverage)

    def record(self) -> dict[str, Any]:
        """Return thresholds and rates as plain JSON values, for the metadata of an export.

        A threshold of None needs more held-out images than there are.
        """
        quantiles = {c: upper_quantile(self.nonconformity, 1 - c) for c in _COVERAGES}
        thresholds = {rate: upper_quantile(self.unknown, rate) for rate in _RATES}
        return {
            "held_out": self.held_out,
            "n_held_out": self.n,
            "unknown": {
                "method": "Mahalanobis distance, relative Mahalanobis distance, whitened cosine",
                "unknown_if": "unknown_score > threshold",
                "false_alarms": FALSE_ALARMS,
                "threshold": _finite(thresholds[FALSE_ALARMS]),
                "thresholds": {f"{rate:g}": _finite(x) for rate, x in thresholds.items()},
            },
            "prediction_sets": {
                "method": "split-conformal, least ambiguous sets (LAC)",
                "in_set_if": "1 - probability <= quantile, or the most probable class",
                "coverage": COVERAGE,
                "quantile": _finite(quantiles[COVERAGE]),
                "quantiles": {f"{c:g}": _finite(x) for c, x in quantiles.items()},
                "promised": self.promises_sets,
            },
        }

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the file of tensors to a folder; return what the classifier's record must hold."""
        arrays = {**self.tensors, _KNOWN: self.unknown, _NONCONFORMITY: self.nonconformity}
        content = bytes_of({name: np.ascontiguousarray(x) for name, x in arrays.items()})
        with atomic_file(folder / RELIABILITY_FILE) as file:
            file.write(content)
        digest = hashlib.sha256(content).hexdigest()
        return {"sha256": digest, "depths": asdict(self.depths), **self.record()}

    @classmethod
    def load(cls, folder: Path, record: Mapping[str, Any]) -> Self:
        """Read the file that `save` wrote.

        Raises
        ------
        StorageError
            If it is missing, or differs from the one that was recorded.
        """
        path = folder / RELIABILITY_FILE
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StorageError(
                f"{path} cannot be read: {error.strerror or error}. Copy the whole folder of the "
                "classifier."
            ) from error
        if hashlib.sha256(content).hexdigest() != record["sha256"]:
            raise StorageError(
                f"The SHA-256 of {path} differs from the one of the classifier's record. Copy the "
                "whole folder of the classifier again."
            )
        arrays = arrays_of(content)
        unknown, nonconformity = arrays.pop(_KNOWN), arrays.pop(_NONCONFORMITY)
        found = record["depths"]
        depths = Depths(tuple(found["numbers"]), tuple(found["widths"]))
        return cls(arrays, depths, unknown, nonconformity, record["held_out"])


def check_coverage(coverage: float) -> None:
    """Refuse a coverage that is no share.

    Raises
    ------
    TransferError
        If it is not above 0 and below 1.
    """
    if not 0 < coverage < 1:
        raise TransferError(f"The coverage must be above 0 and below 1, got {coverage:g}.")


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
