"""Fit and cross-validate linear heads on cached features, and choose among their settings.

A regularisation path is fitted for all folds at once. The optimiser is in `solver`, the assignment
of images to folds in `folds`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, ndtri

from strategies.core.metrics import LEVEL, Interval, Labels, Scores, log_loss, proportion
from strategies.heads.batches import Loss
from strategies.heads.principal_axes import principal_axes
from strategies.heads.solver import solve_path

ClassWeight = Literal["none", "balanced"]

STRENGTHS: tuple[float, ...] = tuple(float(s) for s in np.logspace(-1, -6.5, 12))
"""L2 strengths, strong to weak, for features scaled to unit mean squared length."""
FOLD_TOLERANCE = 1e-2
"""Solver tolerance for folds. It hardly changes the predictions and takes a third of the time."""
MIN_ERRORS = 2
"""Number of standard errors by which a setting must be better than the first (the default). Of a
dozen settings on few images, one is better by one standard error by chance."""


@dataclass(frozen=True)
class Head:
    """A linear head on raw features: scores = features @ weight.T + bias.

    The standardisation and the temperature are folded into both, so that softmax(scores) are
    calibrated probabilities.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def scores(self, features: Scores) -> Scores:
        """Return the scores, (n, classes)."""
        return features @ self.weight.T + self.bias


@dataclass(frozen=True)
class CrossValidated:
    """Out-of-fold results for every strength, and the scores of the best one.

    Attributes
    ----------
    scores
        With the best strength, (n, classes).
    correct
        Whether each strength classifies each image correctly, (strengths, n).
    log_losses
        Calibrated log-loss of every strength, in nats.
    sample_weight
        Weight of every image in the choice of a strength, (n,). None: equal weights.
    """

    scores: NDArray[np.float32]
    labels: Labels
    strengths: tuple[float, ...]
    correct: NDArray[np.bool_]
    log_losses: tuple[float, ...]
    sample_weight: NDArray[np.float32] | None = None

    @property
    def best(self) -> int:
        """Index of the strength with the lowest calibrated log-loss."""
        return int(np.argmin(self.log_losses))

    @property
    def log_loss(self) -> float:
        """Calibrated log-loss of the best strength, in nats."""
        return min(self.log_losses)

    @cached_property
    def losses(self) -> NDArray[np.float64]:
        """Weighted calibrated log-loss of every image with the best strength, in nats, (n,)."""
        t, _ = temperature(self.scores, self.labels, self.sample_weight)
        log_probability = log_softmax(self.scores.astype(np.float64) / t, axis=1)
        losses = -_of_true_class(log_probability, self.labels).astype(np.float64)
        return losses if self.sample_weight is None else losses * self.sample_weight


def best_of(
    scores: Iterable[NDArray[np.float32]],
    labels: Labels,
    strengths: Sequence[float],
    sample_weight: NDArray[np.float32] | None = None,
) -> CrossValidated:
    """Return the results of strengths whose scores, (n, classes) each, are given one by one.

    Only the scores of the best strength are kept.
    """
    correct: list[NDArray[np.bool_]] = []
    losses: list[float] = []
    best = np.empty((0, 0), dtype=np.float32)
    for found in scores:
        loss = _best_temperature(found, labels, sample_weight, 0.0)[1]
        if not losses or loss < min(losses):
            best = found
        correct.append(found.argmax(axis=1) == labels)
        losses.append(loss)
    return CrossValidated(
        best, labels, tuple(strengths), np.stack(correct), tuple(losses), sample_weight
    )


@dataclass(frozen=True)
class RegularisationPath:
    """Linear heads that are fitted to the same images with several L2 strengths."""

    loss: Loss = "softmax"
    strengths: Sequence[float] = STRENGTHS
    class_weight: ClassWeight = "none"
    device: torch.device | None = None


def cross_validate(
    features: Scores,
    labels: Labels,
    n_classes: int,
    *,
    folds: NDArray[np.int64],
    loss: Loss = "softmax",
    strengths: Sequence[float] = STRENGTHS,
    class_weight: ClassWeight = "none",
    device: torch.device | None = None,
) -> CrossValidated:
    """Fit the regularisation path without each fold in turn, and score the held-out images.

    Parameters
    ----------
    features, labels
        Shapes (n, d) and (n,). All folds share the scaling of the features, which is unsupervised.
    folds
        Fold number of every image, (n,).
    """
    path = RegularisationPath(loss, strengths, class_weight, device)
    held_out = range(int(folds.max()) + 1)
    scores = out_of_fold(features, labels, n_classes, path, folds=folds, held_out=held_out)
    return best_of(scores, labels, strengths, sample_weights(labels, class_weight))


def out_of_fold(
    features: Scores,
    labels: Labels,
    n_classes: int,
    path: RegularisationPath,
    *,
    folds: NDArray[np.int64],
    held_out: Sequence[int],
) -> Iterator[NDArray[np.float32]]:
    """Yield for every strength the scores of images of the `held_out` folds; 0 for others.

    The shape is (n, classes). Features, labels and folds are those of `cross_validate`.
    """
    weights = torch.as_tensor(sample_weights(labels, path.class_weight), device=path.device)
    basis = principal_axes(features, weights, n_classes=n_classes, exact=False)
    targets = torch.as_tensor(labels, device=weights.device)
    fold = torch.as_tensor(folds, device=weights.device)
    fit_weights = torch.stack([(fold != k).float() * weights for k in held_out])
    solved = solve_path(
        basis.coordinates,
        targets,
        n_classes,
        fit_weights,
        path.loss,
        path.strengths,
        FOLD_TOLERANCE,
    )
    for scores in basis.held_out_scores(solved, fold, held_out):
        yield scores.cpu().numpy()


def fit_head(
    features: Scores,
    labels: Labels,
    n_classes: int,
    strength: float,
    *,
    loss: Loss = "softmax",
    class_weight: ClassWeight = "none",
    temperature: float = 1.0,
    device: torch.device | None = None,
) -> Head:
    """Fit one linear head to all images. Its scores are divided by `temperature`."""
    weights = torch.as_tensor(sample_weights(labels, class_weight), device=device)
    basis = principal_axes(features, weights, n_classes=n_classes)
    targets = torch.as_tensor(labels, device=weights.device)
    path = [*(s for s in STRENGTHS if s > strength), strength]
    v = solve_path(basis.coordinates, targets, n_classes, weights[None], loss, path)[-1][:, 0]
    weight, bias = basis.to_raw_features(v)
    return Head((weight / temperature).cpu().numpy(), (bias / temperature).cpu().numpy())


def sample_weights(labels: Labels, class_weight: ClassWeight) -> NDArray[np.float32]:
    """Return the weight of every image, (n,), 1 on average, as scikit-learn's ``class_weight``.

    "balanced" gives all classes that occur the same total weight.
    """
    if class_weight == "none":
        return np.ones(len(labels), dtype=np.float32)
    counts = np.bincount(labels)
    weights = len(labels) / (np.count_nonzero(counts) * counts[labels])
    return weights.astype(np.float32)


def temperature(
    scores: Scores,
    labels: Labels,
    sample_weight: NDArray[np.float32] | None = None,
    *,
    spread: float = np.inf,
) -> tuple[float, float]:
    """Return the temperature with the lowest log-loss on out-of-fold scores, and that loss.

    The labels are smoothed by 1 / (n + 2) (Platt's prior), so that a few images which are all
    classified correctly do not make a classifier certain.

    Parameters
    ----------
    sample_weight
        Weight of every image, (n,). None: equal weights.
    spread
        Standard deviation of a Gaussian prior on the temperature's logarithm, with mean 0, for
        scores that are expected to be nearly calibrated. Infinite: no prior.

    References
    ----------
    C. Guo et al., On calibration of modern neural networks, ICML 2017. J. Platt, Probabilistic
    outputs for support vector machines, 1999.
    """
    n = len(labels)
    return _best_temperature(scores, labels, sample_weight, 1 / (n + 2), 1 / (2 * n * spread**2))


def _best_temperature(
    scores: Scores,
    labels: Labels,
    sample_weight: NDArray[np.float32] | None,
    smoothing: float,
    penalty: float = 0.0,
) -> tuple[float, float]:
    """Return the temperature with the lowest objective, and its log-loss.

    The objective is the log-loss with labels smoothed by `smoothing`, plus `penalty` times the
    squared logarithm of the temperature.
    """
    margin = scores.mean(axis=1) - _of_true_class(scores, labels)
    mean_margin = float(np.average(margin, weights=sample_weight))

    def objective(log_t: float) -> float:
        t = float(np.exp(log_t))
        loss = log_loss(scores / t, labels, sample_weight)
        return loss - smoothing * mean_margin / t + penalty * log_t**2

    optimum = minimize_scalar(objective, bounds=(-4.0, 4.0), method="bounded")
    t = float(np.exp(optimum.x))
    return t, log_loss(scores / t, labels, sample_weight)


def _of_true_class(scores: Scores, labels: Labels) -> Scores:
    """Return the score of every image's true class, (n,)."""
    return scores[np.arange(len(labels)), labels]


def corrected_accuracy(correct: NDArray[np.bool_], seed: int, draws: int = 500) -> Interval:
    """Return the accuracy of the best of some settings, corrected for the selection bias.

    The best setting is chosen on a bootstrap sample of the images and evaluated on the images
    outside it. The result is the mean over all draws, with Wilson's interval.

    Parameters
    ----------
    correct
        Whether each setting classifies each image correctly out of fold, shape (settings, n).

    References
    ----------
    I. Tsamardinos et al., Bootstrapping the out-of-sample predictions for efficient and accurate
    cross-validation (BBC-CV), 2018.
    """
    n = correct.shape[1]
    if len(correct) == 1:
        return proportion(float(correct.mean()), n)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=draws)
    hits = correct.astype(np.float64)
    chosen = (counts @ hits.T).argmax(axis=1)
    outside = counts == 0
    accuracies = (outside * hits[chosen]).sum(axis=1) / np.maximum(outside.sum(axis=1), 1)
    return proportion(float(accuracies.mean()), n)


def one_standard_error_rule(losses: Sequence[NDArray[np.float64]], costs: Sequence[float]) -> int:
    """Return the index of the cheapest setting within one standard error of the best one.

    Only settings whose mean loss is below that of the first setting by more than `MIN_ERRORS`
    standard errors of the paired difference are candidates. Without any, return 0, the first.

    Parameters
    ----------
    losses
        Out-of-fold losses of the same images with every setting, (n,) each.
    costs
        Cost of using each setting. At equal cost the lower loss decides.

    References
    ----------
    L. Breiman et al., Classification and regression trees, 1984 (the one-standard-error rule).
    """
    means = [float(loss.mean()) for loss in losses]

    def excess(setting: int, other: int) -> float:
        """Return by how many standard errors the loss of a setting is above that of another."""
        gap = losses[setting] - losses[other]
        error = gap.std(ddof=1) / np.sqrt(len(gap)) if len(gap) > 1 else np.inf
        return float(gap.mean() / max(error, 1e-12))

    better = [setting for setting in range(1, len(losses)) if excess(setting, 0) < -MIN_ERRORS]
    if not better:
        return 0
    best = min(better, key=lambda setting: means[setting])
    equal = [setting for setting in better if excess(setting, best) <= 1]
    return min(equal, key=lambda setting: (costs[setting], means[setting]))


def significantly_better(hits: Sequence[NDArray[np.bool_]], losses: Sequence[float]) -> int:
    """Return the index of the best setting that is significantly better than the first, or 0.

    The test compares the numbers of correctly classified images. A setting is significantly better
    if its lead over the first exceeds the half-width of a `LEVEL` interval on the discordant
    pairs, with one neutral pair added and a Bonferroni correction for the number of settings.
    Among these the lowest log-loss decides, which is less noisy than accuracy.

    Parameters
    ----------
    hits, losses
        Whether each setting classifies each image correctly out of fold, (n,) each, and the
        calibrated log-losses of the settings.

    References
    ----------
    A. Agresti, Y. Min, Simple improved confidence intervals for comparing matched proportions,
    2005.
    """
    z = ndtri(1 - (1 - LEVEL) / 2 / max(1, len(hits) - 1))
    better = []
    for setting, correct in enumerate(hits):
        gained, lost = int(np.sum(correct & ~hits[0])), int(np.sum(~correct & hits[0]))
        if gained - lost > z * np.sqrt(gained + lost + 1):
            better.append(setting)
    return min(better, key=lambda setting: losses[setting], default=0)
