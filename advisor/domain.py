"""How far the pictures are from ImageNet, as the pretrained network sees them: pure numerics."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from advisor.types import DomainSimilarity
from strategies.core.features import Moments
from strategies.core.metrics import LEVEL, Interval, Labels

Vector = NDArray[np.float64]

SAME_NATS, FAR_NATS = 0.03, 0.5
"""Shifts that score 1 and 0; between them the score is linear in the logarithm."""
DRAWS = 200
_MIN_VARIANCE = 1e-6


def bn_shift(mean: Vector, square: Vector, mean_variance: Vector) -> Vector:
    """Divergence of channels' activations from those their BatchNorm was trained with.

    ``KL(N(m, v) || N(0, 1))`` in nats for activations in units of the running statistics: 0 when
    they look like the pretraining data, unbounded above. Comparable between tasks on one backbone
    and input size, not between backbones.

    Parameters
    ----------
    mean, square
        First and second moments of z by channel, any one shape.
    mean_variance
        Variance of the estimate `mean` (between pictures, over n), which is removed from its
        square: without this, few pictures look far.
    """
    squared_mean = np.maximum(mean**2 - mean_variance, 0.0)
    variance = np.maximum(square - squared_mean, _MIN_VARIANCE)
    return 0.5 * (square - 1 - np.log(variance))


def similarity(
    moments: Moments,
    labels: Labels,
    depth_shares: Sequence[float],
    landmarks: Sequence[tuple[str, float]],
    seed: int,
) -> DomainSimilarity:
    """Score how near a task is to ImageNet, with a bootstrap interval over its pictures.

    Classes weigh the same, however many pictures they have.

    Parameters
    ----------
    moments
        What reached every BatchNorm layer, from `extract_features`.
    labels
        Class of every picture, (n,).
    depth_shares
        Position of the depths in the body, ascending, the last one 1.
    landmarks
        (name, shift in nats) of sets measured before, in any order.
    """
    rng = np.random.default_rng(seed)
    shifts = [_layer_shifts(moments, labels, np.arange(len(labels)))]
    for _ in range(DRAWS):
        shifts.append(_layer_shifts(moments, labels, _resample(labels, rng)))
    by_layer = np.array(shifts)
    total = by_layer.mean(axis=1)
    mid = float(total[0])
    spread = total[1:] - total[1:].mean()
    low, high = np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    shift = Interval(max(0.0, mid + float(low)), mid, mid + float(high))
    depth_of_layer = np.searchsorted(depth_shares, moments.layer_share)
    by_depth = tuple(
        float(by_layer[0][depth_of_layer == d].mean()) if (depth_of_layer == d).any() else mid
        for d in range(len(depth_shares))
    )
    nearer = [(v, name) for name, v in landmarks if v <= mid]
    farther = [(v, name) for name, v in landmarks if v > mid]
    between = (max(nearer)[1] if nearer else None, min(farther)[1] if farther else None)
    score = Interval(
        score_of_shift(shift.high), score_of_shift(shift.mid), score_of_shift(shift.low)
    )
    return DomainSimilarity(score, shift, by_depth, between)


def score_of_shift(nats: float) -> float:
    """Map a shift to a similarity in [0, 1]."""
    position = np.log(max(nats, 1e-9) / SAME_NATS) / np.log(FAR_NATS / SAME_NATS)
    return float(np.clip(1 - position, 0, 1))


def _resample(labels: Labels, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw a bootstrap sample within every class."""
    parts = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    return np.concatenate([rng.choice(rows, len(rows)) for rows in parts])


def _layer_shifts(moments: Moments, labels: Labels, rows: NDArray[np.int64]) -> Vector:
    """Mean shift of every BatchNorm layer over some rows, classes weighing the same."""
    counts = np.bincount(labels[rows])
    weights = 1 / counts[labels[rows]]
    weights /= weights.sum()
    mean = weights @ moments.mean[rows]
    square = weights @ moments.square[rows]
    centred = (moments.mean[rows] - mean) ** 2
    effective = 1 / np.square(weights).sum()
    variance = (weights @ centred) * effective / max(effective - 1, 1) / effective
    shift = bn_shift(mean, square, variance)
    return np.bincount(moments.layer, shift) / np.bincount(moments.layer)
