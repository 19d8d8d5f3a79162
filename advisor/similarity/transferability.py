"""Transferability scores of pretrained features and predictions: LEEP, LogME, H-score."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from strategies.core.metrics import LEVEL, Interval, Labels, Scores

MAX_IMAGES, BLOCKS, ROUNDS = 400, 8, 12


def leep_terms(probabilities: Scores, labels: Labels) -> NDArray[np.float64]:
    """Return the terms of LEEP, the log expected empirical prediction, shape (n,).

    Their mean is LEEP: the mean log-likelihood in nats of the labels under the classifier that
    combines the predicted probabilities of the source classes with the empirical P(label | source
    class). At most 0, which is reached if every source class is predicted for one label only.
    Comparable between networks on one dataset, not between datasets. Optimistic with few images
    per predicted source class.

    Parameters
    ----------
    probabilities
        Predictions of the pretrained head, shape (n, source classes); rows sum to 1.
    labels
        Shape (n,).

    References
    ----------
    C. V. Nguyen et al., LEEP: a new measure to evaluate transferability of learned
    representations, ICML 2020.
    """
    _require_rows(len(probabilities), labels)
    names, label_of_row = np.unique(labels, return_inverse=True)
    joint = np.zeros((len(names), probabilities.shape[1]))
    np.add.at(joint, label_of_row, probabilities)
    conditional = joint / np.maximum(joint.sum(axis=0), np.finfo(float).tiny)
    likelihood = np.einsum("nz,nz->n", probabilities, conditional[label_of_row])
    terms: NDArray[np.float64] = np.log(likelihood)
    return terms


@dataclass(frozen=True)
class _Spectrum:
    """Centred features: left singular vectors (n, r) and squared singular values (r,)."""

    left: NDArray[np.float64]
    squares: NDArray[np.float64]
    width: int


def rate_features(features: Scores, labels: Labels, seed: int) -> Mapping[str, Interval]:
    """Return LogME and H-score, each with the interval of a jackknife over blocks of images.

    They are computed on a random sample of at most `MAX_IMAGES` images. Both are comparable
    between networks and depths on one dataset, not between datasets; higher is better.

    LogME is the log evidence of a Bayesian linear model of the labels, per image and class, in
    nats; unbounded. The regularised H-score is the between-class variance relative to the total
    variance, from 0 to the number of features.

    References
    ----------
    K. You et al., LogME: practical assessment of pre-trained models for transfer learning, ICML
    2021.
    S. Ibrahim, N. Ponomareva, R. Mazumder, Newer is not always better: rethinking transferability
    metrics, their peculiarities, stability and performance, ECML 2022.
    """
    rows = np.random.default_rng(seed).permutation(len(labels))[:MAX_IMAGES]
    x, y = np.asarray(features[rows], dtype=np.float64), labels[rows]
    shrinkage = _shrinkage(x)
    scores: dict[str, Callable[[_Spectrum, Labels], float]] = {
        "logme": _log_me,
        "h_score": lambda s, labels: _h_score(s, labels, shrinkage),
    }
    whole = _spectrum(x)
    blocks = np.arange(len(y)) * min(BLOCKS, len(y)) // len(y)
    parts = [(_spectrum(x[blocks != b]), y[blocks != b]) for b in np.unique(blocks)]
    intervals = {}
    for name, score in scores.items():
        mid = score(whole, y)
        left_out = np.array([score(part, labels) for part, labels in parts])
        k = len(parts)
        sd = float(np.sqrt((k - 1) / k * np.sum((left_out - left_out.mean()) ** 2)))
        half = float(stdtrit(k - 1, 0.5 + LEVEL / 2)) * sd
        intervals[name] = Interval(mid - half, mid, mid + half)
    return intervals


def _spectrum(features: Scores) -> _Spectrum:
    """Decompose the centred features, using the smaller of their two Gram matrices."""
    x = np.asarray(features, dtype=np.float64)
    x = x - x.mean(axis=0)
    n, width = x.shape
    squares, vectors = np.linalg.eigh(x @ x.T if n <= width else x.T @ x)
    positive = squares > 1e-12 * max(float(squares[-1]), 1e-30)
    squares, vectors = squares[positive], vectors[:, positive]
    left = vectors if n <= width else x @ vectors / np.sqrt(squares)
    return _Spectrum(left, squares, width)


def _log_me(spectrum: _Spectrum, labels: Labels) -> float:
    """Maximise the evidence over both precisions by fixed-point iteration, for all classes."""
    _require_rows(len(spectrum.left), labels)
    y = (labels[:, None] == np.unique(labels)).astype(np.float64)
    y -= y.mean(axis=0)
    n, squares = len(labels), spectrum.squares[:, None]
    along = (spectrum.left.T @ y) ** 2
    beside = np.maximum((y**2).sum(axis=0) - along.sum(axis=0), 0.0)
    alpha, beta = np.ones(y.shape[1]), np.ones(y.shape[1])
    for _ in range(ROUNDS):
        both = alpha + beta * squares
        effective = (beta * squares / both).sum(axis=0)
        length = np.maximum((beta**2 * squares * along / both**2).sum(axis=0), 1e-12)
        residual = np.maximum((along * (alpha / both) ** 2).sum(axis=0) + beside, 1e-12)
        alpha, beta = effective / length, (n - effective) / residual
    both = alpha + beta * squares
    length = (beta**2 * squares * along / both**2).sum(axis=0)
    residual = (along * (alpha / both) ** 2).sum(axis=0) + beside
    evidence = (
        len(squares) * np.log(np.maximum(alpha, np.finfo(float).tiny))  # 0 without variance
        + n * np.log(beta / (2 * np.pi))
        - np.log(both).sum(axis=0)
        - beta * residual
        - alpha * length
    ) / 2
    return float(evidence.mean() / n)


def _h_score(spectrum: _Spectrum, labels: Labels, shrinkage: float) -> float:
    _require_rows(len(spectrum.left), labels)
    n = len(labels)
    coordinates = spectrum.left * np.sqrt(spectrum.squares)
    variance = spectrum.squares / n
    total = (1 - shrinkage) * variance + shrinkage * variance.sum() / spectrum.width
    score = 0.0
    for label in np.unique(labels):
        own = labels == label
        score += own.mean() * float((coordinates[own].mean(axis=0) ** 2 / total).sum())
    return float((1 - shrinkage) * score)


def _shrinkage(features: Scores) -> float:
    """Return how far the covariance is shrunk to a multiple of the identity, from 0 to 1.

    The squared Gram matrix of the images has the same sum as that of the features, and is smaller.

    References
    ----------
    O. Ledoit, M. Wolf, A well-conditioned estimator for large-dimensional covariance matrices,
    2004.
    """
    x = np.asarray(features, dtype=np.float64)
    n, width = x.shape
    if width == 1:
        return 0.0
    x = x - x.mean(axis=0)
    squared = float(np.square(x @ x.T if n <= width else x.T @ x).sum()) / n**2
    fourth = float(np.square(np.square(x).sum(axis=1)).sum())
    mean_variance = float(np.square(x).sum()) / n / width
    noise = (fourth / n - squared) / (n * width)
    spread = squared / width - mean_variance**2
    noise = min(noise, spread)
    return 0.0 if noise == 0 else noise / spread


def _require_rows(n: int, labels: Labels) -> None:
    if n != len(labels) or n == 0:
        raise ValueError(
            f"need as many predictions or features as labels, and at least one image; got "
            f"{n} rows and {len(labels)} labels"
        )
