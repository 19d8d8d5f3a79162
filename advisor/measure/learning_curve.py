"""The probe's learning curve: measured on parts of the images, continued by a power law."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm

from advisor.types.profile import LearningCurve
from strategies.core.metrics import LEVEL, Interval, Labels, Scores, proportion
from strategies.heads.cross_validation import STRENGTHS, fit_head, fold_numbers

PARTS = 8
"""Images are dealt to this many parts; the curve learns from 1, 2 and 4 of them."""
TURNS = (0, 4)
"""The part to begin with, once for every draw of a subsample."""
SLOPE, SLOPE_SD = 0.3, 0.2
"""What is believed of the exponent of the error's power law before it is measured."""
BEND_SD = 0.15
"""Standard deviation of the log error's distance from the power law, by doubling of the size."""
FARTHER = (2, 4)


@dataclass(frozen=True)
class Point:
    """An accuracy after learning from so many images per class."""

    n_per_class: float
    accuracy: Interval


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
    """Measure the probe on an eighth, a quarter and half of the images; continue to four times.

    Each subsample is learnt from and all other images are judged, twice. A subsample that lacks
    a class is left out.

    Parameters
    ----------
    last
        What cross-validation found on all images.
    strength
        Its best L2 strength; less data need proportionally more, as one weight in the loss of
        each image stays the same.
    groups
        Images of equal numbers are kept together, (n,).
    """
    part = fold_numbers(labels, seed, PARTS, groups)
    points = []
    for n_parts in (1, 2, 4):
        point = _measure(
            features, labels, n_classes, part, n_parts, strength * PARTS / n_parts, device
        )
        if point is not None and point.n_per_class < last.n_per_class:
            points.append(point)
    points.append(last)
    return LearningCurve(
        tuple((p.n_per_class, p.accuracy) for p in points),
        tuple((f * last.n_per_class, _predict(points, f * last.n_per_class)) for f in FARTHER),
    )


def continued(curve: LearningCurve, n_per_class: float) -> Interval:
    """Return the accuracy that a measured curve promises for so many images per class."""
    return _predict([Point(*measured) for measured in curve.measured], n_per_class)


def exponent(points: list[Point]) -> tuple[float, float]:
    """Return the exponent of the error's power law and its standard deviation, see `_fit`."""
    mean, covariance = _fit(points)
    return max(-float(mean[1]), 0.0), float(np.sqrt(covariance[1, 1]))


def _measure(
    features: Scores,
    labels: Labels,
    n_classes: int,
    part: NDArray[np.int64],
    n_parts: int,
    strength: float,
    device: torch.device | None,
) -> Point | None:
    found, sizes = [], []
    for first in TURNS:
        learnt = (part - first) % PARTS < n_parts
        if learnt.all() or len(np.unique(labels[learnt])) < len(np.unique(labels)):
            continue
        used = float(np.clip(strength, STRENGTHS[-1], STRENGTHS[0]))
        head = fit_head(features[learnt], labels[learnt], n_classes, used, device=device)
        said = head.scores(features[~learnt]).argmax(axis=1)
        found.append(float(np.mean(said == labels[~learnt])))
        sizes.append((int(learnt.sum()), int((~learnt).sum())))
    if not found:
        return None
    p = float(np.mean(found))
    n_learnt, n_judged = np.mean(sizes, axis=0)
    # Draws share most of what they judge, so only their spread averages out, not the sampling.
    variance = max(p * (1 - p), 1e-4) / n_judged + float(np.var(found)) / len(found)
    n_effective = max(p * (1 - p), 1e-4) / variance
    return Point(float(n_learnt) / len(np.unique(labels)), proportion(p, n_effective))


def _fit(points: list[Point]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit log error = level - slope * log n, the slope leaning on what is usual.

    Returns
    -------
    Mean and covariance of (level at the last point, minus slope).
    """
    x = np.log([p.n_per_class / points[-1].n_per_class for p in points])
    z = norm.ppf(0.5 + LEVEL / 2)
    errors = np.array(
        [[1 - p.accuracy.high, 1 - p.accuracy.mid, 1 - p.accuracy.low] for p in points]
    )
    low, mid, high = np.log(np.maximum(errors, 1e-4)).T
    sd = np.maximum((high - np.maximum(low, mid - 3)) / (2 * z), 0.02)
    sd = np.hypot(sd, BEND_SD * np.abs(x) / np.log(2))
    design = np.column_stack([np.ones_like(x), x]) / sd[:, None]
    precision = design.T @ design + np.diag([0.0, SLOPE_SD**-2])
    covariance = np.linalg.inv(precision)
    mean = covariance @ (design.T @ (mid / sd) + np.array([0.0, -SLOPE * SLOPE_SD**-2]))
    return mean, covariance


def _predict(points: list[Point], n_per_class: float) -> Interval:
    """Continue the curve: never below the last point, never above 1, wider the farther."""
    mean, covariance = _fit(points)
    x = float(np.log(n_per_class / points[-1].n_per_class))
    row = np.array([1.0, x])
    centre = mean[0] + min(float(mean[1]), 0.0) * x
    sd = float(np.sqrt(row @ covariance @ row + (BEND_SD * x / np.log(2)) ** 2))
    z = float(norm.ppf(0.5 + LEVEL / 2))
    last = points[-1].accuracy.mid
    low, mid, high = (1 - min(float(np.exp(centre + k * sd)), 1.0) for k in (z, 0, -z))
    mid = max(mid, last)
    return Interval(min(low, mid), mid, max(high, mid))
