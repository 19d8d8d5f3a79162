"""Quantiles of held-out scores with a finite-sample guarantee, and conformal prediction sets.

References
----------
V. Vovk, A. Gammerman, G. Shafer, Algorithmic learning in a random world, 2005: split-conformal
prediction and its quantile.
M. Sadinle, J. Lei, L. Wasserman, Least ambiguous set-valued classifiers with bounded error
levels, JASA 2019: sets of all classes above one threshold of the probability (LAC).
V. Vovk, Conditional validity of inductive conformal predictors, ACML 2012: how much the share of
new images above a threshold varies with the held-out images.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln

from strategies.core.metrics import Labels, Scores

Sorted = NDArray[np.float32]
"""Scores of held-out images in ascending order, (n,)."""


def upper_quantile(held_out: Sorted, rate: float) -> float:
    """Return the threshold that the score of a new image exceeds with probability `rate` at most.

    It is the ceil((n + 1)(1 - rate))-th smallest of n held-out scores. If the new image is drawn
    like these, its score is above with a probability of at most `rate`, and of at least
    rate - 1 / (n + 1) without ties. Infinite if n + 1 < 1 / rate: too few images.
    """
    rank = _rank(len(held_out), rate)
    return float(held_out[rank - 1]) if rank <= len(held_out) else math.inf


def chance_of_as_many(n_above: int, n_new: int, n_held_out: int, rate: float) -> float:
    """Return the probability that so many of some new scores, or more, exceed `upper_quantile`.

    It holds for new scores that are drawn like the held-out ones, without ties. The share of such
    scores above the r-th smallest of n held-out ones has a Beta(n + 1 - r, r) distribution, so
    their number is beta-binomial. 1 if the threshold is infinite.

    Parameters
    ----------
    n_above, n_new
        New scores above the threshold, and all new ones.
    n_held_out
        Scores that the threshold was taken from.
    """
    rank = _rank(n_held_out, rate)
    if rank > n_held_out:
        return 1.0
    counts, a, b = np.arange(n_above, n_new + 1), n_held_out + 1 - rank, rank
    ways = -np.log(n_new + 1) - betaln(n_new - counts + 1, counts + 1)  # log(n_new over counts)
    return float(np.exp(ways + betaln(counts + a, n_new - counts + b) - betaln(a, b)).sum())


def _rank(n_held_out: int, rate: float) -> int:
    """Return which of the held-out scores is the threshold, counted from 1 at the smallest."""
    return math.ceil((n_held_out + 1) * (1 - rate) - 1e-9)


def fewest_images(rate: float) -> int:
    """Return the least number of held-out images with a finite `upper_quantile`."""
    return math.ceil(1 / rate - 1e-9) - 1


def nonconformity(probabilities: Scores, labels: Labels) -> NDArray[np.float32]:
    """Return one minus the probability of the true class of every image, (n,)."""
    of_class = probabilities[np.arange(len(labels)), labels]
    return (1 - of_class).astype(np.float32)


def classes_in_sets(probabilities: Scores, held_out: Sorted, coverage: float) -> NDArray[np.bool_]:
    """Return which classes are in the prediction set of every image, (n, classes).

    A set holds every class whose nonconformity is at most the quantile of the held-out images,
    and the most probable class in any case. Nothing is randomised. Without that most probable
    class, the true class of a new image is in the set with a probability of at least `coverage`
    and at most coverage + 1 / (n + 1). With it, the probability can only be higher: where the
    accuracy is above `coverage`, it is about the accuracy.
    """
    inside: NDArray[np.bool_] = 1 - probabilities <= upper_quantile(held_out, 1 - coverage)
    inside[np.arange(len(inside)), probabilities.argmax(axis=1)] = True
    return inside
