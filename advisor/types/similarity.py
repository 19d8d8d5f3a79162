"""Dataclasses of domain similarity, and of the statistics of the backbone in use."""

from dataclasses import dataclass

from strategies.core.metrics import Interval

IMAGENET = "in1k"
"""timm's name of ImageNet-1k, which similarities are measured to."""


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
    confident_share, source_confident_share
        Share of predictions with a probability of at least 50%; the same on images of the
        pretraining domain (None if not measured).
    nearest_source_classes
        The most predicted source class of every class; largest share (by its lower bound) first.
    leep
        Mean log-likelihood in nats of the labels given the probabilities of the source classes.
        At most 0; higher means more related. Comparable between networks on one dataset, not
        between datasets.
    """

    entropy: Interval
    confident_share: Interval
    source_confident_share: float | None
    nearest_source_classes: tuple[NearestSourceClass, ...]
    leep: Interval


@dataclass(frozen=True)
class DomainSimilarity:
    """Domain similarity: how close images are to ImageNet, as the embedded network sees them.

    A property of the images: the same for every backbone and input size.

    Attributes
    ----------
    score
        Similarity: 1 = indistinguishable from ImageNet, 0 = as far as the farthest landmark
        dataset.
    shift_nats
        Mean BatchNorm shift of the embedded network in nats, 0 for ImageNet itself.
    reference
        Description of what the images are compared with.
    n_images
        Number of images that it was measured on.
    between
        Names of the landmark datasets next to it: the nearer to ImageNet, then the farther (one
        of them may be None).
    """

    score: Interval
    shift_nats: Interval
    reference: str
    n_images: int
    between: tuple[str | None, str | None]


@dataclass(frozen=True)
class BackboneStatistics:
    """What the layers and the head of the backbone in use make of the images.

    They are comparable between datasets on one backbone and input size only.

    Attributes
    ----------
    reference
        Description of what its activations are compared with.
    shift_nats
        Mean BatchNorm shift in nats; None without BatchNorm.
    per_depth
        BatchNorm shift by depth of the backbone, from input to output; None for a depth without a
        BatchNorm layer. Empty without BatchNorm.
    kernel_distance
        Unbiased MMD^2 to the features of the reference, as a share of its maximum: 0 for the
        reference itself. None without a reference at this input size.
    p_value
        Probability of so large a kernel distance if the images were drawn like the reference;
        None without `kernel_distance`.
    head
        Predictions of the pretrained head; None if the network has none.
    """

    reference: str
    shift_nats: Interval | None
    per_depth: tuple[Interval | None, ...]
    kernel_distance: Interval | None
    p_value: float | None
    head: HeadEvidence | None

    def shift_at(self, depth: int) -> float | None:
        """Return the estimated shift at a depth (from 1); None where it was not measured."""
        at = self.per_depth[depth - 1] if self.per_depth else None
        return None if at is None else at.mid
