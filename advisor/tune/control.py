"""The control of a run: what was chosen, once more without pretrained weights."""

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from advisor.advise import Prepared
from advisor.measure.transfer_gain import transfer_gain
from advisor.tune.interventions import backbone_of, hyperparameters_of
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.time_budget import FACTOR, TimeBudget
from advisor.types.outcome import Ended, TransferGain, TrialRecord
from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime
from strategies.core.metrics import Evaluation
from strategies.data.dataset import Dataset, Split, labels_of
from strategies.from_scratch import FromScratch
from strategies.heads.compute_budget import passes_left
from strategies.models.backbone import Backbone, resized
from strategies.models.classifier import ImageClassifier, judge
from strategies.models.features import not_cached
from strategies.registry import get_strategy

FEWEST = 30
"""On fewer images a control is not judged: they would hardly tell anything."""


@dataclass(frozen=True)
class Control:
    """A classifier that owes nothing to pretraining, and what it is, for people.

    Attributes
    ----------
    of
        The strategy that it is the control of.
    """

    name: str
    of: str
    classifier: ImageClassifier


def fit_control(
    best: TrialRecord, dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> Control | None:
    """Fit what the best trial is compared with: a probe on random weights, or all from scratch.

    A probe is compared with the same probe on random weights, or, if there is no time to pass all
    images through those, with a network from scratch, as training runs are: that fits into any time.
    None, with a note, where the best trial owes nothing to pretraining itself, or the time did not
    suffice for a single step.

    Parameters
    ----------
    dataset
        The images that the best trial was fitted to, without test.
    ctx
        Its deadline bounds the control, which cools down in time: what it reaches in so short a
        time is a lower bound of what could be had without pretraining.
    """
    if best.strategy == FromScratch.name:
        ctx.on_note("The best trial was trained from scratch: no transfer is left to measure.")
        return None
    strategy, backbone = get_strategy(best.strategy), backbone_of(best.hyperparameters, backbone)
    try:
        if strategy.selects_on_val or not is_quick(best, dataset, backbone, ctx):
            fresh = FromScratch(input_px=best.hyperparameters.get("input_px"))
            unjudged = replace(
                dataset, val=()
            )  # it has a single setting: nothing is to be selected
            return Control(FromScratch.name, best.strategy, fresh.fit(unjudged, backbone, ctx))
        # the strength suits pretrained features
        same = hyperparameters_of(best.hyperparameters) | {"strength": None}
        fitted = strategy(**same).fit(dataset, backbone.with_random_weights(), ctx)
    except OutOfTime:
        ctx.on_note(
            f"A control of the {best.strategy} without pretrained weights was left out: there was "
            "no time."
        )
        return None
    return Control(f"{best.strategy} on random weights", best.strategy, fitted)


def is_quick(best: TrialRecord, dataset: Dataset, backbone: Backbone, ctx: RunContext) -> bool:
    """Whether there is time to pass what a probe learns from through random weights."""
    backbone = backbone_of(best.hyperparameters, backbone)
    random = resized(backbone, best.hyperparameters.get("input_px")).with_random_weights()
    views = best.hyperparameters.get("views") or 1
    waiting = not_cached(dataset.train, random, ctx) if views == 1 else dataset.train
    return views * len(waiting) <= passes_left(dataset, random, ctx)


def judge_both(
    classifier: ImageClassifier, control: Control | None, test: Split, ctx: RunContext
) -> tuple[Evaluation, TransferGain | None]:
    """Judge a classifier on test, and against its control on the same images.

    Parameters
    ----------
    ctx
        By its deadline the control must be judged. Where there is no time for all images it is
        judged on as many of them, drawn at random, as there is time for, and not on too few.
    """
    begun = time.monotonic()
    said = _said(classifier, test, ctx)
    took_s = FACTOR * (time.monotonic() - begun)
    found, n = judge(said, test, classifier.classes), len(test)
    if control is None:
        return found, None
    if ctx.seconds_left() < took_s:
        n = int(n * max(ctx.seconds_left(), 0) / took_s)
        if n < FEWEST:
            ctx.on_note("The control without pretrained weights is not judged: there is no time.")
            return found, None
        ctx.on_note(
            f"The control without pretrained weights is judged on {n} of {len(test)} test "
            "images: there is no time for more."
        )
    drawn = np.sort(np.random.default_rng(ctx.seed).permutation(len(test))[:n])
    some, labels = tuple(test[i] for i in drawn), labels_of(test)[drawn]
    hits = said[drawn].argmax(axis=1) == labels
    control_hits = _said(control.classifier, some, ctx).argmax(axis=1) == labels
    return found, transfer_gain(hits, control_hits, labels, classifier.classes, control.name)


def _said(classifier: ImageClassifier, images: Split, ctx: RunContext) -> NDArray[np.float32]:
    paths = [p.path for p in images]
    return classifier.predict_proba(paths, n_workers=ctx.n_workers, precision=ctx.precision)


def early_control(folder: RunDir, prepared: Prepared, budget: TimeBudget) -> Control | None:
    """Fit the control of a probe that leads before the search goes on, if that is soon done.

    Then the search needs to leave no time to it, and its last training can have all that is left.
    """
    best = folder.best()
    if best is None or get_strategy(best[0].strategy).selects_on_val:
        return None
    dataset = _learnt_from(best, prepared)
    ctx = replace(prepared.ctx, deadline_s=time.monotonic() + budget.control_s)
    if not is_quick(best[0], dataset, prepared.backbone, ctx):
        return None
    return fit_control(best[0], dataset, prepared.backbone, ctx)


def last_control(
    folder: RunDir, prepared: Prepared, budget: TimeBudget, ended: Ended, early: Control | None
) -> Control | None:
    """Fit the control of what leads at the end; the early one stands if it is of that strategy.

    It also stands where there is no time for another: to another probe nothing was set aside, so
    its control must find its whole share. This one may use up what the search has left, unless
    that ended before its time.
    """
    best = folder.best()
    if best is None or (early is not None and early.of == best[0].strategy):
        return early
    deadline_s = budget.judging_begins_s()
    is_due = get_strategy(best[0].strategy).selects_on_val
    if early is not None and not is_due and deadline_s - time.monotonic() < budget.control_s:
        return early
    if ended != "time":
        deadline_s = min(deadline_s, time.monotonic() + budget.control_s)
    ctx = replace(prepared.ctx, deadline_s=deadline_s)
    late = fit_control(best[0], _learnt_from(best, prepared), prepared.backbone, ctx)
    owes_nothing = best[0].strategy == FromScratch.name
    return late if owes_nothing else late or early


def _learnt_from(best: tuple[TrialRecord, bool], prepared: Prepared) -> Dataset:
    """Return the images that the best classifier was fitted to."""
    hidden = prepared.dataset.hide_test()
    return hidden.with_val_in_train() if best[1] else hidden
