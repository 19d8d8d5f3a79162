"""Shift of BatchNorm inputs: divergence of activation moments from the running statistics."""

import numpy as np
from numpy.typing import NDArray

from strategies.core.metrics import Scores
from strategies.models.features import Moments

Vector = NDArray[np.float64]

VARIANCE_OFFSET = 0.1
"""Added to all variances (in units of the pretraining variance).

It bounds the shift of channels that hardly vary.
"""


def bn_shift(
    mean: Scores, variance: Scores, source_mean: Vector | float, source_variance: Vector | float
) -> Vector:
    """Return the divergence of every channel's activations from those of the pretraining data.

    ``KL(N(mean, v + e) || N(source mean, source v + e))`` in nats with e = `VARIANCE_OFFSET`, for
    activations in units of the running statistics. It is 0 if the moments are those of the
    pretraining data, and unbounded above. Comparable between datasets on one backbone and input
    size.

    Parameters
    ----------
    mean, variance
        Moments by channel, shape (..., channels).
    source_mean, source_variance
        Moments on the pretraining data, shape (channels,). The running statistics themselves have
        mean 0 and variance 1.
    """
    v, s = np.maximum(variance, 0) + VARIANCE_OFFSET, source_variance + VARIANCE_OFFSET
    shift: Vector = 0.5 * ((v + (mean - source_mean) ** 2) / s - 1 - np.log(v / s))
    return shift


def by_layer(values: Vector, layer: NDArray[np.int64]) -> Vector:
    """Return the mean over the columns of each layer; layers are numbered in order."""
    starts = np.flatnonzero(np.diff(layer, prepend=-1))
    counts = np.diff(np.append(starts, len(layer)))
    means: Vector = np.add.reduceat(values, starts, axis=-1) / counts
    return means


def domain_shift(moments: Moments) -> float:
    """Return the mean over layers of the shift from the running statistics, in nats.

    All images have the same weight. It is a plug-in estimate, so few images bias it upwards.
    """
    mean = moments.mean.mean(axis=0, dtype=np.float64)
    variance = moments.square.mean(axis=0, dtype=np.float64) - mean**2
    return float(by_layer(bn_shift(mean, variance, 0.0, 1.0), moments.layer).mean())
