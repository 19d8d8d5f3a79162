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
        Accuracy minus that of the penultimate depth, paired picture by picture.
    loss_gain
        Logarithm of the penultimate depth's log-loss over its own on the same pictures, each at
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
    """Accuracy of the linear probe over the number of pictures a class.

    Attributes
    ----------
    measured, extrapolated
        (pictures a class, accuracy), from few to many: cross-validated on subsamples, and
        continued by a power law.
    """

    measured: tuple[tuple[float, Interval], ...]
    extrapolated: tuple[tuple[float, Interval], ...]


@dataclass(frozen=True)
class Pilot:
    """A short full fine-tuning on some of the pictures, judged on others of them.

    Attributes
    ----------
    gain
        Its accuracy minus that of a linear probe on the same pictures, in [-1, 1].
    loss_gain
        Logarithm of the probe's log-loss over its own on the pictures judged, each at its best
        temperature: above 0 where its own is lower.
    n_train, n_judged
        Pictures that it was trained and judged on.
    hyperparameters
        What it was trained with.
    svm_accuracy, svm_gain, svm_loss_gain
        Of the layer SVM as it would be fitted, quarters and views included, on the same pictures.
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
    """A backbone's linear probe on the task, beside others on the same pictures.

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
class Rival:
    """Another backbone's linear probe on the same pictures.

    Attributes
    ----------
    lead
        Its accuracy minus that of the backbone in use, paired picture by picture.
    """

    name: str
    accuracy: Interval
    lead: Interval


@dataclass(frozen=True)
class Profile:
    """What was measured about a task on a backbone.

    Attributes
    ----------
    n_by_class
        Pictures in train and val by class.
    similarity
        None where it cannot be measured (no BatchNorm).
    probes
        Softmax at the penultimate depth and on all, then SVMs at every depth and on all.
    layer_svm
        The SVM at the depth that cross-validation chose, judged without the optimism of choosing.
    n_measured
        Pictures of train and val that similarity and probes were measured on.
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
        Accuracy over pictures a class; of the nearest neighbours at the penultimate depth; of a
        short fine-tuning. None where it was not measured.
    transfer_gain
        Cross-validated accuracy of the best pretrained depth minus that of the best depth of
        random weights on the same pictures, in [-1, 1]. None where it was not measured.
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
        Measured cost of training on a picture, in forward passes; None: not measured.
    rival
        What the embedded backbone reaches on the same pictures, where this one is in doubt; None
        where that was not measured.
    transferability
        LogME and regularised H-score at the penultimate depth, by name; higher is better.
        Comparable between backbones on one task, not between tasks.
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
    why_not: Mapping[str, str]
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
    rival: Rival | None = None

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.n_by_class)

    @property
    def n_per_class(self) -> float:
        """Mean number of pictures a class."""
        return self.n / self.n_classes

    @property
    def linear_probe(self) -> ProbeResult:
        """The softmax probe at the penultimate depth."""
        return self.probes[0]
