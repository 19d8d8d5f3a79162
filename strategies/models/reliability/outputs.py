"""Outputs: what one pass of a classifier says about images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strategies.data.decoding import Pixels


@dataclass(frozen=True)
class Outputs:
    """What one pass of a classifier says about images, in their order.

    Attributes
    ----------
    probabilities
        Of the classes, (n, classes), float32.
    unknown
        How unlike the training images every image is, (n,), float32; higher is more unlike. See
        `Reliability`. None if the classifier has no reliability.
    """

    probabilities: NDArray[np.float32]
    unknown: NDArray[np.float32] | None

    @staticmethod
    def of(rows: NDArray[np.float32], n_classes: int) -> "Outputs":
        """Split rows of probabilities, and of an unknown score in the last column if any."""
        return Outputs(
            rows[:, :n_classes], rows[:, n_classes] if rows.shape[1] > n_classes else None
        )

    @staticmethod
    def joined(parts: Sequence["Outputs"]) -> "Outputs":
        """Return the outputs of all images of some parts, at least one, in their order."""
        unknown = [part.unknown for part in parts if part.unknown is not None]
        probabilities = np.concatenate([part.probabilities for part in parts])
        return Outputs(probabilities, np.concatenate(unknown) if unknown else None)


Predictor = Callable[[Pixels], Outputs]
"""An upright RGB image, uint8 (h, w, 3), to the outputs of that one image."""
