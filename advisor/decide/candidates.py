"""Inputs of the decision: profile, strategies with their first hyperparameters, and pilot."""

from dataclasses import dataclass

from advisor.types.profile import Pilot, Profile
from strategies.base import Strategy
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
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
    """

    strategy: Strategy
    image_passes: float
    inapplicable: str | None = None

    @property
    def name(self) -> str:
        """Name of the strategy."""
        return self.strategy.name


@dataclass(frozen=True)
class DecisionInputs:
    """All that a decision depends on besides the priors.

    Attributes
    ----------
    candidates
        All strategies, from cheap to expensive.
    pilot
        Result of the pilot; None if there was none.
    """

    profile: Profile
    candidates: tuple[Candidate, ...]
    pilot: Pilot | None = None

    def candidate(self, name: str) -> Candidate:
        """Return a strategy by its name."""
        return next(c for c in self.candidates if c.name == name)

    @property
    def applicable(self) -> tuple[Candidate, ...]:
        """The strategies that apply to the dataset."""
        return tuple(c for c in self.candidates if c.inapplicable is None)


def make_candidates(
    profile: Profile, dataset: Dataset, backbone: Backbone
) -> tuple[Candidate, ...]:
    """Return all strategies with the starting points that they choose from the profile."""
    starts = [strategy.starting_point(profile) for strategy in STRATEGIES.values()]
    return tuple(
        Candidate(s, s.image_passes(dataset, backbone), s.inapplicable(dataset, backbone))
        for s in starts
    )
