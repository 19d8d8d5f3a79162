"""BatchNorm shift: distance of activation moments from those of the pretraining data.

The estimate is debiased, so that it does not grow when there are fewer images. Its standard error
comes from a bootstrap. Classes have nearly equal weights, however many images they have.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from strategies.core.metrics import LEVEL, Interval, Labels
from strategies.models.domain_shift import VARIANCE_OFFSET, Vector, bn_shift, by_layer
from strategies.models.moments import Moments

DRAWS = 200
"""Number of bootstrap draws of an interval."""
_BLOCK = 50
"""Draws that are made at once: more need not fit in memory."""


@dataclass(frozen=True)
class SourceMoments:
    """Moments of every channel on the pretraining data, in units of the running statistics.

    The running statistics themselves have mean 0 and variance 1. Evaluation images (centre crop,
    another input size) differ from that a little, even those of the pretraining data.
    """

    mean: Vector
    variance: Vector


@dataclass(frozen=True)
class Weights:
    """Weights and strata of the images, for weighted means and their bootstrap.

    Attributes
    ----------
    share
        Weight of every image; they sum to 1.
    stratum
        Number of the stratum of every image: its class, but classes with a single image are
        merged, because the variance of one image cannot be estimated.
    """

    share: Vector
    stratum: NDArray[np.int64]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of images of every stratum."""
        return np.bincount(self.stratum)


def balanced(labels: Labels) -> Weights:
    """Return weights that are nearly equal for all classes: size / (size + 1) for each class.

    These weights have the least variance if the variance between classes is about that between
    images of one class. With strictly equal weights, the random error of a class with a single
    image would enter the result in full.

    References
    ----------
    R. DerSimonian and N. Laird, Meta-analysis in clinical trials, 1986 (weights of random
    effects). On merged ("collapsed") strata: W. G. Cochran, Sampling techniques, 1977, 5A.12.
    """
    _, label = np.unique(labels, return_inverse=True)
    counts = np.bincount(label)
    single = counts[label] == 1
    if single.sum() == 1 and len(counts) > 1:
        single |= label == np.argmin(np.where(counts == 1, len(label) + 1, counts))
    merged = np.where(single, len(counts), label)
    _, stratum = np.unique(merged, return_inverse=True)
    share = 1 / (counts + 1)[label]
    return Weights(share / share.sum(), stratum)


def shift_intervals(
    moments: Moments,
    labels: Labels,
    source: SourceMoments | None,
    n_depths: int,
    rng: np.random.Generator,
) -> tuple[Interval, tuple[Interval | None, ...]]:
    """Estimate the mean BatchNorm shift in nats, over all layers and for every depth.

    Without a source, the shift is from the running statistics.
    """
    if source is None:
        channels = moments.mean.shape[1]
        source = SourceMoments(np.zeros(channels), np.ones(channels))
    weights = balanced(labels)
    mid = layer_shifts(moments, weights, source)
    scatter = bootstrap_layer_shifts(moments, weights, source, DRAWS, rng)
    scatter *= small_sample_factor(weights)
    per_depth: list[Interval | None] = []
    for depth in range(1, n_depths + 1):
        own = moments.layer_depth == depth
        per_depth.append(_shift_interval(mid[own], scatter[:, own]) if own.any() else None)
    return _shift_interval(mid, scatter), tuple(per_depth)


def small_sample_factor(weights: Weights) -> float:
    """Return the factor by which an interval widens because its variance is estimated.

    It is the ratio of Student's quantile to the normal one: 1 for many images, 1.05 for 20.
    """
    freedom = max(len(weights.share) - len(weights.sizes), 1)
    tail = 0.5 + LEVEL / 2
    return float(stdtrit(freedom, tail) / ndtri(tail))


def _shift_interval(mid: Vector, scatter: Vector) -> Interval:
    """Return the mean over layers with its bootstrap interval, clipped at 0."""
    value, spread = float(mid.mean()), scatter.mean(axis=1)
    low, high = np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(
        max(0.0, value + min(0.0, float(low))),
        max(0.0, value),
        max(0.0, value + max(0.0, float(high))),
    )


def layer_shifts(moments: Moments, weights: Weights, source: SourceMoments) -> Vector:
    """Return the debiased estimate of the mean shift of every BatchNorm layer, (layers,).

    The plug-in estimate is biased upwards by terms in 1/n: the variance of the mean, and half the
    squared relative error of the variance. Both are estimated from the variance between images
    and subtracted. The result can be slightly negative.
    """
    mean, square = moments.mean.astype(np.float64), moments.square.astype(np.float64)
    average = weights.share @ mean
    variance = weights.share @ square - average**2
    influence = (square - weights.share @ square) - 2 * average * (mean - average)
    softened = np.maximum(variance, 0) + VARIANCE_OFFSET
    bias = _variance_of_mean(mean, weights) / softened
    bias += _variance_of_mean(influence, weights) / (2 * softened**2)
    return by_layer(
        bn_shift(average, variance, source.mean, source.variance) - 0.5 * bias, moments.layer
    )


def bootstrap_layer_shifts(
    moments: Moments, weights: Weights, source: SourceMoments, draws: int, rng: np.random.Generator
) -> Vector:
    """Return bootstrap deviations of the plug-in estimate from its mean, (draws, layers).

    Resampled images repeat, which doubles the bias in 1/n that `layer_shifts` removes. The mean
    over the draws is subtracted, so that only the deviations remain.
    """
    mean, square = moments.mean.astype(np.float32), moments.square.astype(np.float32)
    drawn = []
    for done in range(0, draws, _BLOCK):
        shares = bootstrap_weights(weights, min(_BLOCK, draws - done), rng).astype(np.float32)
        average = shares @ mean
        variance = shares @ square - average**2
        drawn.append(
            by_layer(bn_shift(average, variance, source.mean, source.variance), moments.layer)
        )
    shifts = np.concatenate(drawn)
    scatter: Vector = shifts - shifts.mean(axis=0)
    return scatter


def bootstrap_weights(weights: Weights, draws: int, rng: np.random.Generator) -> Vector:
    """Draw weights of a smooth (Bayesian) bootstrap within every stratum, shape (draws, n).

    Dirichlet weights with parameter (size - 2) / size for every image. The variance of a weighted
    mean is then that of the unbiased estimate, also in strata of two or three images.

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
    """Return the variance of every column's weighted mean, from the variance within strata."""
    sizes = weights.sizes
    sums = np.zeros((len(sizes), values.shape[1]))
    np.add.at(sums, weights.stratum, values)
    centred = values - (sums / sizes[:, None])[weights.stratum]
    factor = (sizes / np.maximum(sizes - 1, 1))[weights.stratum]
    variance: Vector = (weights.share**2 * factor) @ centred**2
    return variance
