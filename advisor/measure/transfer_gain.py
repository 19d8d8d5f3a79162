"""What pretraining brought: the chosen classifier against a control without pretrained weights."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from advisor.measure.paired import paired_gain
from advisor.types.outcome import ClassGain, TransferGain, TransferVerdict
from strategies.core.metrics import Interval, Labels

NARROW = 0.05
"""An interval around zero whose arms are no longer than this says that pretraining brings nothing;
a wider one says nothing."""
CHANCE = 0.05
"""A control that is as good as this by chance this often was not shown to have learnt anything."""
FALSE_DISCOVERIES = 0.05
"""Share of the classes named as gaining or losing that may be named by chance."""


def transfer_gain(
    hits: NDArray[np.bool_],
    control_hits: NDArray[np.bool_],
    labels: Labels,
    classes: Sequence[str],
    control: str,
) -> TransferGain:
    """Compare two classifiers on the same images.

    Parameters
    ----------
    hits, control_hits
        Which images the classifier and its control name rightly, shape (n,) each.
    labels
        Class numbers of the images, shape (n,).
    control
        What the control is, for people.

    Raises
    ------
    ValueError
        If the shapes differ or there are no images.
    """
    if not len(hits) or not hits.shape == control_hits.shape == labels.shape:
        shapes = (hits.shape, control_hits.shape, labels.shape)
        raise ValueError(f"hits, control hits and labels must be of one length > 0, got {shapes}")
    gain = paired_gain(hits, control_hits)
    said = verdict(gain, learnt=_learnt(control_hits, labels))
    told = () if said == "untold" else _per_class(hits, control_hits, labels, classes)
    return TransferGain(control, gain, said, len(hits), told)


def verdict(gain: Interval, *, learnt: bool) -> TransferVerdict:
    """Say in a word what an interval of the gain allows to say, if the control learnt anything."""
    if gain.high < 0:
        return "negative"
    if not learnt:
        return "untold"
    if gain.low > 0:
        return "positive"
    return "none" if max(-gain.low, gain.high) <= NARROW else "unclear"


def _learnt(control_hits: NDArray[np.bool_], labels: Labels) -> bool:
    """Whether a control is better than always naming the commonest class, beyond chance."""
    n_hits, n = int(control_hits.sum()), len(labels)
    commonest = np.bincount(labels).max() / n
    return bool(binomtest(n_hits, n, commonest, "greater").pvalue < CHANCE)


def _per_class(
    hits: NDArray[np.bool_],
    control_hits: NDArray[np.bool_],
    labels: Labels,
    classes: Sequence[str],
) -> tuple[ClassGain, ...]:
    """Return the gain of every class that has images, and whether it is more than chance.

    McNemar's exact test within each class, with the false discovery rate held over all of them.
    """
    rows = [(c, labels == c) for c in range(len(classes)) if np.any(labels == c)]
    p_values = np.array([_mcnemar(hits[at], control_hits[at]) for _, at in rows])
    sure = _discoveries(p_values)
    return tuple(
        ClassGain(classes[c], int(at.sum()), paired_gain(hits[at], control_hits[at]), bool(found))
        for (c, at), found in zip(rows, sure, strict=True)
    )


def _mcnemar(hits: NDArray[np.bool_], control_hits: NDArray[np.bool_]) -> float:
    """Return the two-sided exact p-value of equal accuracies.

    References
    ----------
    Q. McNemar, Note on the sampling error of the difference between correlated proportions or
    percentages, 1947.
    """
    gained, lost = int(np.sum(hits & ~control_hits)), int(np.sum(~hits & control_hits))
    return 1.0 if gained + lost == 0 else float(binomtest(gained, gained + lost).pvalue)


def _discoveries(p_values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which tests stand when at most `FALSE_DISCOVERIES` of those that stand are chance.

    References
    ----------
    Y. Benjamini, Y. Hochberg, Controlling the false discovery rate, 1995.
    """
    order = np.argsort(p_values)
    bars = FALSE_DISCOVERIES * np.arange(1, len(p_values) + 1) / len(p_values)
    below = np.flatnonzero(p_values[order] <= bars)
    stands = np.zeros(len(p_values), dtype=np.bool_)
    if len(below):
        stands[order[: below[-1] + 1]] = True
    return stands
