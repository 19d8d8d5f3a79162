"""Inputs of the decision: profile, and strategies with their first hyperparameters."""

from dataclasses import dataclass

from advisor.types.profile import Profile
from strategies.base import Strategy
from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone, input_sizes
from strategies.registry import STRATEGIES


@dataclass(frozen=True)
class Candidate:
    """A strategy with the hyperparameters that it would first be applied with to a dataset.

    Attributes
    ----------
    image_passes
        Cost of a fit with them, in forward passes of one image.
    inapplicable
        Why it does not apply to the dataset; None if it does.
    peak_bytes
        Largest memory of a fit in bytes; None if it was not predicted.
    """

    strategy: Strategy
    image_passes: float
    inapplicable: str | None = None
    peak_bytes: int | None = None

    @property
    def name(self) -> str:
        """Name of the strategy."""
        return self.strategy.name

    @property
    def input_px(self) -> int | None:
        """Input size of a fit; None: that of the profile."""
        px: int | None = self.strategy.hyperparameters().get("input_px")
        return px


@dataclass(frozen=True)
class DecisionInputs:
    """All that a decision depends on besides the priors.

    Attributes
    ----------
    candidates
        All strategies, from cheap to expensive, each with the profile's input size first and then
        with smaller ones.
    """

    profile: Profile
    candidates: tuple[Candidate, ...]

    def candidate(self, name: str, input_px: int | None = None) -> Candidate:
        """Return a strategy by its name; by default with the profile's input size."""
        return next(
            c
            for c in self.candidates
            if c.name == name and (input_px is None or c.input_px in (input_px, None))
        )

    @property
    def full_size(self) -> tuple[Candidate, ...]:
        """The strategies with the profile's input size."""
        names = dict.fromkeys(c.name for c in self.candidates)
        return tuple(self.candidate(name) for name in names)

    @property
    def applicable(self) -> tuple[Candidate, ...]:
        """The strategies that apply to the dataset, with the profile's input size."""
        return tuple(c for c in self.full_size if c.inapplicable is None)


def make_candidates(
    profile: Profile, dataset: Dataset, backbone: Backbone, ctx: RunContext | None = None
) -> tuple[Candidate, ...]:
    """Return all strategies with the starting points that they choose from the profile.

    Each has the input sizes of the backbone (`input_sizes`). Without a context, the memory of a
    fit is not predicted.
    """
    starts = [strategy.starting_point(profile) for strategy in STRATEGIES.values()]
    shapes = [s.with_input_px(px) for s in starts for px in input_sizes(backbone)]

    def candidate(s: Strategy) -> Candidate:
        reason = s.inapplicable(dataset, backbone)
        peak = s.peak_bytes(dataset, backbone, ctx) if reason is None and ctx is not None else None
        return Candidate(s, s.image_passes(dataset, backbone), reason, peak)

    return tuple(candidate(s) for s in dict.fromkeys(shapes))
