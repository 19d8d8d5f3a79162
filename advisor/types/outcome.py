"""What a run found: its trials, its best one, and how that did on test."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from advisor.types.advice import Advice
from strategies.core.metrics import Evaluation, Interval

Ended = Literal["time", "trials", "unbeatable", "no_contender", "interrupted"]
"""Why a search was over; "unbeatable": even a trial without an error on validation would gain too
little to count; "no_contender": no strategy that may still win is left."""


TransferVerdict = Literal["positive", "none", "negative", "unclear", "untold"]


@dataclass(frozen=True)
class TrialRecord:
    """One trial of a search: a score on validation, or the reason why there is none."""

    number: int
    strategy: str
    hyperparameters: Mapping[str, Any]
    val_accuracy: Interval | None
    seconds: float
    reason: str | None
    pruned: bool = False


@dataclass(frozen=True)
class ClassGain:
    """What pretraining brought to one class; `sure` if that is more than chance allows for."""

    name: str
    n: int
    gain: Interval
    sure: bool


@dataclass(frozen=True)
class TransferGain:
    """Accuracy with pretrained weights minus that of a control without them, on the same images.

    Attributes
    ----------
    control
        What the control was.
    verdict
        "negative" where the interval lies below 0, "none" where it is narrow around 0; "untold"
        where the control itself is no better than always naming the commonest class, so that what
        it would reach with more time is not known.
    per_class
        Empty where nothing is told.
    """

    control: str
    gain: Interval
    verdict: TransferVerdict
    n: int
    per_class: tuple[ClassGain, ...]


@dataclass(frozen=True)
class Soup:
    """What came of averaging the weights of the best training runs of a run.

    Attributes
    ----------
    trials
        Those whose weights were averaged, in the order in which they were put in.
    val_accuracy
        Of the average, on the images that chose it; None if no average was judged.
    alone
        Of the best trial alone, which it had to beat.
    kept
        Whether it won, and is the classifier.
    reason
        Why the trial was kept instead.
    """

    trials: tuple[int, ...]
    val_accuracy: Interval | None
    alone: Interval
    kept: bool
    reason: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The answer of ``tl-auto run``.

    Attributes
    ----------
    test
        The one judgement on the test images; None if there are none.
    refitted
        Whether the classifier was fitted once more on train and validation together.
    transfer_gain
        What pretraining brought; None where no control was trained, or there is no test.
    ended
        Why the search was over.
    n_folds
        How many parts of train and validation trials were judged on, each without having learnt from it;
        1: validation alone.
    soup
        What came of averaging the best training runs; None where there were not two, or it was not
        asked for. If it was kept, the validation accuracy of `best` is the average's.
    """

    advice: Advice
    trials: tuple[TrialRecord, ...]
    best: TrialRecord
    test: Evaluation | None
    refitted: bool
    folder: Path
    seconds: float
    transfer_gain: TransferGain | None = None
    ended: Ended = "time"
    n_folds: int = 1
    soup: Soup | None = None
