"""Training recipe: settings of the training loop, and fine-tuning defaults from the images."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from strategies.core.errors import NotApplicable
from strategies.models.features import Features
from strategies.training.flip_symmetry import FlipAsymmetry

BatchNorm = Literal["frozen", "reestimated", "trained"]
Optimiser = Literal["adamw", "sgd"]

BATCH_SIZE = 32
"""Images of one training step."""
LABEL_SMOOTHING = 0.1
"""Default of partial and full fine-tuning; C. Szegedy et al., Rethinking the Inception
architecture for computer vision, CVPR 2016."""
NEAR_SHIFT, FAR_SHIFT = 0.13, 0.18
"""Domain shifts (`domain_shift`): images up to the first are near, from the second on far."""
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
VARIANCE_OFFSET = 0.1
"""Added to the variances in `domain_shift`."""
MIN_WARMUP_STEPS = 50


@dataclass(frozen=True)
class Recipe:
    """Settings of the training loop.

    Attributes
    ----------
    steps
        Optimiser steps of `batch_size` images; fewer if the deadline comes first.
    lr
        Peak learning rate of the body (linear warm-up, then cosine decay to zero).
    spectral
        Weight in the loss of the smallest squared singular value of a batch's features (batch
        spectral shrinkage against negative transfer: it suppresses feature directions that hardly
        matter). 0: off.
    warmup_share
        Share of the steps that are warm-up; see `warmup`.
    head_lr_factor
        Learning rate of the head, as a multiple of `lr`.
    layer_lr_decay
        Learning rate of a depth as a share of that of the next deeper one. 1: the same for all.
    optimiser
        "adamw", or "sgd" with Nesterov momentum 0.9.
    l2_sp
        Weight decay towards the starting weights instead of zero (L2-SP, decoupled): the share of
        the distance removed by a step at learning rate 1. Above 0 it replaces `weight_decay` on
        the body.
    mixup
        Parameter of the Beta distribution of mixup. 0: off.
    cutmix
        Parameter of the Beta distribution of CutMix. 0: off. With both, one of the two is drawn
        for every batch.
    ema
        Decay of the exponential moving average of the weights. The average is validated and
        returned. 0: off.
    blend
        Linear interpolation of the final weights between the starting weights (0) and the trained
        ones (1).
    batch_norm
        BatchNorm statistics. "frozen": those of the pretrained network. "reestimated": recomputed
        once from the train images, then frozen (`reinit`). "trained": updated in every step, as
        in ordinary training. Layers of frozen stages are always frozen.
    frozen_stages
        Number of depths, from the input, whose parameters are frozen.
    reset_stages
        Number of depths, from the end, that start from random weights (`reinit`). Their BatchNorm
        statistics are always trained.
    min_area
        Smallest share of an image's area that a random crop keeps.
    hflip
        Whether crops are randomly flipped horizontally.

    References
    ----------
    X. Li et al., Explicit inductive bias for transfer learning with convolutional networks, 2018
    (L2-SP). X. Chen et al., Catastrophic forgetting meets negative transfer: batch spectral
    shrinkage for safe transfer learning, 2019 (`spectral`; there 0.001). H. Zhang et al., mixup:
    Beyond empirical risk minimization, 2018. M. Wortsman et al., Robust fine-tuning of zero-shot
    models, 2022 (WiSE-FT: `blend`).
    """

    steps: int
    lr: float
    head_lr_factor: float = 1.0
    layer_lr_decay: float = 1.0
    batch_size: int = BATCH_SIZE
    optimiser: Optimiser = "adamw"
    weight_decay: float = 0.01
    l2_sp: float = 0.0
    spectral: float = 0.0
    warmup_share: float = 0.1
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float = 0.0
    blend: float = 1.0
    clip_norm: float = 1.0
    batch_norm: BatchNorm = "frozen"
    frozen_stages: int = 0
    reset_stages: int = 0
    min_area: float = 0.5
    hflip: bool = False

    @property
    def warmup(self) -> float:
        """Share of the steps that are warm-up: at least `MIN_WARMUP_STEPS` steps, at most half.

        Adam's first steps have full length whatever the size of the gradient. If the head is a
        probe that already fits, the gradient is noise, and a short run would not recover from
        these steps.

        References
        ----------
        J. Ma, D. Yarats, On the adequacy of untuned warmup for adaptive optimization, 2021.
        """
        return min(max(self.warmup_share, MIN_WARMUP_STEPS / self.steps), 0.5)

    @property
    def mixes(self) -> bool:
        """Whether mixup or CutMix is on."""
        return self.mixup > 0 or self.cutmix > 0

    def __post_init__(self) -> None:
        shares = {"layer_lr_decay": self.layer_lr_decay, "blend": self.blend}
        for name, value in shares.items():
            if not 0 < value <= 1:
                raise NotApplicable(f"{name} must be above 0 and at most 1, got {value}")
        for name, value in {"mixup": self.mixup, "cutmix": self.cutmix}.items():
            if not 0 <= value < np.inf:
                raise NotApplicable(f"{name} must be at least 0, got {value}")
        if self.mixes and self.batch_size % 2:
            raise NotApplicable(
                f"mixup and cutmix mix images of a batch in pairs, so batch_size must be even, "
                f"got {self.batch_size}"
            )
        for name, value in {"l2_sp": self.l2_sp, "spectral": self.spectral}.items():
            if not 0 <= value < np.inf:
                raise NotApplicable(f"{name} must be at least 0, got {value}")
        if not 0 <= self.ema < 1:
            raise NotApplicable(f"ema must be at least 0 and below 1, got {self.ema}")


@dataclass(frozen=True)
class Defaults:
    """Default hyperparameters of fine-tuning: peak learning rate, blend and horizontal flips."""

    lr: float
    blend: float
    hflip: bool


def fine_tune_defaults(
    features: Features, probe_accuracy: float, flip_asymmetry: FlipAsymmetry
) -> Defaults:
    """Choose learning rate, blend and flips from domain distance, probe errors and flip symmetry.

    Near the pretraining domain, and where a linear probe works, the pretrained weights are nearly
    right, and training on few images mostly overfits: the learning rate is `NEAR_LR`, and the
    blend is `NEAR_BLEND`. If the probe misclassifies many images, there is more to learn: the
    learning rate is the same, and the blend is 1. Far from the pretraining domain, or if the probe
    fails on many images, the body has to change: the learning rate is `FAR_LR`, and the blend
    is 1. In between, both are interpolated. Without BatchNorm layers the domain distance is
    unknown, and 0.5 is assumed. Random flips are on if classes are flip-symmetric; letters, signs
    and hands are not.

    Parameters
    ----------
    features
        Features of the train images.
    probe_accuracy
        Out-of-fold accuracy of a linear probe on these features.
    flip_asymmetry
        Flip asymmetry of the train images.
    """
    distance = 0.5 if features.moments is None else domain_distance(domain_shift(features))
    n, errors = len(features.pooled[0]), 1 - probe_accuracy
    low, high = PROBE_ERRORS
    failing = float(np.clip((errors - low) / (high - low), 0, 1)) * _abundance(n)
    change = 1 - (1 - distance) * (1 - failing)
    lr = NEAR_LR * (FAR_LR / NEAR_LR) ** change
    blend = NEAR_BLEND + (1 - NEAR_BLEND) * max(change, _abundance(n * errors))
    hflip = _is_flip_symmetric(flip_asymmetry, distance)
    return Defaults(float(f"{lr:.2g}"), round(blend, 2), hflip=hflip)


def _abundance(n: float) -> float:
    """Map a number of images to 0 (`FEW`) ... 1 (`MANY`), linearly in its logarithm."""
    return float(np.clip(np.log(max(n, 1) / FEW) / np.log(MANY / FEW), 0, 1))


def _is_flip_symmetric(found: FlipAsymmetry, distance: float) -> bool:
    asymmetric = found.cosine > max(ASYMMETRY_COSINE, ASYMMETRY_SDS * found.noise)
    return not asymmetric and (distance < NEAR_DISTANCE or found.noise < PRECISE_SD)


def domain_distance(shift: float) -> float:
    """Map a domain shift to 0 (near) ... 1 (far), linearly in its logarithm in between."""
    position = np.log(max(shift, 1e-6) / NEAR_SHIFT) / np.log(FAR_SHIFT / NEAR_SHIFT)
    return float(np.clip(position, 0, 1))


def domain_shift(features: Features) -> float:
    """Return the KL divergence of the BatchNorm inputs from their pretraining statistics.

    Mean over layers of the mean over channels of ``KL(N(m, v + e) || N(0, 1 + e))`` in nats with
    e = `VARIANCE_OFFSET`, where activations are standardised by the running statistics. It is 0
    if the images have the statistics of the pretraining data. Plug-in estimate, not
    bias-corrected. Comparable between datasets on one backbone and input size.
    """
    moments = features.moments
    assert moments is not None
    mean = moments.mean.mean(axis=0, dtype=np.float64)
    variance = np.maximum(moments.square.mean(axis=0, dtype=np.float64) - mean**2, 0)
    ratio = (variance + VARIANCE_OFFSET) / (1 + VARIANCE_OFFSET)
    by_channel = 0.5 * (ratio + mean**2 / (1 + VARIANCE_OFFSET) - 1 - np.log(ratio))
    counts = np.bincount(moments.layer)
    return float((np.bincount(moments.layer, by_channel) / counts).mean())


def default_steps(n_train: int, batch_size: int) -> int:
    """Return the default number of optimiser steps: eight epochs, at least 150, at most 600."""
    return int(min(max(8 * n_train / batch_size, 150), 600))
