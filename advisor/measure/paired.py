"""Two classifiers on the same images: how much better one is, by hits and by log-loss."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from strategies.core.metrics import LEVEL, Interval

TINY = 1e-12
"""A mean log-loss counts as this much at least."""


def paired_gain(hits: NDArray[np.bool_], others: NDArray[np.bool_]) -> Interval:
    """Difference of two accuracies on the same images, in [-1, 1], with its interval.

    A normal interval on the discordant pairs, with Agresti and Min's half pair added to each side
    so that it keeps a width where the two never disagree.

    References
    ----------
    A. Agresti, Y. Min, Simple improved confidence intervals for comparing matched proportions,
    2005.
    """
    n = len(hits)
    gained, lost = np.sum(hits & ~others) + 0.5, np.sum(~hits & others) + 0.5
    gap = float(np.mean(hits) - np.mean(others))
    spread = np.sqrt(gained + lost - (gained - lost) ** 2 / (n + 2)) / (n + 2)
    half = float(spread * norm.ppf(0.5 + LEVEL / 2))
    return Interval(max(gap - half, -1.0), gap, min(gap + half, 1.0))


def loss_gain(losses: NDArray[np.float64], others: NDArray[np.float64]) -> Interval:
    """Logarithm of the others' mean log-loss over one's own, on the same images.

    Above 0 where one's own is lower. The interval is normal, by the delta method. It tells finer
    than hits do: of a few images most are right, or wrong, with both.
    """
    own, other = (max(float(x.mean()), TINY) for x in (losses, others))
    gap = math.log(other / own)
    error = np.std(others / other - losses / own, ddof=1) / math.sqrt(len(losses))
    half = float(error * norm.ppf(0.5 + LEVEL / 2))
    return Interval(gap - half, gap, gap + half)
