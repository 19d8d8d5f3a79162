"""Distributions (normal, Student's, two of counts) and ranks: what is used of ``scipy.stats``.

Methods, arguments and results are those of scipy. Importing ``scipy.stats`` takes a third of the
time of importing torch: it defines more than a hundred distributions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaln, ndtr, ndtri, stdtrit

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Normal:
    """The standard normal distribution."""

    def ppf(self, share: float | Values) -> Any:
        """Return the quantile: the value below which this share of the distribution lies.

        A number for a number, an array for an array.
        """
        return ndtri(share)

    def sf(self, value: float | Values) -> Any:
        """Return the probability of a larger value: a number or an array, as `value` is."""
        return ndtr(-np.asarray(value))


@dataclass(frozen=True)
class StudentT:
    """Student's t distribution."""

    def ppf(self, share: float, freedom: float) -> float:
        """Return the quantile for a number of degrees of freedom."""
        return float(stdtrit(freedom, share))


@dataclass(frozen=True)
class Binomial:
    """The binomial distribution."""

    def sf(self, k: int, n: int, p: float) -> float:
        """Return the probability of more than `k` of `n` successes of probability `p`."""
        if k < 0:
            return 1.0
        return 0.0 if k >= n else float(betainc(k + 1, n - k, p))


@dataclass(frozen=True)
class BetaBinomial:
    """The binomial distribution whose probability of success has a beta distribution."""

    def sf(self, k: int, n: int, a: float, b: float) -> float:
        """Return the probability of more than `k` of `n` successes."""
        counts = np.arange(k + 1, n + 1)
        ways = -np.log(n + 1) - betaln(n - counts + 1, counts + 1)  # logarithm of n over counts
        return float(np.exp(ways + betaln(counts + a, n - counts + b) - betaln(a, b)).sum())


norm, student_t, binom, betabinom = Normal(), StudentT(), Binomial(), BetaBinomial()


def rankdata(values: NDArray[np.floating]) -> Values:
    """Return the ranks from 1; equal values share the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Values = (last - (counts - 1) / 2)[group]
    return ranks
