"""Default hyperparameters of fine-tuning, chosen from measurements of the images."""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from strategies.core.metrics import FlipAsymmetry
from strategies.training.recipe import RecipeDraft

NEAR_SHIFT, FAR_SHIFT = 0.13, 0.18
"""Domain shifts (`strategies.models.domain_shift`): images up to the first are near ImageNet, from
the second on far. They were chosen by training the embedded network at the input size of the shift
(benchmarks/README-training.md); the shift is the same for every backbone."""
PROBE_ERRORS = 0.25, 0.5
"""Error rates of a linear probe: up to the first it works, from the second on it fails."""
FEW, MANY = 50, 150
"""Numbers of images between which evidence grows from none to full. With `FEW` train images, a
probe may fail because they are few; with `MANY`, its features do not separate the classes. The
same numbers apply to misclassified images: how much is left to learn from them."""
NEAR_LR, FAR_LR = 3e-4, 1e-3
NEAR_BLEND = 0.5
ASYMMETRY_COSINE, ASYMMETRY_SDS = 0.04, 2.0
"""Classes count as flip-asymmetric if the cosine (`flip_symmetry`) is above the first, and above
its standard deviation times the second."""
NEAR_DISTANCE, PRECISE_SD = 1 / 3, 0.1
"""Images with a domain distance below the first resemble the pretraining images, which were
flipped too. Others are flipped only if the cosine's standard deviation is below the second."""


class Measurements(Protocol):
    """What was measured on the images, and what the first hyperparameters depend on."""

    @property
    def n_train(self) -> int:
        """Number of train images."""

    @property
    def n_depths(self) -> int:
        """Number of depths of the backbone."""

    @property
    def input_px(self) -> int:
        """Input size of the backbone in pixels."""

    @property
    def n_measured(self) -> int:
        """Number of images that the following was measured on."""

    @property
    def probe_accuracy(self) -> float:
        """Out-of-fold accuracy of a linear probe on the penultimate features."""

    @property
    def domain_shift(self) -> float | None:
        """Domain shift of the images in nats (`domain_shift`); None if it was not measured."""

    @property
    def flip_asymmetry(self) -> FlipAsymmetry | None:
        """Flip asymmetry of the images; None if it could not be measured."""


@dataclass(frozen=True)
class TrainMeasurements:
    """`Measurements` of the train images alone, as a strategy makes them before it trains."""

    n_train: int
    n_depths: int
    input_px: int
    n_measured: int
    probe_accuracy: float
    domain_shift: float | None
    flip_asymmetry: FlipAsymmetry | None


@dataclass(frozen=True)
class Defaults:
    """Default hyperparameters of fine-tuning: peak learning rate, blend and horizontal flips."""

    lr: float
    blend: float
    hflip: bool


def fine_tune_defaults(measured: Measurements) -> Defaults:
    """Choose learning rate, blend and flips from domain distance, probe errors and flip symmetry.

    Near the pretraining domain, and where a linear probe works, the pretrained weights are nearly
    right, and training on few images mostly overfits: the learning rate is `NEAR_LR`, and the
    blend is `NEAR_BLEND`. If the probe misclassifies many images, there is more to learn: the
    learning rate is the same, and the blend is 1. Far from the pretraining domain, or if the probe
    fails on many images, the body has to change: the learning rate is `FAR_LR`, and the blend
    is 1. In between, both are interpolated. Without a measured domain shift, a distance of 0.5 is
    assumed. Random flips are on if classes are flip-symmetric; letters, signs and hands are not.
    """
    shift = measured.domain_shift
    distance = 0.5 if shift is None else domain_distance(shift)
    n, errors = measured.n_measured, 1 - measured.probe_accuracy
    low, high = PROBE_ERRORS
    failing = float(np.clip((errors - low) / (high - low), 0, 1)) * _abundance(n)
    change = 1 - (1 - distance) * (1 - failing)
    lr = NEAR_LR * (FAR_LR / NEAR_LR) ** change
    blend = NEAR_BLEND + (1 - NEAR_BLEND) * max(change, _abundance(n * errors))
    hflip = _is_flip_symmetric(measured.flip_asymmetry, distance)
    return Defaults(float(f"{lr:.2g}"), round(blend, 2), hflip=hflip)


def fill(draft: RecipeDraft, found: Defaults) -> RecipeDraft:
    """Set learning rate, blend and flips of a draft where they are open."""
    return replace(
        draft,
        lr=found.lr if draft.lr is None else draft.lr,
        blend=found.blend if draft.blend is None else draft.blend,
        hflip=found.hflip if draft.hflip is None else draft.hflip,
    )


def default_steps(n_train: int, batch_size: int) -> int:
    """Return the default number of optimiser steps: eight epochs, at least 150, at most 600."""
    return int(min(max(8 * n_train / batch_size, 150), 600))


def domain_distance(shift: float) -> float:
    """Map a domain shift to 0 (near) ... 1 (far), linearly in its logarithm in between."""
    position = np.log(max(shift, 1e-6) / NEAR_SHIFT) / np.log(FAR_SHIFT / NEAR_SHIFT)
    return float(np.clip(position, 0, 1))


def _abundance(n: float) -> float:
    """Map a number of images to 0 (`FEW`) ... 1 (`MANY`), linearly in its logarithm."""
    return float(np.clip(np.log(max(n, 1) / FEW) / np.log(MANY / FEW), 0, 1))


def _is_flip_symmetric(found: FlipAsymmetry | None, distance: float) -> bool:
    if found is None:
        return distance < NEAR_DISTANCE
    asymmetric = found.cosine > max(ASYMMETRY_COSINE, ASYMMETRY_SDS * found.sd)
    return not asymmetric and (distance < NEAR_DISTANCE or found.sd < PRECISE_SD)
