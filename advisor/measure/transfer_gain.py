"""Transfer gain: compare a classifier with a control without pretrained weights on test."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from advisor.measure.paired import mcnemar, paired_gain
from advisor.types.outcome import ClassGain, TransferGain, TransferVerdict
from strategies.core.distributions import binom
from strategies.core.metrics import Interval, Labels

NARROW = 0.05
"""An interval that contains 0 and reaches at most this far from it means no gain ("none"); a wider
one is inconclusive ("unclear")."""
SIGNIFICANCE = 0.05
"""Significance level of the test that the control has learnt anything."""
FALSE_DISCOVERY_RATE = 0.05
"""False discovery rate among the classes with a significant gain or loss."""


def transfer_gain(
    hits: NDArray[np.bool_],
    control_hits: NDArray[np.bool_],
    labels: Labels,
    classes: Sequence[str],
    control: str,
) -> TransferGain:
    """Compare a classifier with its control on the same images.

    Parameters
    ----------
    hits, control_hits
        Which images the classifier and its control classify correctly, shape (n,) each.
    labels
        Class indices of the images, shape (n,).
    control
        Description of the control, shown to the user.

    Raises
    ------
    ValueError
        If the shapes differ or there are no images.
    """
    if not len(hits) or not hits.shape == control_hits.shape == labels.shape:
        shapes = (hits.shape, control_hits.shape, labels.shape)
        raise ValueError(
            f"hits, control_hits and labels must have one length, at least 1; got shapes {shapes}"
        )
    gain = paired_gain(hits, control_hits)
    found = verdict(gain, control_learnt=_is_above_majority(control_hits, labels))
    per_class = () if found == "undetermined" else _per_class(hits, control_hits, labels, classes)
    return TransferGain(control, gain, found, len(hits), per_class)


def verdict(gain: Interval, *, control_learnt: bool) -> TransferVerdict:
    """Classify an interval of the gain; without a control that learnt, only as negative."""
    if gain.high < 0:
        return "negative"
    if not control_learnt:
        return "undetermined"
    if gain.low > 0:
        return "positive"
    return "none" if max(-gain.low, gain.high) <= NARROW else "unclear"


def _is_above_majority(control_hits: NDArray[np.bool_], labels: Labels) -> bool:
    """Whether a control is significantly better than always predicting the majority class."""
    n_hits, n = int(control_hits.sum()), len(labels)
    majority = np.bincount(labels).max() / n
    return bool(binom.sf(n_hits - 1, n, majority) < SIGNIFICANCE)


def _per_class(
    hits: NDArray[np.bool_],
    control_hits: NDArray[np.bool_],
    labels: Labels,
    classes: Sequence[str],
) -> tuple[ClassGain, ...]:
    """Return the gain of every class that has images, and whether it is significant.

    McNemar's exact test within each class, with the false discovery rate controlled over classes.
    """
    rows = [(c, labels == c) for c in range(len(classes)) if np.any(labels == c)]
    p_values = np.array([mcnemar(hits[at], control_hits[at]) for _, at in rows])
    significant = _benjamini_hochberg(p_values)
    return tuple(
        ClassGain(classes[c], int(at.sum()), paired_gain(hits[at], control_hits[at]), bool(s))
        for (c, at), s in zip(rows, significant, strict=True)
    )


def _benjamini_hochberg(p_values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which tests are rejected at a false discovery rate of `FALSE_DISCOVERY_RATE`.

    References
    ----------
    Y. Benjamini, Y. Hochberg, Controlling the false discovery rate, 1995.
    """
    order = np.argsort(p_values)
    thresholds = FALSE_DISCOVERY_RATE * np.arange(1, len(p_values) + 1) / len(p_values)
    below = np.flatnonzero(p_values[order] <= thresholds)
    rejected = np.zeros(len(p_values), dtype=np.bool_)
    if len(below):
        rejected[order[: below[-1] + 1]] = True
    return rejected
