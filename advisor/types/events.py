"""Progress events of a search: trial begun, evaluated on validation, ended."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from advisor.types.outcome import TrialRecord
from strategies.core.metrics import Interval


@dataclass(frozen=True)
class Event:
    """Something that happened in a search.

    Attributes
    ----------
    kind
        "begun": a trial began. "round": it was evaluated on validation after some training.
        "ended": it ended.
    number, strategy
        Number of the trial, and the strategy that it fits.
    seconds_left
        Time until trials must end; infinite without a time limit.
    step
        For "round", the number of the evaluation within the trial, from 1; otherwise 0.
    accuracy
        Validation accuracy of this trial; None if it has none (yet).
    reason
        For an ended trial without a score, the reason.
    best
        The incumbent: the best trial of the run so far.
    hyperparameters
        Those that the trial begins with. A strategy may choose others by cross-validation, see
        `TrialRecord`.
    """

    kind: Literal["begun", "round", "ended"]
    number: int
    strategy: str
    seconds_left: float
    step: int = 0
    accuracy: Interval | None = None
    reason: str | None = None
    best: TrialRecord | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)


OnEvent = Callable[[Event], None]
