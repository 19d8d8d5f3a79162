"""Pilot: compare a short fine-tuning and a layer SVM with a linear probe on some images.

It runs at the input size of the fit that it stands for. The benchmarks relate pilots to fits at
the same size only, so nothing is known about a pilot on smaller images.
"""

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from advisor.measure.paired import loss_gain, paired_gain
from advisor.types.advice import Recommendation
from advisor.types.profile import Pilot, Profile
from strategies.base import Strategy
from strategies.core.context import RunContext
from strategies.core.folds import fold_numbers
from strategies.core.metrics import Interval, Labels, Scores, proportion
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset, groups_of, labels_of
from strategies.data.image import Split
from strategies.heads.cross_validation import best_of
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier
from strategies.models.multi_view import features_at
from strategies.registry import baseline, fits_head, get_strategy
from strategies.training.defaults import lr_factor
from strategies.training.recipe import BATCH_SIZE

MAX_TRAIN, MAX_EVALUATED = 300, 300
STEPS = 150
"""Training steps: those of the shortest default fine-tuning. After fewer, its gain does not show
yet."""
FEWEST = 24
"""Smallest number of images for a pilot; with fewer, its result would be too uncertain."""
MIN_EVALUATED = 2
"""Smallest number of evaluation images; one image gives no standard error."""
PROBE_PASSES = 4.0
"""Forward passes per image besides training.

Half of the images are used to fit the probe and the SVM, as several views. The other half is
passed through the fine-tuned network, and for the SVM where it pools over quarters.
"""
TINY = 1e-12
"""Lower bound of a probability, so that its log-loss is finite."""


def pilot_seconds(profile: Profile) -> float:
    """Predict how many seconds a pilot takes, from measured times."""
    passes = pilot_passes(profile, profile.passes_per_trained_image or 8.0)
    return passes * profile.ms_per_image / 1000 + 2 * profile.build_s


def pilot_passes(profile: Profile, per_trained_image: float) -> float:
    """Return the cost of a pilot in forward passes of one image at the profile's input size."""
    n = min(profile.n, MAX_TRAIN + MAX_EVALUATED)
    return STEPS * BATCH_SIZE * per_trained_image + PROBE_PASSES * n


def run_pilot(
    dataset: Dataset, backbone: Backbone, ctx: RunContext, advised: Recommendation
) -> Pilot | None:
    """Fine-tune briefly on at most half of the images, and evaluate on others.

    Parameters
    ----------
    advised
        Strategy and hyperparameters to try; the number of steps is set to `STEPS`, and a large
        batch to `BATCH_SIZE`, with the learning rate that fits it.

    Returns
    -------
    The pilot, or None with fewer than `FEWEST` images or `MIN_EVALUATED` evaluation images.

    Raises
    ------
    OutOfTime
        If the deadline passes during the pilot.
    """
    if len(dataset.fit_split) < FEWEST:
        return None
    start = time.monotonic()
    train, evaluated = _halves(dataset, ctx.seed)
    if len(evaluated) < MIN_EVALUATED:
        return None
    small = replace(dataset, train=train, val=(), test=None, pairs=())
    used = _pilot_hyperparameters(advised)
    quiet = replace(ctx, reporter=Reporter(on_note=ctx.reporter.on_note))
    labels = labels_of(evaluated)

    def fit_head(strategy: type[Strategy]) -> _Predictions:
        fitted = strategy().fit(small, backbone, quiet)
        return _Predictions(_head_probabilities(fitted, evaluated, quiet), labels)

    probe, svm = fit_head(baseline()), fit_head(fits_head("squared_hinge"))
    network = get_strategy(advised.strategy).from_hyperparameters(used).fit(small, backbone, quiet)
    tuned = _Predictions(network.predict_proba([p.path for p in evaluated]), labels)
    return Pilot(
        gain=paired_gain(tuned.hits, probe.hits),
        accuracy=tuned.accuracy,
        n_train=len(train),
        n_judged=len(evaluated),
        hyperparameters=used,
        svm_accuracy=svm.accuracy,
        svm_gain=paired_gain(svm.hits, probe.hits),
        loss_gain=loss_gain(tuned.losses, probe.losses),
        svm_loss_gain=loss_gain(svm.losses, probe.losses),
        seconds=round(time.monotonic() - start, 3),
    )


def _pilot_hyperparameters(advised: Recommendation) -> dict[str, Any]:
    """Return the advised hyperparameters for `STEPS` steps of `BATCH_SIZE` images."""
    used = {**advised.hyperparameters, "steps": STEPS}
    batch_size = used.pop("batch_size", None)
    if batch_size is not None and used.get("lr") is not None:
        used["lr"] /= lr_factor(batch_size, used.get("optimiser", "adamw"))
    return used


def _head_probabilities(
    fitted: ImageClassifier, images: Split, ctx: RunContext
) -> NDArray[np.float32]:
    """Return class probabilities from cached features, for a head on a frozen backbone.

    The profile has extracted them, except those pooled over quarters.
    """
    x = features_at(images, fitted.backbone, ctx, fitted.depths, fitted.pooling, 1)[:, 0]
    with torch.inference_mode():
        scores = fitted.network.head(torch.from_numpy(x).to(fitted.device))
    probabilities: NDArray[np.float32] = scores.softmax(dim=1).cpu().numpy()
    return probabilities


@dataclass(frozen=True)
class _Predictions:
    """Predictions of a strategy on the evaluation images: probabilities (n, classes)."""

    probabilities: Scores
    labels: Labels

    @property
    def hits(self) -> NDArray[np.bool_]:
        """Which images are classified correctly, (n,)."""
        correct: NDArray[np.bool_] = self.probabilities.argmax(axis=1) == self.labels
        return correct

    @property
    def accuracy(self) -> Interval:
        """Share of the images that are classified correctly."""
        return proportion(float(self.hits.mean()), len(self.labels))

    @property
    def losses(self) -> NDArray[np.float64]:
        """Log-loss of every image in nats at the best temperature, (n,)."""
        scores = np.log(np.maximum(self.probabilities, TINY))
        return best_of([scores], self.labels, (0.0,)).losses


def _halves(dataset: Dataset, seed: int) -> tuple[Split, Split]:
    """Split the images into training and evaluation images.

    The only image of a class is a training image.
    """
    images = dataset.fit_split
    half = fold_numbers(labels_of(images), seed, 2, groups_of(images))
    order = np.random.default_rng(seed).permutation(len(images))
    seen = {p.label for p, h in zip(images, half, strict=True) if h == 0}
    train = [i for i in order if half[i] == 0 or images[i].label not in seen]
    evaluated = [i for i in order if half[i] == 1 and images[i].label in seen]
    return (
        tuple(images[i] for i in sorted(_first_of_each(train, images, MAX_TRAIN))),
        tuple(images[i] for i in sorted(evaluated[:MAX_EVALUATED])),
    )


def _first_of_each(rows: list[int], images: Split, most: int) -> list[int]:
    """Return about the first `most` rows, with at least one of every class."""
    first = {images[i].label: i for i in reversed(rows)}
    return list(dict.fromkeys([*first.values(), *rows]))[: max(most, len(first))]
