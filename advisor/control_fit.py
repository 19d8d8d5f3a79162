"""The control of a run: what was chosen, once more without pretrained weights."""

from dataclasses import dataclass

from advisor.transfer_gain import transfer_gain
from advisor.types import TransferGain, TrialRecord
from strategies.core.backbone import Backbone
from strategies.core.classifier import ImageClassifier, judge
from strategies.core.errors import OutOfTime
from strategies.core.metrics import Evaluation
from strategies.core.run import RunContext
from strategies.core.task import ImageTask, Split, labels_of
from strategies.from_scratch import FromScratch
from strategies.registry import get_strategy

CONTROL_SHARE = 0.1
"""Share of the time limit that the control may take."""


@dataclass(frozen=True)
class Control:
    """A classifier that owes nothing to pretraining, and what it is, for people."""

    name: str
    classifier: ImageClassifier


def fit_control(
    best: TrialRecord, task: ImageTask, backbone: Backbone, ctx: RunContext
) -> Control | None:
    """Fit what the best trial is compared with: a probe on random weights, or all from scratch.

    None, with a note, where the best trial owes nothing to pretraining itself, or the time did
    not suffice for a single step.

    Parameters
    ----------
    task
        The pictures that the best trial was fitted to, without test.
    ctx
        Its deadline bounds the control, which cools down in time: what it reaches in so short a
        time is a lower bound of what could be had without pretraining.
    """
    if best.strategy == FromScratch.name:
        ctx.on_note("The best trial was trained from scratch: no transfer is left to measure.")
        return None
    strategy = get_strategy(best.strategy)
    try:
        if strategy.selects_on_val:
            fresh = FromScratch(input_px=best.hyperparameters.get("input_px"))
            return Control(FromScratch.name, fresh.fit(task, backbone, ctx))
        same = {**best.hyperparameters, "strength": None}  # that one suits pretrained features
        fitted = strategy(**same).fit(task, backbone.with_random_weights(), ctx)
    except OutOfTime:
        ctx.on_note("The control without pretrained weights was left out: there was no time.")
        return None
    return Control(f"{best.strategy} on random weights", fitted)


def judge_both(
    classifier: ImageClassifier, control: Control | None, test: Split
) -> tuple[Evaluation, TransferGain | None]:
    """Judge a classifier on test, and against its control on the same pictures."""
    paths, labels = [p.path for p in test], labels_of(test)
    said = classifier.predict_proba(paths)
    found = judge(said, test, classifier.classes)
    if control is None:
        return found, None
    hits, control_hits = (
        p.argmax(axis=1) == labels for p in (said, control.classifier.predict_proba(paths))
    )
    return found, transfer_gain(hits, control_hits, labels, classifier.classes, control.name)
