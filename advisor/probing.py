"""The nouns of what probes and pilots measure; `advisor.types` holds all others."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
