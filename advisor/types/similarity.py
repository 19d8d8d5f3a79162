"""Dataclasses of domain similarity: how close the images are to the pretraining images."""

from dataclasses import dataclass
from typing import Literal

from strategies.core.metrics import Interval


@dataclass(frozen=True)
class NearestSourceClass:
    """Source class that the pretrained head predicts most often for the images of a class.

    Attributes
    ----------
    name
        Class of the dataset.
    share
        Share of its images for which `source_class` is predicted.
    """

    name: str
    source_class: str
    share: Interval


@dataclass(frozen=True)
class HeadEvidence:
    """Predictions of the pretrained head (source classes) on the images, before any training.

    Attributes
    ----------
    entropy
        Mean entropy of its predictions in nats, from 0 (certain) to log(number of source classes)
        (uniform).
    energy
        Mean energy in nats; lower for images like those of pretraining.
    confident_share, source_confident_share
        Share of predictions with a probability of at least 50%; the same on images of the
        pretraining domain (None if not measured).
    nearest_source_classes
        The most predicted source class of every class; largest share (by its lower bound) first.
    leep, nce
        Mean log-likelihood in nats of the labels given the source classes: LEEP by predicted
        probabilities, NCE (negative conditional entropy) by predicted classes. At most 0; higher
        means more related. Comparable between networks on one dataset, not between datasets.
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
    """Domain similarity: how close the network's activations are to those on pretraining images.

    Attributes
    ----------
    score
        Similarity: 1 = indistinguishable from ImageNet, 0 = as far as the farthest landmark
        dataset.
    basis
        The statistic that the score is computed from: BatchNorm shift or kernel distance.
    reference
        Description of what the images are compared with.
    shift_nats
        Mean BatchNorm shift in nats, 0 for ImageNet itself; None without BatchNorm.
    per_depth
        BatchNorm shift by depth of the backbone, from input to output; None for a depth without a
        BatchNorm layer. Empty without BatchNorm.
    kernel_distance
        Unbiased MMD^2 to the features of the reference, as a share of its maximum: 0 for ImageNet
        itself. None without a reference at this input size.
    p_value
        Probability of so large a kernel distance if the images were drawn like the reference;
        None without `kernel_distance`.
    between
        Names of the landmark datasets next to it: the nearer to ImageNet, then the farther (one
        of them may be None).
    evidence
        Predictions of the pretrained head; None if the network has none.
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
        """Return the estimated shift at a depth (from 1); None where it was not measured."""
        at = self.per_depth[depth - 1] if self.per_depth else None
        return None if at is None else at.mid
