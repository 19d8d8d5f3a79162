"""Paired comparison of two classifiers on the same images: accuracy and log-loss."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc, ndtri

from strategies.core.metrics import LEVEL, Interval

TINY = 1e-12
"""Lower bound of a mean log-loss, so that its logarithm is finite."""


def paired_gain(hits: NDArray[np.bool_], others: NDArray[np.bool_]) -> Interval:
    """Return the difference of two accuracies on the same images, in [-1, 1], with its interval.

    The interval is a normal approximation based on the discordant pairs. The standard error is
    that of Agresti and Min: 0.5 is added to each cell of the 2x2 table, so that the width is
    positive even if the classifiers never disagree. The centre is not adjusted.

    Parameters
    ----------
    hits, others
        Which images each classifier classifies correctly, (n,) each.

    References
    ----------
    A. Agresti, Y. Min, Simple improved confidence intervals for comparing matched proportions,
    2005.
    """
    n = len(hits)
    gained, lost = np.sum(hits & ~others) + 0.5, np.sum(~hits & others) + 0.5
    gap = float(np.mean(hits) - np.mean(others))
    spread = np.sqrt(gained + lost - (gained - lost) ** 2 / (n + 2)) / (n + 2)
    half = float(spread * ndtri(0.5 + LEVEL / 2))
    return Interval(max(gap - half, -1.0), gap, min(gap + half, 1.0))


def mcnemar(hits: NDArray[np.bool_], others: NDArray[np.bool_]) -> float:
    """Return the p-value of McNemar's exact test: both classify equally many images correctly.

    Parameters
    ----------
    hits, others
        Which images each classifier classifies correctly, (n,) each.

    References
    ----------
    Q. McNemar, Note on the sampling error of the difference between correlated proportions or
    percentages, 1947.
    """
    gained, lost = int(np.sum(hits & ~others)), int(np.sum(~hits & others))
    return min(1.0, 2 * float(bdtrc(max(gained, lost) - 1, gained + lost, 0.5)))


def loss_gain(losses: NDArray[np.float64], others: NDArray[np.float64]) -> Interval:
    """Return ``log(mean(others) / mean(losses))`` of two log-losses on the same images.

    Positive if `losses` is lower. Normal approximation with the delta method. With few images, it
    is more sensitive than the accuracy difference, which only the images that exactly one
    classifier gets right affect.

    Parameters
    ----------
    losses, others
        Log-loss of every image for each classifier, (n,) each.
    """
    own, other = (max(float(x.mean()), TINY) for x in (losses, others))
    gap = math.log(other / own)
    error = np.std(others / other - losses / own, ddof=1) / math.sqrt(len(losses))
    half = float(error * ndtri(0.5 + LEVEL / 2))
    return Interval(gap - half, gap, gap + half)
