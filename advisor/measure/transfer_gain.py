"""Transfer gain: compare a classifier with a control without pretrained weights on test."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc

from advisor.measure.paired import paired_gain
from advisor.types.outcome import ClassGain, TransferGain, TransferVerdict
from strategies.core.metrics import Interval, Labels

NARROW = 0.05
"""An interval that contains 0 and reaches at most this far from it means no gain ("none"); a wider
one is inconclusive ("unclear")."""
SIGNIFICANCE = 0.05
"""Significance level of the test that the control has learnt anything."""


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
    """
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
    return bool(bdtrc(n_hits - 1, n, majority) < SIGNIFICANCE)


def _per_class(
    hits: NDArray[np.bool_],
    control_hits: NDArray[np.bool_],
    labels: Labels,
    classes: Sequence[str],
) -> tuple[ClassGain, ...]:
    """Return the gain of every class that has images."""
    rows = [(name, labels == c) for c, name in enumerate(classes) if np.any(labels == c)]
    return tuple(
        ClassGain(name, int(at.sum()), paired_gain(hits[at], control_hits[at]))
        for name, at in rows
    )
