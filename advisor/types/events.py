"""What a search tells those who watch it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from advisor.types.outcome import TrialRecord
from strategies.core.metrics import Interval


@dataclass(frozen=True)
class Event:
    """Something that happened in a search.

    Attributes
    ----------
    kind
        A trial began, was judged after a round of training, or ended.
    step
        The round of training, from 1; 0 otherwise.
    accuracy
        On validation, of this trial; None where there is none (yet).
    reason
        Why an ended trial has no score.
    best
        The best trial of the run so far.
    seconds_left
        Until trials must end; infinite without a limit.
    """

    kind: Literal["begun", "round", "ended"]
    number: int
    strategy: str
    seconds_left: float
    step: int = 0
    accuracy: Interval | None = None
    reason: str | None = None
    best: TrialRecord | None = None


OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Hear of an event and do nothing."""
