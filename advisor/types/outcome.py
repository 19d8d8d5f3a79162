"""Dataclasses of the result of a run: trials, best trial, test evaluation, transfer gain, soup."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from advisor.types.advice import Advice
from advisor.types.notebook import outcome_frame, outcome_html
from advisor.types.summary import outcome_text
from strategies.core.metrics import Evaluation, Interval

if TYPE_CHECKING:
    from pandas import DataFrame

Ended = Literal["time", "trials", "unbeatable", "no_candidate", "interrupted"]
"""Why a search ended.

"unbeatable": even a trial without a validation error would be no relevant improvement.
"no_candidate": no strategy is left that may still win.
"""


TransferVerdict = Literal["positive", "none", "negative", "unclear", "undetermined"]


@dataclass(frozen=True)
class TrialRecord:
    """One trial of a search: its validation score, or the reason why it has none.

    Attributes
    ----------
    val_accuracy
        Validation accuracy; None if the trial failed, was pruned or was interrupted.
    seconds
        Time that the trial took.
    reason
        Why there is no score; None if there is one.
    pruned
        Whether the trial was pruned: stopped early because it could not win.
    n_train
        Number of train images it was fitted to, if the time allowed only those that the advice
        had measured. None: all.
    """

    number: int
    strategy: str
    hyperparameters: Mapping[str, Any]
    val_accuracy: Interval | None
    seconds: float
    reason: str | None
    pruned: bool = False
    n_train: int | None = None


@dataclass(frozen=True)
class ClassGain:
    """Transfer gain of one class.

    Attributes
    ----------
    n
        Number of test images of the class.
    gain
        Accuracy within the class minus that of the control.
    """

    name: str
    n: int
    gain: Interval


@dataclass(frozen=True)
class TransferGain:
    """Accuracy with pretrained weights minus that of a control without them, on the same images.

    Attributes
    ----------
    control
        Description of the control.
    verdict
        "positive" or "negative" if the interval is above or below 0; "none" if it is narrow and
        contains 0; "unclear" if it is wide and contains 0. "undetermined" if the gain is not
        negative and the control is not significantly better than always predicting the most
        frequent class: its accuracy after more training is then unknown.
    n
        Number of images that both were evaluated on.
    per_class
        Gain of each class; empty if `verdict` is "undetermined".
    """

    control: str
    gain: Interval
    verdict: TransferVerdict
    n: int
    per_class: tuple[ClassGain, ...]


@dataclass(frozen=True)
class Soup:
    """Model soup: average of the weights of the best training runs of a search.

    Attributes
    ----------
    trials
        Numbers of the trials whose weights were averaged, in the order in which they were added.
    val_accuracy
        Validation accuracy of the average, on the images that also selected it; None if no
        average was evaluated.
    alone
        Validation accuracy of the best trial alone, which the average had to beat.
    kept
        Whether the average won and is the classifier.
    reason
        If it is not, why the best trial was used instead.
    """

    trials: tuple[int, ...]
    val_accuracy: Interval | None
    alone: Interval
    kept: bool
    reason: str | None = None


@dataclass(frozen=True)
class Outcome:
    """Result of ``tl-auto run``.

    Attributes
    ----------
    advice
        The advice that the search started from.
    best
        The best trial; the classifier was made from it.
    test
        Evaluation of the classifier on test, done once; None without test images.
    refitted
        Whether the classifier was fitted again on train and validation together.
    folder
        The run folder.
    seconds
        Time that the run took.
    n_train
        Number of train images, of which the advice may have measured a sample.
    transfer_gain
        Transfer gain on test; None if no control was trained or there is no test.
    ended
        Why the search ended.
    n_folds
        Number of cross-validation folds (of train and validation together) behind the score of a
        trial; 1: trials are scored on validation.
    soup
        The model soup; None with fewer than two training runs, or if it was not asked for. If it
        was kept, the validation accuracy of `best` is that of the average.
    """

    advice: Advice
    trials: tuple[TrialRecord, ...]
    best: TrialRecord
    test: Evaluation | None
    refitted: bool
    folder: Path
    seconds: float
    n_train: int
    transfer_gain: TransferGain | None = None
    ended: Ended = "time"
    n_folds: int = 1
    soup: Soup | None = None

    def __repr__(self) -> str:
        """Return the result, the validation accuracy and the cost in a few lines."""
        return outcome_text(self)

    def _repr_html_(self) -> str:
        """Return what notebooks show: the result and the best trials."""
        return outcome_html(self)

    def to_frame(self) -> "DataFrame":
        """Return a table of pandas with one row per trial.

        Columns
        -------
        number, strategy, seconds, pruned, reason, n_train
            As in `TrialRecord`.
        val_accuracy, val_accuracy_low, val_accuracy_high
            Validation accuracy with its interval, in [0, 1]; missing without a score.
        params_NAME
            The hyperparameter NAME, missing where a strategy has none of this name.

        Raises
        ------
        TransferError
            If pandas is not installed.
        """
        return outcome_frame(self)
