"""BatchNorm shift: how far the moments of activations are from those of pretraining.

The estimate is debiased, so that few images do not look farther than many, and its spread is
bootstrapped around it. Classes weigh nearly the same, however many images they have.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strategies.core.metrics import Labels, Scores
from strategies.models.features import Moments

Vector = NDArray[np.float64]

SOFTENING = 0.1
"""Added to all variances (1 = that of pretraining): channels that hardly vary stay bounded."""
_BLOCK = 50


@dataclass(frozen=True)
class Source:
    """Moments of every channel on the pretraining data, in units of the running statistics.

    By the running statistics themselves, mean 0 and variance 1. Images as a network is given
    them to judge (centre crop, another input size) differ from that a little.
    """

    mean: Vector
    variance: Vector


@dataclass(frozen=True)
class Weights:
    """How much every image counts (they sum to 1), and which images were drawn alike.

    Attributes
    ----------
    stratum
        Number of the stratum of every image: its class, but classes of a single image are
        joined, because one image shows no spread.
    """

    share: Vector
    stratum: NDArray[np.int64]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of images of every stratum."""
        return np.bincount(self.stratum)


def balanced(labels: Labels) -> Weights:
    """Let every class weigh nearly the same: size / (size + 1).

    These are the weights of least variance where classes differ from one another about as much
    as images of one class do. Strictly equal weights would let a class with a single image
    add its chance to the result in full.

    References
    ----------
    R. DerSimonian and N. Laird, Meta-analysis in clinical trials, 1986 (weights of random
    effects). On joined ("collapsed") strata: W. G. Cochran, Sampling techniques, 1977, 5A.12.
    """
    _, label = np.unique(labels, return_inverse=True)
    counts = np.bincount(label)
    single = counts[label] == 1
    if single.sum() == 1 and len(counts) > 1:
        single |= label == np.argmin(np.where(counts == 1, len(label) + 1, counts))
    joined = np.where(single, len(counts), label)
    _, stratum = np.unique(joined, return_inverse=True)
    share = 1 / (counts + 1)[label]
    return Weights(share / share.sum(), stratum)


def bn_shift(mean: Scores, variance: Scores, source: Source) -> Vector:
    """Divergence of channels' activations from those of the pretraining data.

    ``KL(N(mean, v + e) || N(source mean, source v + e))`` in nats with e = `SOFTENING`, for
    activations in units of the running statistics: 0 when they look like the pretraining data,
    unbounded above. Comparable between datasets on one backbone and input size.

    Parameters
    ----------
    mean, variance
        Moments by channel, shape (..., channels).
    """
    v, s = np.maximum(variance, 0) + SOFTENING, source.variance + SOFTENING
    shift: Vector = 0.5 * ((v + (mean - source.mean) ** 2) / s - 1 - np.log(v / s))
    return shift


def layer_shifts(moments: Moments, weights: Weights, source: Source) -> Vector:
    """Estimate the mean shift of every BatchNorm layer, debiased, (layers,).

    The expected value of the plain estimate exceeds the shift by terms in 1/n: the variance of
    the mean, and half the squared relative error of the variance. Both are estimated from the
    spread between images and removed. The result can be slightly negative.
    """
    mean, square = moments.mean.astype(np.float64), moments.square.astype(np.float64)
    average = weights.share @ mean
    variance = weights.share @ square - average**2
    pull = (square - weights.share @ square) - 2 * average * (mean - average)
    softened = np.maximum(variance, 0) + SOFTENING
    bias = _variance_of_mean(mean, weights) / softened
    bias += _variance_of_mean(pull, weights) / (2 * softened**2)
    return _by_layer(bn_shift(average, variance, source) - 0.5 * bias, moments.layer)


def bootstrap_layer_shifts(
    moments: Moments, weights: Weights, source: Source, draws: int, rng: np.random.Generator
) -> Vector:
    """Return how plain estimates scatter around their own mean, shape (draws, layers).

    Resampled images repeat, which doubles the bias in 1/n that `layer_shifts` removes; taking
    the draws relative to their mean leaves the scatter alone.
    """
    mean, square = moments.mean.astype(np.float32), moments.square.astype(np.float32)
    found = []
    for block in _blocks(draws):
        drawn = resampled(weights, block, rng).astype(np.float32)
        average = drawn @ mean
        variance = drawn @ square - average**2
        found.append(_by_layer(bn_shift(average, variance, source), moments.layer))
    shifts = np.concatenate(found)
    scatter: Vector = shifts - shifts.mean(axis=0)
    return scatter


def resampled(weights: Weights, draws: int, rng: np.random.Generator) -> Vector:
    """Draw weights of a smooth bootstrap within every stratum, shape (draws, n).

    Dirichlet weights with a parameter of (size - 2) / size for every image: the variance of a
    weighted mean is then that of the unbiased estimate, also in strata of two or three.

    References
    ----------
    D. B. Rubin, The Bayesian bootstrap, 1981; J. N. K. Rao and C. F. J. Wu, Resampling inference
    with complex survey data, 1988.
    """
    sizes = weights.sizes
    shape = np.maximum((sizes - 2) / sizes, 0.01)
    raw = rng.standard_gamma(np.broadcast_to(shape[weights.stratum], (draws, len(weights.share))))
    raw = (raw + np.finfo(float).tiny) * weights.share
    total = np.zeros((draws, len(sizes)))
    np.add.at(total.T, weights.stratum, raw.T)
    whole = np.bincount(weights.stratum, weights.share)
    drawn: Vector = raw * (whole / total)[:, weights.stratum]
    return drawn


def _variance_of_mean(values: Vector, weights: Weights) -> Vector:
    """Estimate the variance of the weighted mean of every column, from within the strata."""
    sizes = weights.sizes
    sums = np.zeros((len(sizes), values.shape[1]))
    np.add.at(sums, weights.stratum, values)
    centred = values - (sums / sizes[:, None])[weights.stratum]
    factor = (sizes / np.maximum(sizes - 1, 1))[weights.stratum]
    variance: Vector = (weights.share**2 * factor) @ centred**2
    return variance


def _by_layer(values: Vector, layer: NDArray[np.int64]) -> Vector:
    """Average columns of one layer; layers are numbered in order."""
    starts = np.flatnonzero(np.diff(layer, prepend=-1))
    counts = np.diff(np.append(starts, len(layer)))
    means: Vector = np.add.reduceat(values, starts, axis=-1) / counts
    return means


def _blocks(total: int) -> Iterator[int]:
    while total > 0:
        yield min(total, _BLOCK)
        total -= _BLOCK
