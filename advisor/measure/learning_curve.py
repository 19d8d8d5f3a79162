"""Learning curve of the linear probe: measured on subsamples, extrapolated by a power law."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri

from advisor.types.profile import LearningCurve
from strategies.core.folds import fold_numbers
from strategies.core.metrics import LEVEL, Interval, Labels, Scores, proportion
from strategies.heads.cross_validation import STRENGTHS, fit_head

PARTS = 8
"""The images are split into this many parts; subsamples are 1, 2 and 4 of them."""
FIRST_PARTS = (0, 4)
"""First part of every subsample: two subsamples of each size are drawn."""
SLOPE, SLOPE_SD = 0.3, 0.2
"""Mean and standard deviation of the prior of the exponent of the error's power law."""
CURVATURE_SD = 0.15
"""Standard deviation of the log error's deviation from the power law, per doubling of the size."""
EXTRAPOLATED = (2, 4)
"""The curve is extrapolated to these multiples of the number of images."""


Point = tuple[float, Interval]
"""Number of images per class, and the accuracy after training on as many."""


def learning_curve(
    features: Scores,
    labels: Labels,
    n_classes: int,
    *,
    last: Point,
    strength: float,
    groups: NDArray[np.int64],
    seed: int,
    device: torch.device | None = None,
) -> LearningCurve:
    """Measure the probe on 1/8, 1/4 and 1/2 of the images, and extrapolate to 4 times as many.

    At each size, the probe is fitted to two subsamples and evaluated on all other images. A
    subsample without images of some class is skipped.

    Parameters
    ----------
    last
        Cross-validated accuracy on all images.
    strength
        Best L2 strength on all images. It is increased in inverse proportion to the size of a
        subsample, which keeps the weight of each image's loss the same.
    groups
        Group number of every image, (n,); a group is not split.
    """
    part = fold_numbers(labels, seed, PARTS, groups)
    points = []
    for n_parts in (1, 2, 4):
        point = _measure(
            features, labels, n_classes, part, n_parts, strength * PARTS / n_parts, device
        )
        if point is not None and point[0] < last[0]:
            points.append(point)
    points.append(last)
    sizes = [factor * last[0] for factor in EXTRAPOLATED]
    return LearningCurve(tuple(points), tuple((n, extrapolate(points, n)) for n in sizes))


def _measure(
    features: Scores,
    labels: Labels,
    n_classes: int,
    part: NDArray[np.int64],
    n_parts: int,
    strength: float,
    device: torch.device | None,
) -> Point | None:
    """Fit the probe to subsamples of `n_parts` parts; None if all of them lack a class."""
    accuracies, sizes = [], []
    for first in FIRST_PARTS:
        train = (part - first) % PARTS < n_parts
        if train.all() or len(np.unique(labels[train])) < len(np.unique(labels)):
            continue
        used = float(np.clip(strength, STRENGTHS[-1], STRENGTHS[0]))
        head = fit_head(features[train], labels[train], n_classes, used, device=device)
        predicted = head.scores(features[~train]).argmax(axis=1)
        accuracies.append(float(np.mean(predicted == labels[~train])))
        sizes.append((int(train.sum()), int((~train).sum())))
    if not accuracies:
        return None
    p = float(np.mean(accuracies))
    n_train, n_test = np.mean(sizes, axis=0)
    # The subsamples are evaluated on mostly the same images. Averaging therefore reduces the
    # variance between subsamples, but not the sampling variance of the evaluation images.
    variance = max(p * (1 - p), 1e-4) / n_test + float(np.var(accuracies)) / len(accuracies)
    n_effective = max(p * (1 - p), 1e-4) / variance
    return float(n_train) / len(np.unique(labels)), proportion(p, n_effective)


def _fit(points: Sequence[Point]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit log error = level - slope * log n, with a prior on the slope.

    Returns
    -------
    Posterior mean and covariance of (level at the last point, minus slope).
    """
    x = np.log([n / points[-1][0] for n, _ in points])
    z = ndtri(0.5 + LEVEL / 2)
    errors = np.array([[1 - a.high, 1 - a.mid, 1 - a.low] for _, a in points])
    low, mid, high = np.log(np.maximum(errors, 1e-4)).T
    sd = np.maximum((high - np.maximum(low, mid - 3)) / (2 * z), 0.02)
    sd = np.hypot(sd, CURVATURE_SD * np.abs(x) / np.log(2))
    design = np.column_stack([np.ones_like(x), x]) / sd[:, None]
    precision = design.T @ design + np.diag([0.0, SLOPE_SD**-2])
    covariance = np.linalg.inv(precision)
    mean = covariance @ (design.T @ (mid / sd) + np.array([0.0, -SLOPE * SLOPE_SD**-2]))
    return mean, covariance


def extrapolate(points: Sequence[Point], n_per_class: float) -> Interval:
    """Extrapolate points: never below the last point or above 1, wider the larger n is."""
    mean, covariance = _fit(points)
    x = float(np.log(n_per_class / points[-1][0]))
    row = np.array([1.0, x])
    centre = mean[0] + min(float(mean[1]), 0.0) * x
    sd = float(np.sqrt(row @ covariance @ row + (CURVATURE_SD * x / np.log(2)) ** 2))
    z = float(ndtri(0.5 + LEVEL / 2))
    last = points[-1][1].mid
    low, mid, high = (1 - min(float(np.exp(centre + k * sd)), 1.0) for k in (z, 0, -z))
    mid = max(mid, last)
    return Interval(min(low, mid), mid, max(high, mid))
