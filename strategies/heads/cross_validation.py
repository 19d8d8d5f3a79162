"""Linear heads over cached features: the whole regularisation path, all folds at once.

How heads are solved for is in `solver`, how images are dealt to folds in `folds`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import norm

from strategies.core.folds import MAX_FOLDS, fold_numbers
from strategies.core.metrics import LEVEL, Interval, Labels, Scores, log_loss, proportion
from strategies.heads.solver import Loss, solve_path
from strategies.heads.whitening import principal_axes

__all__ = [
    "MAX_FOLDS",
    "STRENGTHS",
    "ClassWeight",
    "CrossValidated",
    "Head",
    "Loss",
    "corrected_accuracy",
    "cross_validate",
    "fit_head",
    "fold_numbers",
    "one_standard_error_rule",
    "out_of_fold",
    "row_weights",
    "significantly_better",
    "temperature",
]

ClassWeight = Literal["none", "balanced"]

STRENGTHS: tuple[float, ...] = tuple(float(s) for s in np.logspace(-1, -6.5, 12))
"""L2 strengths, strong to weak, for features scaled to unit mean squared length."""
FOLD_TOLERANCE = 1e-2
"""How exactly folds are solved: hits hardly change, and it takes a third of the time."""
CLEAR = 2
"""By so many standard errors a setting must be better than the one that stands without evidence.
Of a dozen settings and few images one is better by a single error by chance."""


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
    """Out-of-fold scores of every strength.

    Attributes
    ----------
    scores
        Shape (strengths, n, classes).
    counts
        What every image counts in the choice of a strength, (n,); None: all alike.
    """

    scores: NDArray[np.float32]
    labels: Labels
    strengths: tuple[float, ...]
    counts: NDArray[np.float32] | None = None

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Which images each strength classifies correctly, (strengths, n)."""
        right: NDArray[np.bool_] = self.scores.argmax(axis=2) == self.labels
        return right

    @cached_property
    def _losses(self) -> list[float]:
        return [_best_temperature(s, self.labels, self.counts, 0.0)[1] for s in self.scores]

    @property
    def best(self) -> int:
        """Index of the strength with the least calibrated log-loss."""
        return int(np.argmin(self._losses))

    @property
    def log_loss(self) -> float:
        """Calibrated log-loss of the best strength, in nats."""
        return min(self._losses)

    @cached_property
    def losses(self) -> NDArray[np.float64]:
        """Calibrated log-loss of every image under the best strength, in nats, (n,)."""
        scores = self.scores[self.best].astype(np.float64)
        t, _ = temperature(self.scores[self.best], self.labels, self.counts)
        own = log_softmax(scores / t, axis=1)[np.arange(len(scores)), self.labels]
        found: NDArray[np.float64] = -own
        return found if self.counts is None else found * self.counts


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
    """Fit the path on all but one fold, for every fold, and score the images left out.

    Parameters
    ----------
    features, labels
        Shapes (n, d) and (n,). The scaling of the features is unsupervised and shared by folds.
    folds
        Fold number of every image, (n,).
    """
    scores = out_of_fold(
        features,
        labels,
        n_classes,
        folds=folds,
        judged=range(int(folds.max()) + 1),
        loss=loss,
        strengths=strengths,
        class_weight=class_weight,
        device=device,
    )
    return CrossValidated(scores, labels, tuple(strengths), row_weights(labels, class_weight))


def out_of_fold(
    features: Scores,
    labels: Labels,
    n_classes: int,
    *,
    folds: NDArray[np.int64],
    judged: Sequence[int],
    loss: Loss,
    strengths: Sequence[float],
    class_weight: ClassWeight,
    device: torch.device | None,
) -> NDArray[np.float32]:
    """Return scores, (strengths, n, classes), for images of the `judged` folds; 0 for others.

    The other parameters are those of `cross_validate`.
    """
    weights = torch.as_tensor(row_weights(labels, class_weight), device=device)
    basis = principal_axes(features, weights, exact=False)
    fold = torch.as_tensor(folds, device=weights.device)
    seen = torch.stack([(fold != k).float() * weights for k in judged])
    targets = torch.as_tensor(labels, device=weights.device)
    scores = np.zeros((len(strengths), len(labels), n_classes), dtype=np.float32)
    path = solve_path(basis.coordinates, targets, n_classes, seen, loss, strengths, FOLD_TOLERANCE)
    for number, k in enumerate(judged):
        left_out = basis.coordinates[fold == k]
        for s, v in enumerate(path):
            scores[s, folds == k] = (left_out @ v[:, number].T).cpu().numpy()
    return scores


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
    """Fit one linear head; scores are divided by `temperature`."""
    weights = torch.as_tensor(row_weights(labels, class_weight), device=device)
    basis = principal_axes(features, weights)
    targets = torch.as_tensor(labels, device=weights.device)
    path = [*(s for s in STRENGTHS if s > strength), strength]
    v = solve_path(basis.coordinates, targets, n_classes, weights[None], loss, path)[-1][:, 0]
    weight, bias = basis.on_features(v)
    return Head((weight / temperature).cpu().numpy(), (bias / temperature).cpu().numpy())


def row_weights(labels: Labels, class_weight: ClassWeight) -> NDArray[np.float32]:
    """Return what every image counts, (n,), 1 on average: scikit-learn's ``class_weight``.

    "balanced" lets every class that occurs count alike, however many images it has.
    """
    if class_weight == "none":
        return np.ones(len(labels), dtype=np.float32)
    counts = np.bincount(labels)
    weights = len(labels) / (np.count_nonzero(counts) * counts[labels])
    return weights.astype(np.float32)


def temperature(
    scores: Scores,
    labels: Labels,
    counts: NDArray[np.float32] | None = None,
    *,
    spread: float = np.inf,
) -> tuple[float, float]:
    """Return the temperature that calibrates out-of-fold scores best, and its log-loss.

    Of n images, one more is taken to have any label at all (Platt's prior): a few images that
    are all classified correctly do not make a classifier certain.

    Parameters
    ----------
    counts
        What every image counts, (n,); None: all alike.
    spread
        Standard deviation of the temperature's logarithm around 0 (a Gaussian prior), where the
        scores are known to be nearly calibrated before; infinite: nothing is known.

    References
    ----------
    C. Guo et al., On calibration of modern neural networks, ICML 2017. J. Platt, Probabilistic
    outputs for support vector machines, 1999.
    """
    n = len(labels)
    return _best_temperature(scores, labels, counts, 1 / (n + 2), 1 / (2 * n * spread**2))


def _best_temperature(
    scores: Scores,
    labels: Labels,
    counts: NDArray[np.float32] | None,
    doubt: float,
    pull: float = 0.0,
) -> tuple[float, float]:
    """Return the temperature, and its log-loss, if `doubt` of all labels may be any class.

    A logarithm of the temperature costs `pull` times its square.
    """
    spread = float(np.average(scores.mean(axis=1) - _own(scores, labels), weights=counts))

    def loss(log_t: float) -> float:
        t = float(np.exp(log_t))
        return log_loss(scores / t, labels, counts) - doubt * spread / t + pull * log_t**2

    found = minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded")
    t = float(np.exp(found.x))
    return t, log_loss(scores / t, labels, counts)


def _own(scores: Scores, labels: Labels) -> Scores:
    """Return the score of every image's own class, (n,)."""
    return scores[np.arange(len(labels)), labels]


def corrected_accuracy(
    correct: NDArray[np.bool_], seed: int, draws: int = 500, n_effective: float | None = None
) -> Interval:
    """Accuracy of "the best of these settings", without the optimism of having chosen it.

    Settings are chosen on a bootstrap sample of the images and judged on those outside it; the
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


def one_standard_error_rule(losses: Sequence[NDArray[np.float64]], costs: Sequence[float]) -> int:
    """Return the cheapest of the settings that are as good as the best, or the first of all.

    Only settings whose mean loss is lower than the first's by more than `CLEAR` standard errors of
    the paired difference are considered. Of these, all within one such error of the best are as
    good.

    Parameters
    ----------
    losses
        Out-of-fold losses of the same images under every setting, (n,) each.
    costs
        What every setting costs to use. Among equals the lower loss decides.

    References
    ----------
    L. Breiman et al., Classification and regression trees, 1984 (the one-standard-error rule).
    """
    means = [float(loss.mean()) for loss in losses]

    def excess(number: int, over: int) -> float:
        """Return by how many standard errors a setting's loss is above another's."""
        gap = losses[number] - losses[over]
        error = gap.std(ddof=1) / np.sqrt(len(gap)) if len(gap) > 1 else np.inf
        return float(gap.mean() / max(error, 1e-12))

    better = [number for number in range(1, len(losses)) if excess(number, 0) < -CLEAR]
    if not better:
        return 0
    best = min(better, key=lambda number: means[number])
    equal = [number for number in better if excess(number, best) <= 1]
    return min(equal, key=lambda number: (costs[number], means[number]))


def significantly_better(hits: Sequence[NDArray[np.bool_]], losses: Sequence[float]) -> int:
    """Return the first of some settings, or the best of those that are better beyond doubt.

    A setting is better beyond doubt when it classifies more images correctly than the first by
    more than the half-width of a `LEVEL` interval on the discordant pairs, with one more pair that
    speaks for nothing, and Bonferroni's share of the doubt for each setting. Among these the least
    log-loss decides, which is less noisy than hits.

    Parameters
    ----------
    hits, losses
        Out-of-fold hits of every setting, (n,) each, and their calibrated log-losses.

    References
    ----------
    A. Agresti, Y. Min, Simple improved confidence intervals for comparing matched proportions,
    2005.
    """
    z = norm.ppf(1 - (1 - LEVEL) / 2 / max(1, len(hits) - 1))  # so many have a chance to be lucky
    better = []
    for number, hit in enumerate(hits):
        gained, lost = int(np.sum(hit & ~hits[0])), int(np.sum(~hit & hits[0]))
        if gained - lost > z * np.sqrt(gained + lost + 1):
            better.append(number)
    return min(better, key=lambda number: losses[number], default=0)
