"""Inputs of the decision: profile, strategies with their first hyperparameters, and pilot."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from advisor.types.profile import Pilot, Profile
from strategies.base import Strategy
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.registry import STRATEGIES
from strategies.training.defaults import Measurements


@dataclass(frozen=True)
class Candidate:
    """A strategy as it would first be applied to a dataset.

    Attributes
    ----------
    hyperparameters
        Its starting point.
    image_passes
        Cost of a fit with them, in forward passes of one image.
    inapplicable
        Why it does not apply to the dataset; None if it does.
    """

    strategy: type[Strategy]
    hyperparameters: Mapping[str, Any]
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
    """Return all strategies with the starting points that they choose from the measurements."""
    found = []
    for kind in STRATEGIES.values():
        strategy = kind.starting_point(measurements_of(profile))
        found.append(
            Candidate(
                kind,
                strategy.hyperparameters(),
                strategy.image_passes(dataset, backbone),
                strategy.inapplicable(dataset, backbone),
            )
        )
    return tuple(found)


def measurements_of(profile: Profile) -> Measurements:
    """Return the measurements of a profile that starting points depend on."""
    return Measurements(
        n_train=profile.n_train,
        n_depths=len(profile.depth_names),
        input_px=profile.input_px,
        n_measured=profile.n_measured,
        probe_accuracy=profile.linear_probe.accuracy.mid,
        domain_shift=profile.domain_shift,
        flip_asymmetry=profile.flip_asymmetry,
    )
