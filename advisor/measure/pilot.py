"""Pilot: compare a short full fine-tuning and a layer SVM with a linear probe on some images."""

import math
import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from advisor.measure.paired import loss_gain, paired_gain
from advisor.types.advice import Decision, Recommendation
from advisor.types.options import PilotMode
from advisor.types.profile import Pilot, Profile
from strategies.base import Strategy
from strategies.core.context import RunContext
from strategies.core.metrics import Interval, Labels, Scores, proportion
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset, groups_of, labels_of
from strategies.data.image import Split
from strategies.heads.cross_validation import CrossValidated, fold_numbers
from strategies.models.backbone import Backbone
from strategies.registry import baseline, fits_head, get_strategy
from strategies.training.lp_ft import PASSES_PER_STEP
from strategies.training.recipe import BATCH_SIZE

MAX_TRAIN, MAX_EVALUATED = 300, 300
STEPS, MAX_INPUT_PX = 150, 96
"""Training steps, and largest input size for networks that take any size.

The steps are those of the shortest default fine-tuning: after fewer, its gain does not show yet.
They take about a minute on two cores.
"""
FEWEST = 24
"""Smallest number of images for a pilot; with fewer, its result would be too uncertain."""
MIN_EVALUATED = 2
"""Smallest number of evaluation images; one image gives no standard error."""
TIME_SHARE = 0.1
"""Largest share of the time left that an "auto" pilot may take, if there is a time limit."""
MAX_GMACS = 2000.0
"""Largest cost of an "auto" pilot without a time limit, in billions of multiply-accumulates.

It is counted in operations and not in seconds, so that the advice is the same on a busy machine.
Two cores do some 20 to 30 billion per second.
"""
PROBE_PASSES = 5.0
"""Forward passes per image for the probe and the SVM.

Half of the images are used for training, and most of those as several views.
"""
MIN_ADVANTAGE = 0.01
"""A pilot is run only if fine-tuning may be better by more than this in accuracy."""
TINY = 1e-12
"""Lower bound of a probability, so that its log-loss is finite."""


def reason_against_pilot(
    mode: PilotMode, decision: Decision, profile: Profile, gmacs: float, seconds_left: float
) -> str | None:
    """Return why no pilot is run, as text for the user, or None if one is run.

    A pilot is worthwhile if it could change the decision: if the strategy that it tries
    (`piloted`) is recommended, or its interval reaches clearly above the accuracy of the
    recommended strategy.

    Parameters
    ----------
    gmacs
        Multiply-accumulates of one forward pass at the profile's input size, in billions.
    seconds_left
        Time until the deadline; infinite without one.
    """
    if mode == "off":
        return "disabled (--pilot off)"
    tuned = piloted(decision)
    if tuned is None:
        return "no strategy that trains the network applies to this dataset and backbone"
    if profile.n < FEWEST:
        return f"with fewer than {FEWEST} images, its result would be too uncertain"
    if mode == "on":
        return None
    best = decision.recommendations[0]
    if tuned is not best and tuned.accuracy.high <= best.accuracy.mid + MIN_ADVANTAGE:
        return f"{tuned.strategy} is not expected to be clearly better than {best.strategy}"
    if math.isinf(seconds_left):
        if pilot_passes(profile, PASSES_PER_STEP) * gmacs <= MAX_GMACS:
            return None
        return "this network is too large for a quick pilot; run it with --pilot on"
    if pilot_seconds(profile) > TIME_SHARE * seconds_left:
        share = f"its share of the time left ({TIME_SHARE:.0%})"
        return f"it would exceed {share}; run it with --pilot on"
    return None


def piloted(decision: Decision) -> Recommendation | None:
    """Return the strategy that a pilot tries: the one that trains most of the pretrained network.

    That is the costliest one with benchmark cases. None if no such strategy applies.
    """
    trained = [
        r
        for r in decision.recommendations
        if get_strategy(r.strategy).trains_network
        and get_strategy(r.strategy).role == "transfer"
        and r.cases
    ]
    return max(trained, key=lambda r: r.image_passes, default=None)


def pilot_seconds(profile: Profile) -> float:
    """Predict how many seconds a pilot takes, from measured times."""
    passes = pilot_passes(profile, profile.passes_per_trained_image or 8.0)
    return passes * profile.ms_per_image / 1000 + 2 * profile.build_s


def pilot_passes(profile: Profile, per_trained_image: float) -> float:
    """Return the cost of a pilot in forward passes of one image at the profile's input size."""
    side = (
        min(profile.input_px, MAX_INPUT_PX) / profile.input_px if takes_any_size(profile) else 1.0
    )
    n = min(profile.n, MAX_TRAIN + MAX_EVALUATED)
    return (STEPS * BATCH_SIZE * per_trained_image + PROBE_PASSES * n) * side**2


def takes_any_size(profile: Profile) -> bool:
    """Whether the network takes any input size: it does with BatchNorm (convolutional)."""
    return profile.similarity is not None and profile.similarity.shift_nats is not None


def run_pilot(
    dataset: Dataset,
    backbone: Backbone,
    ctx: RunContext,
    advised: Recommendation,
    *,
    any_size: bool,
) -> Pilot | None:
    """Fine-tune briefly on at most half of the images, and evaluate on others.

    Parameters
    ----------
    advised
        Strategy and hyperparameters (`piloted`); the number of steps is set to `STEPS`.
    any_size
        Whether the network takes any input size; if so, images have at most `MAX_INPUT_PX`.

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
    if any_size:
        backbone = replace(backbone, input_px=min(backbone.input_px, MAX_INPUT_PX))
    used = {**advised.hyperparameters, "steps": STEPS}
    quiet = replace(ctx, reporter=Reporter(on_note=ctx.reporter.on_note))
    labels = labels_of(evaluated)

    def predict(strategy: Strategy) -> _Predictions:
        fitted = strategy.fit(small, backbone, quiet)
        return _Predictions(fitted.predict_proba([p.path for p in evaluated]), labels)

    tuned = predict(get_strategy(advised.strategy).from_hyperparameters(used))
    svm, probe = predict(fits_head("squared_hinge")()), predict(baseline()())
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
        return CrossValidated(scores[None], self.labels, (0.0,)).losses


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
