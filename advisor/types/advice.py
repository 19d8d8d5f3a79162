"""The nouns of the advice: frozen, and the same in Python, JSON and reports."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from advisor.types.profile import BackboneScore, Profile
from strategies.core.metrics import Interval
from strategies.data.image import Skipped

SCHEMA_VERSION = 2

Size = Literal["small", "large"]
Domain = Literal["similar", "different", "unknown"]
Severity = Literal["issue", "tip"]


@dataclass(frozen=True)
class Finding:
    """A coded remark about the data, the domain or the transfer, with what to do about it.

    Attributes
    ----------
    examples
        Files or classes that show it, the clearest first.
    """

    code: str
    severity: Severity
    title: str
    detail: str
    action: str
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quadrant:
    """Where a dataset lies, and what the textbook says of that place.

    Attributes
    ----------
    rule
        The strategy that CS231n's rule of thumb names for this quadrant.
    borderline
        Whether an axis is too close to its threshold to call.
    candidates
        The rules of all quadrants that the dataset may be in, `rule` first. Different quadrants can
        have the same rule, so a borderline place can have one candidate.
    size_decades
        Position on the size axis: powers of ten above (positive: large) or below the border.
    similarity
        Position on the domain axis; None where it is unknown.
    """

    size: Size
    domain: Domain
    rule: str
    borderline: bool
    candidates: tuple[str, ...]
    size_decades: Interval
    similarity: Interval | None


@dataclass(frozen=True)
class Recommendation:
    """A strategy with its first hyperparameters, what to expect, what it costs, and why."""

    strategy: str
    backbone: str
    accuracy: Interval
    seconds: Interval
    hyperparameters: Mapping[str, Any]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Rejection:
    """A strategy that does not apply, and why."""

    strategy: str
    reason: str


@dataclass(frozen=True)
class Decision:
    """What `recommend` decides: strategies best first, and those that do not apply."""

    quadrant: Quadrant
    recommendations: tuple[Recommendation, ...]
    rejections: tuple[Rejection, ...]


@dataclass(frozen=True)
class Choice:
    """Something that was chosen automatically, where it comes from, and how to pin it."""

    name: str
    value: str
    source: str


FARTHEST = 10_000
"""Images a class up to which it is predicted when training from scratch catches up."""


@dataclass(frozen=True)
class TransferRisk:
    """The chance that a strategy does worse than training from random weights.

    Attributes
    ----------
    probability
        That `gain` is below 0, in [0, 1].
    gain
        Predicted transfer gain: accuracy of the strategy minus that of ``from_scratch``.
    catches_up
        Images a class from which on training from scratch is predicted to do as well, not
        beyond `FARTHEST`; None if it does now, or is not expected to before that.
    """

    strategy: str
    probability: float
    gain: Interval
    break_even_n_per_class: Interval | None = None


@dataclass(frozen=True)
class Advice:
    """The answer of ``tl-advise``: strategies best first, and all that it rests on.

    Attributes
    ----------
    backbones
        Those that were compared, best first; empty where there was one.
    command
        What gives this advice again.
    risks
        Of negative transfer, by strategy; empty where nothing is known of it.
    """

    dataset: str
    data: Path
    recommendations: tuple[Recommendation, ...]
    rejections: tuple[Rejection, ...]
    quadrant: Quadrant
    profile: Profile
    findings: tuple[Finding, ...]
    quarantine: tuple[Skipped, ...]
    choices: tuple[Choice, ...]
    split: str
    n_test: int
    seed: int
    seconds: float
    backbones: tuple[BackboneScore, ...] = ()
    command: str = ""
    risks: tuple[TransferRisk, ...] = ()

    @property
    def best(self) -> Recommendation:
        """The recommended strategy."""
        return self.recommendations[0]
