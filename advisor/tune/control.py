"""Control without pretrained weights: random-init probe or from scratch, and transfer gain."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from advisor.advise import Prepared
from advisor.measure.transfer_gain import transfer_gain
from advisor.tune.interventions import backbone_of, hyperparameters_of
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.time_budget import SAFETY_FACTOR, TimeBudget
from advisor.types.outcome import Ended, TransferGain, TrialRecord
from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime
from strategies.core.metrics import Evaluation
from strategies.data.dataset import Dataset, Split, labels_of
from strategies.heads.compute_budget import affordable_passes
from strategies.models.backbone import Backbone, resized
from strategies.models.classifier import ImageClassifier, evaluate_probabilities
from strategies.models.features import not_cached
from strategies.registry import get_strategy, reference_control

MIN_TEST_IMAGES = 30
"""The best classifier is evaluated on this many test images even if the time is up."""
MIN_CONTROL_IMAGES = 30
"""A control is not evaluated on fewer images: the interval of the gain would be too wide."""


@dataclass(frozen=True)
class Control:
    """A classifier without pretrained weights that the best trial is compared with.

    Attributes
    ----------
    name
        What it is, as shown in reports.
    of_strategy
        The strategy that it is the control of.
    """

    name: str
    of_strategy: str
    classifier: ImageClassifier


@dataclass(frozen=True)
class Judged:
    """The evaluation of a classifier on test, done once.

    Attributes
    ----------
    gain
        None if there is no control, or no time to evaluate it.
    predicted
        Predicted class and its probability, by path of the evaluated test images.
    """

    evaluation: Evaluation
    gain: TransferGain | None
    predicted: Mapping[Path, tuple[str, float]]


def fit_control(
    best: TrialRecord, dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> Control | None:
    """Fit the control of the best trial: a probe on random weights, or a network from scratch.

    A probe is compared with the same probe on random weights. If there is no time to pass all
    images through the random network, it is compared with a network trained from scratch, as
    training runs are; that can be cut to any time.

    Parameters
    ----------
    dataset
        The images that the best trial was fitted to, without test.
    ctx
        Its deadline bounds the control, whose learning rate is annealed in time. The accuracy
        reached in so short a time is a lower bound of what is possible without pretraining.

    Returns
    -------
    None, with a note, if the best trial itself uses no pretrained weights, was fitted to a part
    of the images, or if there was no time for a single step.
    """
    strategy, backbone = get_strategy(best.strategy), backbone_of(best.hyperparameters, backbone)
    if best.n_train is not None:
        ctx.reporter.on_note(
            "There is no control without pretrained weights: the time was too short to train on "
            "all images."
        )
        return None
    if strategy.role == "control":
        ctx.reporter.on_note(
            f"The best trial, {best.strategy}, uses no pretrained weights: there is no transfer "
            "to measure."
        )
        return None
    try:
        if strategy.trains_network or not random_features_fit_in_time(
            best, dataset, backbone, ctx
        ):
            control = reference_control()
            px = {"input_px": best.hyperparameters.get("input_px")}
            fresh = control.from_hyperparameters(px)
            # The control has a single setting, so no validation images are needed to select one.
            without_val = replace(dataset, val=())
            return Control(control.name, best.strategy, fresh.fit(without_val, backbone, ctx))
        # The regularisation strength was chosen for pretrained features: it is chosen again.
        same = hyperparameters_of(best.hyperparameters) | {"strength": None}
        probe = strategy.from_hyperparameters(same)
        fitted = probe.fit(dataset, backbone.with_random_weights(), ctx)
    except OutOfTime:
        ctx.reporter.on_note(
            f"The control of {best.strategy} without pretrained weights was left out: there was "
            "no time for it."
        )
        return None
    return Control(f"{best.strategy} on random weights", best.strategy, fitted)


def random_features_fit_in_time(
    best: TrialRecord, dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> bool:
    """Return whether there is time to compute a probe's features with random weights."""
    backbone = backbone_of(best.hyperparameters, backbone)
    random = resized(backbone, best.hyperparameters.get("input_px")).with_random_weights()
    views = best.hyperparameters.get("views") or 1
    uncached = not_cached(dataset.train, random, ctx) if views == 1 else dataset.train
    return views * len(uncached) <= affordable_passes(dataset, random, ctx)


def evaluate_with_control(
    classifier: ImageClassifier,
    control: Control | None,
    test: Split,
    ctx: RunContext,
    s_per_image: float,
) -> Judged:
    """Evaluate a classifier on test, and its gain over the control on the same images.

    Parameters
    ----------
    ctx
        Its deadline bounds the evaluation. If there is no time for all images, the classifier is
        evaluated on a random sample, of at least `MIN_TEST_IMAGES`, and the control on as many of
        them as there is time for, or not at all if these are fewer than `MIN_CONTROL_IMAGES`.
    s_per_image
        Expected seconds to predict one image.
    """
    test = _affordable_test(test, ctx, s_per_image)
    begun = time.monotonic()
    probabilities = _predict_proba(classifier, test, ctx)
    took_s = SAFETY_FACTOR * (time.monotonic() - begun)
    evaluation, n = evaluate_probabilities(probabilities, test, classifier.classes), len(test)
    guesses = [classifier.classes[label] for label in probabilities.argmax(axis=1)]
    ranked = zip(guesses, probabilities.max(axis=1).tolist(), strict=True)
    alone = Judged(evaluation, None, dict(zip((p.path for p in test), ranked, strict=True)))
    if control is None:
        return alone
    if ctx.seconds_left() < took_s:
        n = int(n * max(ctx.seconds_left(), 0) / took_s)
        if n < MIN_CONTROL_IMAGES:
            ctx.reporter.on_note(
                "The control without pretrained weights is not evaluated: there is no time."
            )
            return alone
        ctx.reporter.on_note(
            f"The control without pretrained weights is evaluated on {n} of {len(test)} test "
            "images: there is no time for more."
        )
    drawn = _drawn(len(test), n, ctx.seed)
    sample, labels = tuple(test[i] for i in drawn), labels_of(test)[drawn]
    hits = probabilities[drawn].argmax(axis=1) == labels
    control_hits = _predict_proba(control.classifier, sample, ctx).argmax(axis=1) == labels
    gain = transfer_gain(hits, control_hits, labels, classifier.classes, control.name)
    return replace(alone, gain=gain)


def _affordable_test(test: Split, ctx: RunContext, s_per_image: float) -> Split:
    """Return the test images that can be predicted before the deadline, with a note if not all."""
    left_s = max(ctx.seconds_left(), 0.0)
    if len(test) * s_per_image <= left_s:
        return test
    n = min(max(int(left_s / s_per_image), MIN_TEST_IMAGES), len(test))
    ctx.reporter.on_note(
        f"The classifier is evaluated on {n} of {len(test)} test images: there is no time for "
        "more."
    )
    return tuple(test[i] for i in _drawn(len(test), n, ctx.seed))


def _drawn(total: int, n: int, seed: int) -> NDArray[np.int64]:
    """Draw `n` of `total` rows at random, sorted."""
    return np.sort(np.random.default_rng(seed).permutation(total)[:n])


def _predict_proba(
    classifier: ImageClassifier, images: Split, ctx: RunContext
) -> NDArray[np.float32]:
    paths = [p.path for p in images]
    return classifier.predict_proba(paths, n_workers=ctx.n_workers, precision=ctx.precision)


def fit_early_control(folder: RunDir, prepared: Prepared, budget: TimeBudget) -> Control | None:
    """Fit the control of a probe that is the incumbent, if its share of the time is enough.

    Then the search need not reserve time for it, and the last training run can use all the time
    that is left. None if the incumbent is a training run, or the features take too long.
    """
    best = folder.best()
    if best is None or best[0].n_train or get_strategy(best[0].strategy).trains_network:
        return None
    dataset = _training_images(best, prepared)
    ctx = prepared.ctx.with_deadline(time.monotonic() + budget.control_s)
    if not random_features_fit_in_time(best[0], dataset, prepared.backbone, ctx):
        return None
    return fit_control(best[0], dataset, prepared.backbone, ctx)


def fit_final_control(
    folder: RunDir, prepared: Prepared, budget: TimeBudget, ended: Ended, early: Control | None
) -> Control | None:
    """Fit the control of the final best trial, or keep the early control.

    The early control is kept if it is of the same strategy, or if there is no time for another
    one. For a probe no time was reserved once an early control existed, so another probe's
    control is fitted only if its whole share is left. The final control may use all the time that
    the search left, or only its share if the search ended before its time.
    """
    best = folder.best()
    if best is None or (early is not None and early.of_strategy == best[0].strategy):
        return early
    deadline_s = budget.control_ends_s()
    is_trained = get_strategy(best[0].strategy).trains_network
    if early is not None and not is_trained and deadline_s - time.monotonic() < budget.control_s:
        return early
    if ended != "time":
        deadline_s = min(deadline_s, time.monotonic() + budget.control_s)
    ctx = prepared.ctx.with_deadline(deadline_s)
    final = fit_control(best[0], _training_images(best, prepared), prepared.backbone, ctx)
    is_control = get_strategy(best[0].strategy).role == "control"
    return final if is_control else final or early


def _training_images(best: tuple[TrialRecord, bool], prepared: Prepared) -> Dataset:
    """Return the images that the best classifier was fitted to, as a dataset without test."""
    hidden = prepared.dataset.hide_test()
    return hidden.with_val_in_train() if best[1] else hidden
