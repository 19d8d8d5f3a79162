"""Statistics of the data findings: label noise, two-sample test and shortcut detection."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc, logsumexp, ndtr

from strategies.core.metrics import Labels, Scores

CONFIDENT = 9.0
"""A label is suspicious if a classifier that was not trained on the image finds another class this
many times as probable."""

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class SuspectLabels:
    """Images whose labels disagree with an out-of-fold classifier.

    Attributes
    ----------
    order
        All rows, most suspicious first, (n,).
    likelier
        Most probable other class, by row, (n,).
    probability
        Its probability, by row, (n,).
    n_confident
        Number of rows where that class is more than `CONFIDENT` times as probable as the label.
        They come first in `order`.
    """

    order: Rows
    likelier: Labels
    probability: Scores
    n_confident: int


def suspect_labels(scores: Scores, labels: Labels) -> SuspectLabels:
    """Rank images by how confidently out-of-fold scores disagree with their labels.

    Parameters
    ----------
    scores
        Calibrated out-of-fold scores (logits), (n, classes): each row was scored by a classifier
        that was not trained on it.

    References
    ----------
    C. Northcutt et al., Confident learning, 2021: the margin of out-of-sample probabilities.
    """
    log_p = scores - logsumexp(scores, axis=1, keepdims=True)
    rows = np.arange(len(labels))
    own = log_p[rows, labels]
    others = log_p.copy()
    others[rows, labels] = -np.inf
    likelier = others.argmax(axis=1)
    margin = others[rows, likelier] - own
    order = np.argsort(-margin, kind="stable")
    n_confident = int(np.sum(margin > np.log(CONFIDENT)))
    return SuspectLabels(order, likelier, np.exp(others[rows, likelier]), n_confident)


@dataclass(frozen=True)
class TwoSample:
    """Result of a test whether two samples come from the same distribution.

    Attributes
    ----------
    auc
        Out-of-fold AUC of a linear classifier that separates them, in [0, 1]; 0.5 is chance.
    p_value
        Probability of an AUC at least as high if the distributions are the same.
    """

    auc: float
    p_value: float


def two_sample_test(first: Scores, second: Scores, seed: int, n_folds: int = 5) -> TwoSample:
    """Test whether a linear discriminant separates two samples of features out of fold.

    References
    ----------
    D. Lopez-Paz, M. Oquab, Revisiting classifier two-sample tests, 2017; Mann and Whitney's U.
    """
    n = min(len(first), len(second))
    if n < 2 * n_folds:
        return TwoSample(0.5, 1.0)
    x = np.concatenate([first, second]).astype(np.float64)
    side = np.repeat([0, 1], [len(first), len(second)])
    x = (x - x.mean(0)) / np.where(x.std(0) > 1e-9, x.std(0), 1.0)
    rng = np.random.default_rng(seed)
    fold = np.empty(len(x), dtype=np.int64)
    for s in (0, 1):
        rows = rng.permutation(np.flatnonzero(side == s))
        fold[rows] = np.arange(len(rows)) % n_folds
    u, variance = 0.0, 0.0
    pairs = 0
    for k in range(n_folds):
        fit, test = fold != k, fold == k
        score = x[test] @ _discriminant(x[fit], side[fit])
        n0, n1 = int(np.sum(side[test] == 0)), int(np.sum(side[test] == 1))
        own, other = score[side[test] == 1], np.sort(score[side[test] == 0])
        u += sum(np.searchsorted(other, own, end).sum() for end in ("left", "right")) / 2
        variance += n0 * n1 * (n0 + n1 + 1) / 12
        pairs += n0 * n1
    z = (u - pairs / 2) / np.sqrt(variance)
    return TwoSample(u / pairs, float(ndtr(-z)))


def _discriminant(x: NDArray[np.float64], side: Rows) -> NDArray[np.float64]:
    """Return Fisher's discriminant direction with a ridge on the covariance."""
    gap = x[side == 1].mean(0) - x[side == 0].mean(0)
    centred = np.concatenate([x[side == s] - x[side == s].mean(0) for s in (0, 1)])
    n, d = centred.shape
    ridge = max(0.1, min(1.0, d / n)) * np.square(centred).mean()
    if d <= n:
        covariance = centred.T @ centred / n + ridge * np.eye(d)
        direction: NDArray[np.float64] = np.linalg.solve(covariance, gap)
        return direction
    gram = centred @ centred.T / n + ridge * np.eye(n)
    in_sample: NDArray[np.float64] = centred.T @ np.linalg.solve(gram, centred @ gap) / n
    return np.asarray((gap - in_sample) / ridge)


@dataclass(frozen=True)
class Shortcut:
    """How well a property other than the image's content predicts the label.

    Attributes
    ----------
    accuracy, chance
        Held-out accuracy of predicting the class from the property, and of always predicting the
        largest class.
    p_value
        Probability of an accuracy at least as high by chance.
    """

    accuracy: float
    chance: float
    p_value: float


def predicts_label(values: Sequence[object], labels: Labels, seed: int) -> Shortcut:
    """Predict each image's class as the most frequent class of equal values, in two folds.

    Each half of the images, stratified by class, is predicted from the other half.
    """
    code = np.unique([str(v) for v in values], return_inverse=True)[1]
    half = np.empty(len(labels), dtype=np.int64)
    rng = np.random.default_rng(seed)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        half[rows] = (np.arange(len(rows)) + rng.integers(2)) % 2
    n_correct = 0
    n_classes = int(labels.max()) + 1
    for side in (0, 1):
        table = np.zeros((int(code.max()) + 1, n_classes))
        np.add.at(table, (code[half != side], labels[half != side]), 1)
        prior = np.bincount(labels[half != side], minlength=n_classes)
        predicted = np.where(table.sum(1) > 0, table.argmax(1), prior.argmax())
        n_correct += int(np.sum(predicted[code[half == side]] == labels[half == side]))
    n = len(labels)
    chance = float(np.bincount(labels).max() / n)
    return Shortcut(n_correct / n, chance, float(bdtrc(n_correct - 1, n, chance)))


def quantile_bins(values: Sequence[float], n_bins: int = 10) -> list[int]:
    """Return the quantile bin of every value; equal values share a bin."""
    array = np.asarray(values, dtype=np.float64)
    edges = np.unique(np.quantile(array, np.linspace(0, 1, n_bins + 1)[1:-1]))
    bins: list[int] = np.searchsorted(edges, array, side="left").tolist()
    return bins
