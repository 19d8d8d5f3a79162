"""Executor of trials, and what driver and executor pass to each other: jobs, scores, results."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
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


class Executor(ABC):
    """Carries out trials. It decides nothing, and owns no study, scheduler, incumbent or clock."""

    @property
    @abstractmethod
    def capacity(self) -> int:
        """Number of trials that can run at a time now."""

    @abstractmethod
    def compute_features(self) -> None:
        """Compute the features of the images before the trials, if several can share the work.

        Otherwise, and for what is left when the time is up, the trials do.
        """

    @abstractmethod
    def submit(self, job: Job, on_score: OnScore) -> Future[TrialResult]:
        """Begin a trial; return the future of its result.

        Parameters
        ----------
        on_score
            Called in this thread, here or in `wait`.
        """

    @abstractmethod
    def wait(self, futures: Collection[Future[TrialResult]]) -> list[Future[TrialResult]]:
        """Wait until at least one of some trials has ended; return all that have ended."""

    @abstractmethod
    def refit(self, record: TrialRecord) -> ImageClassifier | None:
        """Fit a scored trial that was not forgotten again on train and validation together.

        None if it trains a network, which needs validation images, if there is no time, or if it
        fails.
        """

    @abstractmethod
    def forget(self, job: Job) -> None:
        """Delete what a trial that has ended needed."""

    @abstractmethod
    def clear(self) -> None:
        """Delete what all trials needed, after the run."""
