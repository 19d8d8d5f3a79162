"""The nouns of domain similarity: how far the images are from those of pretraining."""

from dataclasses import dataclass
from typing import Literal

from strategies.core.metrics import Interval


@dataclass(frozen=True)
class NearestSourceClass:
    """What the old head calls most images of a class, and what share of them."""

    name: str
    source_class: str
    share: Interval


@dataclass(frozen=True)
class HeadEvidence:
    """What the network's old head says of the images, before anything is learnt.

    Attributes
    ----------
    entropy
        Mean entropy of its predictions in nats: 0 = sure, log(number of old classes) = no idea.
    energy
        Mean energy in nats, lower for images like those of pretraining.
    confident_share, source_confident_share
        Share of predictions of at least 50%; the same on images of the pretraining domain
        (None where that was not measured).
    lands_on
        One for every class, surest first.
    leep, nce
        Mean log-likelihood in nats of the labels given what the old head says, at most 0, higher
        is more related. Comparable between networks on one dataset, not between datasets.
    """

    entropy: Interval
    energy: Interval
    confident_share: Interval
    source_confident_share: float | None
    nearest_source_classes: tuple[NearestSourceClass, ...]
    leep: Interval
    nce: Interval


@dataclass(frozen=True)
class DomainSimilarity:
    """How much the images look, to the network, like those it was pretrained with.

    Attributes
    ----------
    score
        1 = indistinguishable from ImageNet, 0 = as far as the farthest set measured.
    basis
        The statistic that the score is read from.
    reference
        What the images were compared with, for people.
    shift_nats
        Mean BatchNorm shift in nats, 0 for ImageNet itself; None without BatchNorm.
    per_depth
        The same by depth of the backbone from input to output; empty without BatchNorm. None
        for a depth that no BatchNorm layer works for.
    kernel_distance
        Unbiased MMD^2 to the reference's features, as a share of what it is at most: 0 for
        ImageNet itself. None without a reference at this input size.
    p_value
        Chance of so large a kernel distance among images drawn like the reference.
    between
        The two measured landmarks it lies between, near and far (one of them may be None).
    evidence
        What the old head says; None where the network has none.
    """

    score: Interval
    basis: Literal["bn_shift", "kernel"]
    reference: str
    shift_nats: Interval | None
    per_depth: tuple[Interval | None, ...]
    kernel_distance: Interval | None
    p_value: float | None
    between: tuple[str | None, str | None]
    evidence: HeadEvidence | None

    def shift_at(self, depth: int) -> float | None:
        """Return the middle of the shift at a depth, counted from 1, where it was measured."""
        at = self.per_depth[depth - 1] if self.per_depth else None
        return None if at is None else at.mid
