"""Dataclasses of the measurements: probes, learning curve, and the profile of a dataset."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from advisor.types.similarity import BackboneStatistics, DomainSimilarity
from strategies.core.metrics import FlipAsymmetry, Interval
from strategies.models.architectures.family import Family


@dataclass(frozen=True)
class ProbeResult:
    """Cross-validated result of a linear probe at one depth.

    Attributes
    ----------
    depth
        Depth of the backbone from 1; 0: the features of all depths concatenated.
    loss
        "softmax" or "squared_hinge" (a linear SVM).
    accuracy
        Cross-validated accuracy.
    strength
        The best L2 strength.
    gain_over_penultimate
        Accuracy minus that of the reference probe at the penultimate depth, paired by image. The
        reference is the softmax probe; in the random-init control it is the SVM.
    loss_gain
        ``log(log-loss of the reference probe / own log-loss)`` on the same images, each at its
        best strength and temperature. Above 0 if the own log-loss is lower.
    """

    depth: int
    loss: str
    accuracy: Interval
    strength: float
    gain_over_penultimate: Interval
    loss_gain: Interval


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy of the linear probe over the number of images per class.

    Attributes
    ----------
    measured, extrapolated
        Pairs (images per class, accuracy), from few images to many. Measured on subsamples, and
        extrapolated by a power law.
    """

    measured: tuple[tuple[float, Interval], ...]
    extrapolated: tuple[tuple[float, Interval], ...]


@dataclass(frozen=True)
class BackboneScore:
    """Linear probe of one of several compared backbones, on the same images.

    Attributes
    ----------
    rank
        Rank from 1; equal if the difference is not significant.
    accuracy
        Cross-validated accuracy of the linear probe.
    behind_best
        Accuracy of the most accurate backbone minus that of this one, paired by image; None for
        the most accurate one.
    ms_per_image
        Measured time of one frozen forward pass in ms, including reading the image.
    gmacs
        Multiply-accumulate operations of a forward pass at `input_px`, in billions.
    params_m
        Number of parameters in millions.
    size_rank
        Rank by number of parameters, 1 for the largest: a baseline that is hard to beat.
    """

    name: str
    rank: int
    accuracy: Interval
    behind_best: Interval | None
    ms_per_image: float
    gmacs: float
    input_px: int
    params_m: float
    size_rank: int


@dataclass(frozen=True)
class AlternativeBackbone:
    """Linear probe of a backbone other than the one in use, on the same images.

    Attributes
    ----------
    accuracy
        Cross-validated accuracy of its linear probe.
    lead
        Its accuracy minus that of the backbone in use, paired by image.
    """

    name: str
    accuracy: Interval
    lead: Interval


@dataclass(frozen=True)
class Profile:
    """All measurements of a dataset with one backbone, without training a network.

    Attributes
    ----------
    n, n_train, n_val
        Number of images in train and validation together, and in each.
    n_by_class
        Number of images in train and validation, by class.
    imbalance
        Size of the largest class divided by that of the smallest.
    median_side_px
        Median length of the shorter side of an image in pixels.
    backbone, input_px
        Name and input size of the backbone.
    feature_width
        Channels of the backbone's penultimate activations.
    depth_names
        Name of every depth.
    similarity
        Domain similarity of the images, the same for every backbone.
    probes
        Softmax probes at the penultimate depth and on all depths, then SVMs at every depth and on
        all depths.
    best_svm
        The SVM at the depth that cross-validation chose; its accuracy is corrected for the
        optimism of that choice.
    majority_share
        Share of the most frequent class.
    n_measured
        Number of images of train and validation that the probes were measured on.
    ms_per_image
        Measured time of one frozen forward pass in ms, including reading the image.
    random_probes
        Random-init control: SVMs at every depth of the same network with random weights, to show
        what the architecture gives without pretraining. Empty if not measured.
    curve
        Learning curve of the linear probe; None if not measured.
    knn
        Accuracy of nearest neighbours at the penultimate depth; None if not measured.
    transferability
        LogME and regularised H-score at the penultimate depth, by name; higher is better.
        Comparable between backbones on one dataset, not between datasets.
    transfer_gain
        Cross-validated accuracy at the best pretrained depth minus that at the best depth of
        random weights, on the same images, in [-1, 1]. None if not measured.
    pixel_probe
        Cross-validated accuracy of a linear classifier on greyscale thumbnails; None if not
        measured.
    head_s
        Measured seconds to fit a linear head to cached features and to choose its hyperparameters,
        by loss.
    build_s
        Measured seconds to build the network.
    passes_per_trained_image
        Measured cost of training on one image, in forward passes; None if not measured.
    domain_shift
        Domain shift of the images in nats, which training defaults depend on: that of the
        similarity, but with equal weights of all images and without correction for their number.
        None if not measured.
    backbone_statistics
        Statistics of the backbone's own layers and head; None with random weights.
    pretrained_on
        Datasets that the backbone was pretrained on, in timm's names ("in1k" is ImageNet-1k), or
        what the user stated; None if it is not known.
    flip_asymmetry
        Whether images of a class differ from their flips in a common direction; None if it could
        not be measured.
    family, n_layers
        Family of the backbone's architecture, and number of its layers below the head (0 for a
        convolutional network).
    """

    n: int
    n_train: int
    n_val: int
    n_by_class: Mapping[str, int]
    imbalance: float
    median_side_px: float
    backbone: str
    input_px: int
    feature_width: int
    depth_names: tuple[str, ...]
    similarity: DomainSimilarity
    probes: tuple[ProbeResult, ...]
    best_svm: ProbeResult
    majority_share: float
    n_measured: int
    ms_per_image: float
    random_probes: tuple[ProbeResult, ...] = ()
    curve: LearningCurve | None = None
    knn: Interval | None = None
    transferability: Mapping[str, Interval] = field(default_factory=dict)
    transfer_gain: Interval | None = None
    pixel_probe: Interval | None = None
    head_s: Mapping[str, float] = field(default_factory=dict)
    build_s: float = 0.0
    passes_per_trained_image: float | None = None
    domain_shift: float | None = None
    flip_asymmetry: FlipAsymmetry | None = None
    family: Family = "convolutional"
    n_layers: int = 0
    backbone_statistics: BackboneStatistics | None = None
    pretrained_on: str | None = None

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.n_by_class)

    @property
    def n_per_class(self) -> float:
        """Mean number of images per class."""
        return self.n / self.n_classes

    @property
    def n_depths(self) -> int:
        """Number of depths of the backbone."""
        return len(self.depth_names)

    @property
    def probe_accuracy(self) -> float:
        """Cross-validated accuracy of the linear probe."""
        return self.linear_probe.accuracy.mid

    @property
    def linear_probe(self) -> ProbeResult:
        """The softmax probe at the penultimate depth."""
        return self.probes[0]
