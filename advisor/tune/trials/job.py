"""What driver and executor pass to each other: jobs, scores while they run, and results."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advisor.tune.interventions import hyperparameters_of
from advisor.types.outcome import TrialRecord
from strategies.core.metrics import Interval
from strategies.models.classifier import ImageClassifier


@dataclass(frozen=True)
class Job:
    """A trial to carry out.

    Attributes
    ----------
    settings
        The strategy's hyperparameters, and the backbone if it is not the run's own.
    known
        Values that an earlier attempt at the trial reported, by step.
    """

    number: int
    strategy: str
    settings: Mapping[str, Any]
    known: Mapping[int, float] = field(default_factory=dict)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The strategy's hyperparameters."""
        return hyperparameters_of(self.settings)


@dataclass(frozen=True)
class Score:
    """How well a trial does while it runs.

    Attributes
    ----------
    step
        Number of the evaluation within the fit, from 1; 0 after a fold.
    accuracy
        Validation accuracy at this step; None after a fold.
    values
        Values by step that the trial may be pruned by; empty if it may not be pruned now.
    """

    step: int = 0
    accuracy: Interval | None = None
    values: Mapping[int, float] = field(default_factory=dict)


OnScore = Callable[[Job, Score], bool]
"""Called with the scores of a running trial; returns whether the trial is to be stopped."""


@dataclass(frozen=True)
class TrialResult:
    """A trial that was carried out.

    Attributes
    ----------
    classifier
        None if the trial has no score.
    saved
        Folder in which the classifier is saved already; None: it is in memory only.
    """

    record: TrialRecord
    classifier: ImageClassifier | None = None
    saved: Path | None = None
