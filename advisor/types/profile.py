"""The nouns of what probes and pilots measure; `advisor.types.advice` holds all others."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from advisor.types.similarity import DomainSimilarity
from strategies.core.metrics import Interval


@dataclass(frozen=True)
class ProbeResult:
    """A linear probe at one depth (0: all depths side by side), judged by cross-validation.

    Attributes
    ----------
    strength
        The L2 strength that was best.
    gain_over_penultimate
        Accuracy minus that of the penultimate depth, paired image by image.
    loss_gain
        Logarithm of the penultimate depth's log-loss over its own on the same images, each at
        its best strength and temperature: above 0 where its own is lower.
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
        (images per class, accuracy), from few to many: cross-validated on subsamples, and
        continued by a power law.
    """

    measured: tuple[tuple[float, Interval], ...]
    extrapolated: tuple[tuple[float, Interval], ...]


@dataclass(frozen=True)
class Pilot:
    """A short full fine-tuning on some of the images, judged on others of them.

    Attributes
    ----------
    gain
        Its accuracy minus that of a linear probe on the same images, in [-1, 1].
    loss_gain
        Logarithm of the probe's log-loss over its own on the images judged, each at its best
        temperature: above 0 where its own is lower.
    n_train, n_judged
        Images that it was trained and judged on.
    hyperparameters
        What it was trained with.
    svm_accuracy, svm_gain, svm_loss_gain
        Of the layer SVM as it would be fitted, quarters and views included, on the same images.
    """

    gain: Interval
    accuracy: Interval
    loss_gain: Interval
    svm_gain: Interval
    svm_accuracy: Interval
    svm_loss_gain: Interval
    n_train: int
    n_judged: int
    hyperparameters: Mapping[str, Any]
    seconds: float


def loss_words(gain: Interval) -> str:
    """Say a logarithm of log-losses (`Pilot.loss_gain`) as a change in per cent."""
    low, mid, high = (100 * math.expm1(-g) for g in (gain.high, gain.mid, gain.low))
    return f"log-loss {mid:+.0f}% [{low:+.0f}, {high:+.0f}]"


@dataclass(frozen=True)
class BackboneScore:
    """A backbone's linear probe on the dataset, beside others on the same images.

    Attributes
    ----------
    rank
        From 1; equal where chance alone can explain the difference.
    behind_best
        Accuracy of the most accurate one minus this one's, paired; None for that one itself.
    """

    name: str
    rank: int
    accuracy: Interval
    behind_best: Interval | None
    ms_per_image: float
    gmacs: float
    input_px: int


@dataclass(frozen=True)
class AlternativeBackbone:
    """Another backbone's linear probe on the same images.

    Attributes
    ----------
    lead
        Its accuracy minus that of the backbone in use, paired image by image.
    """

    name: str
    accuracy: Interval
    lead: Interval


@dataclass(frozen=True)
class Profile:
    """What was measured about a dataset on a backbone.

    Attributes
    ----------
    n_by_class
        Images in train and validation by class.
    similarity
        None where it cannot be measured (no BatchNorm).
    probes
        Softmax at the penultimate depth and on all, then SVMs at every depth and on all.
    layer_svm
        The SVM at the depth that cross-validation chose, judged without the optimism of choosing.
    n_measured
        Images of train and validation that similarity and probes were measured on.
    feature_width
        Channels of the backbone's penultimate activations.
    ms_per_image
        Measured time of one frozen forward pass, reading included.
    image_passes
        Cost of every strategy with its default hyperparameters, in forward passes.
    why_not
        Reasons of the strategies that do not apply.
    random_probes
        SVMs at every depth of the same network with random weights: what the architecture
        brings without pretraining. Empty where it was not measured.
    curve, knn, pilot
        Accuracy over images per class; of the nearest neighbours at the penultimate depth; of a
        short fine-tuning. None where it was not measured.
    transfer_gain
        Cross-validated accuracy of the best pretrained depth minus that of the best depth of
        random weights on the same images, in [-1, 1]. None where it was not measured.
    pixel_probe
        Accuracy of a linear rule on grey thumbnails, by cross-validation; None if not measured.
    head_s
        Measured seconds of fitting a strategy's linear head with all choices, features at hand.
    build_s
        Measured seconds of making the network.
    fine_tune_defaults
        Learning rate, blend and mirroring that the fine-tuning strategies would choose by
        themselves; empty where that was not asked.
    passes_per_trained_image
        Measured cost of training on an image, in forward passes; None: not measured.
    rival
        What the embedded backbone reaches on the same images, where this one is in doubt; None
        where that was not measured.
    transferability
        LogME and regularised H-score at the penultimate depth, by name; higher is better.
        Comparable between backbones on one dataset, not between datasets.
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
    flops_shares: tuple[float, ...]
    similarity: DomainSimilarity | None
    probes: tuple[ProbeResult, ...]
    layer_svm: ProbeResult
    majority_share: float
    n_measured: int
    ms_per_image: float
    image_passes: Mapping[str, float]
    inapplicable: Mapping[str, str]
    random_probes: tuple[ProbeResult, ...] = ()
    curve: LearningCurve | None = None
    knn: Interval | None = None
    transferability: Mapping[str, Interval] = field(default_factory=dict)
    pilot: Pilot | None = None
    transfer_gain: Interval | None = None
    pixel_probe: Interval | None = None
    head_s: Mapping[str, float] = field(default_factory=dict)
    build_s: float = 0.0
    passes_per_trained_image: float | None = None
    fine_tune_defaults: Mapping[str, float | bool] = field(default_factory=dict)
    alternative: AlternativeBackbone | None = None

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.n_by_class)

    @property
    def n_per_class(self) -> float:
        """Mean number of images per class."""
        return self.n / self.n_classes

    @property
    def linear_probe(self) -> ProbeResult:
        """The softmax probe at the penultimate depth."""
        return self.probes[0]
