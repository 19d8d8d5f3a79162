"""Linear heads over cached features: the whole regularisation path, all folds at once.

Every problem is convex, smooth and shares its features, so one accelerated first-order solver
serves them all. In the basis of the features' principal axes the curvature of the loss is bounded
by a *diagonal* matrix (Boehning's bound), which is the step size: no line search, no Hessian, and
the inner loop is two matrix products that hold all folds and classes together.

References
----------
D. Boehning, Multinomial logistic regression algorithm, 1992. Y. Nesterov, A method of solving a
convex programming problem with convergence rate O(1/k^2), 1983. B. O'Donoghue and E. Candes,
Adaptive restart for accelerated gradient schemes, 2015.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

from strategies.core.metrics import Interval, Labels, Scores, log_loss, proportion

Loss = Literal["softmax", "squared_hinge"]

STRENGTHS: tuple[float, ...] = tuple(float(s) for s in np.logspace(-2, -6.5, 10))
"""L2 strengths, strong to weak, for features scaled to unit mean squared length."""
MAX_STEPS, TOLERANCE = 300, 1e-3
MAX_FOLDS = 5


@dataclass(frozen=True)
class Head:
    """A linear layer on raw features: scores = features @ weight.T + bias.

    Its standardisation is folded in; the temperature is too, so that softmax(scores) are
    calibrated probabilities.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def scores(self, features: Scores) -> Scores:
        """Return the scores, (n, classes)."""
        return features @ self.weight.T + self.bias


@dataclass(frozen=True)
class CrossValidated:
    """Out-of-fold scores of every strength, shape (strengths, n, classes)."""

    scores: NDArray[np.float32]
    labels: Labels
    strengths: tuple[float, ...]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Which pictures each strength classifies correctly, (strengths, n)."""
        right: NDArray[np.bool_] = self.scores.argmax(axis=2) == self.labels
        return right

    @property
    def best(self) -> int:
        """Index of the strength with the least calibrated log-loss."""
        return int(np.argmin([temperature(s, self.labels)[1] for s in self.scores]))


@dataclass(frozen=True)
class _Basis:
    """Standardised features in their principal axes, with what undoes it."""

    coordinates: Tensor
    axes: Tensor
    mean: Tensor
    scale: Tensor


def fold_numbers(
    labels: Labels,
    seed: int,
    n_folds: int | None = None,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Deal the pictures of every class to folds at random, evenly, (n,).

    By default there are as many folds as the smallest class has pictures, but at least 2 and at
    most `MAX_FOLDS`. A class of one picture is then judged by a
    classifier that never saw it, and counts as wrong.

    Parameters
    ----------
    groups
        Pictures of equal numbers (duplicates, frames of one track) are dealt to one fold, (n,).
    """
    if groups is not None and len(np.unique(groups)) < len(groups):
        return _grouped_folds(labels, seed, n_folds, groups)
    if n_folds is None:
        n_folds = int(np.clip(np.bincount(labels)[np.unique(labels)].min(), 2, MAX_FOLDS))
    rng = np.random.default_rng(seed)
    folds = np.empty(len(labels), dtype=np.int64)
    dealt = 0
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        folds[rows] = (dealt + np.arange(len(rows))) % n_folds
        dealt += len(rows)
    return folds


def _grouped_folds(
    labels: Labels, seed: int, n_folds: int | None, groups: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Deal whole groups, large ones first, each to the fold that has least of its classes."""
    group = np.unique(groups, return_inverse=True)[1]
    counts = np.zeros((int(group.max()) + 1, int(labels.max()) + 1), dtype=np.int64)
    np.add.at(counts, (group, labels), 1)
    if n_folds is None:
        n_groups = (counts > 0).sum(axis=0)
        n_folds = int(np.clip(n_groups[n_groups > 0].min(), 2, MAX_FOLDS))
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    held = np.zeros((n_folds, counts.shape[1]), dtype=np.int64)
    fold_of = np.empty(len(counts), dtype=np.int64)
    for g in order:
        mine = counts[g] > 0
        # Even classes first, even folds where they tie.
        fold_of[g] = np.lexsort((held.sum(axis=1), held[:, mine].sum(axis=1)))[0]
        held[fold_of[g]] += counts[g]
    folds: NDArray[np.int64] = fold_of[group]
    return folds


def cross_validate(
    features: Scores,
    labels: Labels,
    n_classes: int,
    *,
    folds: NDArray[np.int64],
    loss: Loss = "softmax",
    strengths: Sequence[float] = STRENGTHS,
    device: torch.device | None = None,
) -> CrossValidated:
    """Fit the path on all but one fold, for every fold, and score the pictures left out.

    Parameters
    ----------
    features, labels
        Shapes (n, d) and (n,). The scaling of the features is unsupervised and shared by folds.
    folds
        Fold number of every picture, (n,).
    """
    basis = _principal_axes(features, device)
    fold = torch.as_tensor(folds, device=basis.coordinates.device)
    n_folds = int(folds.max()) + 1
    weights = torch.stack([(fold != k).float() for k in range(n_folds)])
    targets = torch.as_tensor(labels, device=fold.device)
    scores = np.empty((len(strengths), len(labels), n_classes), dtype=np.float32)
    path = _solve_path(basis.coordinates, targets, n_classes, weights, loss, strengths)
    for s, (w, b) in enumerate(path):
        for k in range(n_folds):
            rows = fold == k
            out = basis.coordinates[rows] @ w[:, k] + b[k]
            scores[s, folds == k] = out.cpu().numpy()
    return CrossValidated(scores, labels, tuple(strengths))


def fit_head(
    features: Scores,
    labels: Labels,
    n_classes: int,
    strength: float,
    *,
    loss: Loss = "softmax",
    temperature: float = 1.0,
    device: torch.device | None = None,
) -> Head:
    """Fit one linear head; scores are divided by `temperature`."""
    basis = _principal_axes(features, device)
    everything = torch.ones(1, len(labels), device=basis.coordinates.device)
    targets = torch.as_tensor(labels, device=everything.device)
    stronger = [s for s in STRENGTHS if s > strength]
    path = _solve_path(
        basis.coordinates, targets, n_classes, everything, loss, [*stronger, strength]
    )
    w, b = path[-1]
    weight = (basis.axes @ w[:, 0]) / basis.scale[:, None]
    bias = b[0] - basis.mean @ weight
    return Head(
        (weight.T / temperature).contiguous().cpu().numpy(), (bias / temperature).cpu().numpy()
    )


def temperature(scores: Scores, labels: Labels) -> tuple[float, float]:
    """Return the temperature that calibrates out-of-fold scores best, and its log-loss.

    References
    ----------
    C. Guo et al., On calibration of modern neural networks, ICML 2017.
    """
    found = minimize_scalar(
        lambda t: log_loss(scores / np.exp(t), labels), bounds=(-4.0, 4.0), method="bounded"
    )
    return float(np.exp(found.x)), float(found.fun)


def corrected_accuracy(
    correct: NDArray[np.bool_], seed: int, draws: int = 500, n_effective: float | None = None
) -> Interval:
    """Accuracy of "the best of these settings", without the optimism of having chosen it.

    Settings are chosen on a bootstrap sample of the pictures and judged on those outside it; the
    interval is Wilson's around the mean of these judgements.

    Parameters
    ----------
    correct
        Out-of-fold hits of every setting, shape (settings, n).

    References
    ----------
    I. Tsamardinos et al., Bootstrapping the out-of-sample predictions for efficient and accurate
    cross-validation (BBC-CV), 2018.
    """
    n = correct.shape[1]
    if len(correct) == 1:
        return proportion(float(correct.mean()), n_effective or n)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=draws)
    hits = correct.astype(np.float64)
    chosen = (counts @ hits.T).argmax(axis=1)
    outside = counts == 0
    judged = (outside * hits[chosen]).sum(axis=1) / np.maximum(outside.sum(axis=1), 1)
    return proportion(float(judged.mean()), n_effective or n)


def cheapest_within_error(hits: Sequence[NDArray[np.bool_]]) -> int:
    """Return the first of some settings, cheap to dear, within a standard error of the best.

    The error is that of the paired difference on the same pictures.

    Parameters
    ----------
    hits
        Out-of-fold hits of every setting, (n,) each.

    References
    ----------
    The one-standard-error rule of L. Breiman et al., Classification and regression trees, 1984.
    """
    best = max(hits, key=np.mean).astype(np.float64)
    for number, hit in enumerate(hits):
        gap = best - hit
        if gap.mean() <= gap.std() / np.sqrt(len(hit)):
            return number
    raise ValueError("there is nothing to choose from")


def _principal_axes(features: Scores, device: torch.device | None) -> _Basis:
    x = torch.as_tensor(np.ascontiguousarray(features, dtype=np.float32), device=device)
    mean, std = x.mean(0), x.std(0, correction=0)
    scale = torch.where(std > 1e-6 * (std.max() + 1e-12), std, torch.inf) * x.shape[1] ** 0.5
    x = (x - mean) / scale
    n, d = x.shape
    gram = (x.T @ x if d <= n else x @ x.T).double()
    values, vectors = torch.linalg.eigh(gram)
    kept = values > 1e-8 * values[-1].clamp_min(1e-30)
    values, vectors = values[kept], vectors[:, kept]
    axes = vectors.float() if d <= n else ((x.T.double() @ vectors) / values.sqrt()).float()
    return _Basis(x @ axes, axes, mean, scale)


def _solve_path(
    x: Tensor,
    labels: Tensor,
    n_classes: int,
    weights: Tensor,
    loss: Loss,
    strengths: Sequence[float],
) -> list[tuple[Tensor, Tensor]]:
    """Minimise mean loss + strength/2 * |w|^2 for every row of sample weights, strong to weak.

    Returns, for every strength, w of shape (r, problems, classes) and b of (problems, classes).
    """
    problems = len(weights)
    total = weights.sum(1).clamp_min(1)
    share = (weights / total[:, None]).T[:, :, None]
    onehot = torch.nn.functional.one_hot(labels, n_classes).to(x.dtype)[:, None, :]
    bound = 0.5 if loss == "softmax" else 2.0
    heaviest = 1 / total
    curvature = bound * (x.square().sum(0)[:, None] * heaviest)[:, :, None]
    bias_step = 1 / (bound * len(x) * heaviest)[:, None]
    w = x.new_zeros(x.shape[1], problems, n_classes)
    b = x.new_zeros(problems, n_classes)
    path = []
    for strength in strengths:
        w, b = _minimise(
            x, onehot, share, w, b, 1 / (curvature + strength), bias_step, loss, strength
        )
        path.append((w, b))
    return path


def _minimise(
    x: Tensor,
    onehot: Tensor,
    share: Tensor,
    w: Tensor,
    b: Tensor,
    step: Tensor,
    bias_step: Tensor,
    loss: Loss,
    strength: float,
) -> tuple[Tensor, Tensor]:
    """Accelerated gradient steps with adaptive restart, problem by problem."""
    r, problems, classes = w.shape
    ahead_w, ahead_b = w, b
    t = x.new_ones(problems)
    first = None
    for _ in range(MAX_STEPS):
        scores = (x @ ahead_w.reshape(r, problems * classes)).view(-1, problems, classes) + ahead_b
        slope = share * _slope(scores, onehot, loss)
        gradient = (x.T @ slope.reshape(len(x), problems * classes)).view(r, problems, classes)
        gradient = gradient + strength * ahead_w
        bias_gradient = slope.sum(0)
        next_w, next_b = ahead_w - step * gradient, ahead_b - bias_step * bias_gradient
        size = (
            (step * gradient.square()).sum() + (bias_step * bias_gradient.square()).sum()
        ).item()
        first = size if first is None else first
        if size <= TOLERANCE**2 * max(first, 1e-8):
            return next_w, next_b
        uphill = (gradient * (next_w - w)).sum((0, 2)) + (bias_gradient * (next_b - b)).sum(1) > 0
        t = torch.where(uphill, 1.0, t)
        t_next = (1 + (1 + 4 * t**2).sqrt()) / 2
        push = torch.where(uphill, 0.0, (t - 1) / t_next)[:, None]
        ahead_w, ahead_b = next_w + push * (next_w - w), next_b + push * (next_b - b)
        w, b, t = next_w, next_b, t_next
    return w, b


def _slope(scores: Tensor, onehot: Tensor, loss: Loss) -> Tensor:
    """Return the derivative of the loss by the scores."""
    if loss == "softmax":
        return scores.softmax(dim=2) - onehot
    sign = 2 * onehot - 1
    return -2 * sign * (1 - sign * scores).clamp_min(0)
