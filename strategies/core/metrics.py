"""Classification metrics: accuracy, Top-k, calibration, log loss, with confidence intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

LEVEL = 0.90
"""Confidence level of every interval that the program reports."""

N_RESAMPLES = 100
"""Resamples of the images for the interval of the calibration error."""
N_DRAWS, N_GAP_FACTORS, MAX_GAP_FACTOR = 400, 61, 3.0
"""Draws for each of the factors between 0 and the largest, for the same interval."""

Labels = NDArray[np.int64]
Scores = NDArray[np.floating]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, ``low <= mid <= high``, at level `LEVEL`."""

    low: float
    mid: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.mid <= self.high:
            raise ValueError(f"an interval needs low <= mid <= high, got {self}")

    def percent(self) -> str:
        """Return a fraction as text in percent: ``"91.2% [88.0, 93.7]"``."""
        return f"{100 * self.mid:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def text(self, form: str = ".3f") -> str:
        """Return the numbers as text: ``"0.120 [0.100, 0.150]"``."""
        low, mid, high = (f"{x:{form}}" for x in (self.low, self.mid, self.high))
        return f"{mid} [{low}, {high}]"

    def points(self, unit: str = " points") -> str:
        """Return a difference of fractions as text: ``"+1.2 points [-0.3, +2.8]"``."""
        return f"{100 * self.mid:+.1f}{unit} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


@dataclass(frozen=True)
class CalibrationBin:
    """One bin of a reliability diagram: mean confidence, accuracy and number of images."""

    confidence: float
    accuracy: Interval
    n: int


@dataclass(frozen=True)
class Mistake:
    """A misclassified image: its class `label`, the class `predicted`, and the probability."""

    path: str
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a classifier on images that it was neither fitted to nor selected on.

    Attributes
    ----------
    accuracy
        Top-1 accuracy, with its interval.
    top_5
        Top-5 accuracy; None with five classes or fewer.
    mean_per_class
        Mean of the per-class accuracies (balanced accuracy).
    calibration_error
        Expected calibration error; 0 is best.
    classes, per_class
        Names of the classes, and the accuracy within each (None for a class without images).
    confusion
        Confusion matrix: images by true class (row) and predicted class (column).
    calibration
        Reliability diagram: bins of increasing confidence.
    mistakes
        The most confident mistakes of the most confused pairs of classes, pair by pair.
    """

    accuracy: Interval
    top_5: Interval | None
    mean_per_class: float
    calibration_error: float
    n: int
    classes: tuple[str, ...]
    per_class: tuple[Interval | None, ...]
    confusion: tuple[tuple[int, ...], ...]
    calibration: tuple[CalibrationBin, ...] = ()
    mistakes: tuple[Mistake, ...] = ()


def proportion(share: float, n: float, level: float = LEVEL) -> Interval:
    """Return Wilson's interval for a share observed in `n` independent trials.

    Parameters
    ----------
    share
        The observed share, in [0, 1].
    n
        Number of trials; with none, the interval is [0, 1].

    References
    ----------
    E. B. Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    if n <= 0:
        return Interval(0.0, share, 1.0)
    z = float(ndtri(0.5 + level / 2))
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Interval(
        float(min(max(centre - half, 0.0), share)),
        share,
        float(max(min(centre + half, 1.0), share)),
    )


def accuracy(predicted: Labels, labels: Labels) -> Interval:
    """Return the Top-1 accuracy in [0, 1] (higher is better) with Wilson's interval."""
    if len(labels) == 0:
        raise ValueError("accuracy needs at least one label")
    return proportion(float(np.mean(predicted == labels)), len(labels))


def top_k(scores: Scores, labels: Labels, k: int) -> Interval:
    """Return the Top-k accuracy in [0, 1] (higher is better) with Wilson's interval.

    Parameters
    ----------
    scores
        Shape (n, classes). A label that ties with the k-th highest score counts as correct.
    """
    own = scores[np.arange(len(labels)), labels]
    higher = np.sum(scores > own[:, None], axis=1)
    return proportion(float(np.mean(higher < k)), len(labels))


def mean_per_class(predicted: Labels, labels: Labels) -> float:
    """Return the balanced accuracy: the mean over occurring classes of the accuracy in each."""
    return float(np.mean([np.mean(predicted[labels == c] == c) for c in np.unique(labels)]))


def calibration_error(probabilities: Scores, labels: Labels, bins: int = 15) -> float:
    """Return the top-label expected calibration error in [0, 1] (0 is best), equal-count bins.

    Images of equal confidence share their mean accuracy, so that their order does not matter.

    References
    ----------
    C. Guo et al., On calibration of modern neural networks, ICML 2017.
    """
    return _error_of_bins(*_by_confidence(probabilities, labels), bins)


def calibration_error_interval(
    probabilities: Scores, labels: Labels, bins: int = 15, seed: int = 0
) -> Interval:
    """Return the expected calibration error with an interval.

    The estimate is biased upwards: on few images also a perfectly calibrated classifier has an
    error above 0. It is not corrected, to be comparable with published ones, but the bounds allow
    for it. They hold a bootstrap interval over the images, and the interval of an inverted test
    of the gaps between confidence and accuracy: the gaps of the bins are multiplied by factors,
    answers are drawn with them, and the factors fit for which the observed error is not in either
    tail of the drawn ones.

    References
    ----------
    J. Carpenter, Test inversion bootstrap confidence intervals, JRSS B 1999.
    """
    confidence, correct = _by_confidence(probabilities, labels)
    error, n = _error_of_bins(confidence, correct, bins), len(labels)
    rng = np.random.default_rng(seed)
    resampled = (np.sort(rng.integers(0, n, n)) for _ in range(N_RESAMPLES))
    errors = [_error_of_bins(confidence[rows], correct[rows], bins) for rows in resampled]
    centre = 2 * error - float(np.mean(errors))
    half = float(np.std(errors) * ndtri(0.5 + LEVEL / 2))
    bounds = [
        error,
        centre - half,
        centre + half,
        *_fitting_errors(confidence, correct, bins, rng),
    ]
    return Interval(max(min(bounds), 0.0), error, min(max(bounds), 1.0))


def _fitting_errors(
    confidence: NDArray[np.floating],
    correct: NDArray[np.bool_],
    bins: int,
    rng: np.random.Generator,
) -> list[float]:
    """Return the calibration errors of the factors that fit, see `calibration_error_interval`."""
    parts = np.array_split(np.arange(len(correct)), min(bins, len(correct)))
    sizes = np.array([len(p) for p in parts])
    expected = np.array([confidence[p].mean() for p in parts], dtype=np.float64)
    gaps = np.array([correct[p].mean() for p in parts]) - expected
    factors = np.linspace(0.0, MAX_GAP_FACTOR, N_GAP_FACTORS)
    shares = np.clip(expected + factors[:, None] * gaps, 0.0, 1.0)
    answers = rng.binomial(sizes, shares, (N_DRAWS, *shares.shape)) / sizes
    drawn, true = (np.abs(x - expected) @ sizes / len(correct) for x in (answers, shares))
    error, tail = np.abs(gaps) @ sizes / len(correct), (1 - LEVEL) / 2
    fits = (np.mean(drawn >= error, axis=0) >= tail) & (np.mean(drawn <= error, axis=0) >= tail)
    found: list[float] = true[fits].tolist()
    return found


def _by_confidence(
    probabilities: Scores, labels: Labels
) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Return the top-label confidences in ascending order, and which predictions are correct."""
    confidence = probabilities.max(axis=1)
    order = np.argsort(confidence, kind="stable")
    return confidence[order], (probabilities.argmax(axis=1) == labels)[order]


def _error_of_bins(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int
) -> float:
    """Return the expected calibration error of predictions in the order of their confidence."""
    starts = np.flatnonzero(np.r_[True, confidence[1:] != confidence[:-1]])
    counts = np.diff(np.r_[starts, len(confidence)])
    shared = np.repeat(np.add.reduceat(correct.astype(np.float64), starts) / counts, counts)
    parts = np.array_split(np.arange(len(confidence)), min(bins, len(confidence)))
    gaps = [len(p) * abs(confidence[p].mean() - shared[p].mean()) for p in parts]
    return float(sum(gaps) / len(confidence))


def calibration_bins(
    probabilities: Scores, labels: Labels, bins: int = 10
) -> tuple[CalibrationBin, ...]:
    """Return a reliability diagram: equal-count bins of increasing top-label confidence.

    Parameters
    ----------
    probabilities
        Shape (n, classes).
    bins
        Maximum number of bins. Each bin has at least ten images if there are ten.
    """
    confidence, correct = _by_confidence(probabilities, labels)
    parts = np.array_split(np.arange(len(labels)), max(1, min(bins, len(labels) // 10)))
    return tuple(
        CalibrationBin(
            float(confidence[p].mean()), proportion(float(correct[p].mean()), len(p)), len(p)
        )
        for p in parts
        if len(p)
    )


def log_loss(logits: Scores, labels: Labels, counts: NDArray[np.float32] | None = None) -> float:
    """Return the mean cross-entropy of softmax(logits) in nats: 0 is best, no upper bound.

    Parameters
    ----------
    counts
        Weight of every row in the mean, (n,); None weights all rows equally.
    """
    picked = logits[np.arange(len(labels)), labels]
    top = logits.max(axis=1)
    # scipy's logsumexp takes six times as long, and fitting a temperature needs twenty calls
    total = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top
    return float(np.average(total - picked, weights=counts))


def log_loss_interval(probabilities: Scores, labels: Labels) -> Interval:
    """Return the mean cross-entropy in nats (0 is best) with a normal interval.

    Probabilities below the precision of their type count as that precision, as in scikit-learn.
    """
    own = probabilities[np.arange(len(labels)), labels]
    losses = -np.log(np.maximum(own, np.finfo(probabilities.dtype).eps), dtype=np.float64)
    mean = float(losses.mean())
    error = float(losses.std(ddof=1)) / len(labels) ** 0.5 if len(labels) > 1 else np.inf
    half = float(error * ndtri(0.5 + LEVEL / 2))
    return Interval(max(mean - half, 0.0), mean, mean + half)


def mean_interval(shares: Sequence[Interval]) -> Interval:
    """Return the mean of independent proportions with an interval made from theirs.

    References
    ----------
    G. Y. Zou, A. Donner, Construction of confidence limits about effect measures: a general
    approach, Statistics in Medicine 2008 (MOVER).
    """
    low, mid, high = (np.array([getattr(s, k) for s in shares]) for k in ("low", "mid", "high"))
    mean, n = float(mid.mean()), len(shares)
    below, above = (float(np.sqrt(np.sum(np.square(gap))) / n) for gap in (mid - low, high - mid))
    return Interval(max(mean - below, 0.0), mean, min(mean + above, 1.0))


def f1_interval(n_correct: int, n_labelled: int, n_predicted: int) -> Interval | None:
    """Return the F1 score of a class in [0, 1] with its interval; None where it is undefined.

    The score is a function of the Jaccard index J, the share of the images of the class or
    predicted as it that are both: ``2 J / (1 + J)``. J is a proportion, with Wilson's interval.
    """
    union = n_labelled + n_predicted - n_correct
    if not union:
        return None
    found = proportion(n_correct / union, union)
    return Interval(*(2 * j / (1 + j) for j in (found.low, found.mid, found.high)))


@dataclass(frozen=True)
class FlipAsymmetry:
    """Agreement, within classes, of the differences between images and their horizontal flips.

    Attributes
    ----------
    cosine
        Cosine similarity of the differences (activations of an image minus those of its flip) of
        two images of a class; mean over such pairs and over depths, in [-1, 1]. Its expectation
        is 0 if an image and its flip are equally likely (animals), and above 0 if a class has an
        orientation (letters). Unbiased. Comparable between datasets on one backbone.
    sd
        Standard deviation of the cosine if the classes are flip-symmetric.
    """

    cosine: float
    sd: float


MIN_STANDARD_ERRORS = 1.64
"""By how many standard errors an accuracy must be higher to count as significantly better."""


def significantly_better(correct: NDArray[np.bool_], other: NDArray[np.bool_]) -> bool:
    """Return whether one is more accurate by `MIN_STANDARD_ERRORS`, paired by image."""
    gap = correct.astype(np.float64) - other
    return bool(gap.mean() > MIN_STANDARD_ERRORS * gap.std() / np.sqrt(len(gap)))
