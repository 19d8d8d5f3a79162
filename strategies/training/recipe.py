"""The settings of the epoch loop, and the defaults that follow from the images."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from strategies.core.errors import NotApplicable
from strategies.models.features import Features
from strategies.training.flip_symmetry import FlipAsymmetry

BatchNorm = Literal["frozen", "reestimated", "trained"]
Optimiser = Literal["adamw", "sgd"]

BATCH_SIZE = 32
LABEL_SMOOTHING = 0.1
"""Of both fine-tunes, as in C. Szegedy et al., Rethinking the Inception architecture, 2016."""
NEAR_SHIFT, FAR_SHIFT = 0.13, 0.18
"""Shifts (`domain_shift`) up to which, and from which on, images count as near and as far."""
PROBE_ERRORS = 0.25, 0.5
"""Shares of errors up to which a probe counts as right, and from which on as failing."""
FEW, MANY = 50, 150
"""Images up to which a failing probe says that they are few, and from which on that its features
do not tell the classes; of those that it names wrongly, as many that teach little, and much."""
NEAR_LR, FAR_LR = 3e-4, 1e-3
NEAR_BLEND = 0.5
ONE_SIDED, BEYOND_CHANCE = 0.04, 2.0
"""Classes have sides where they lean by more than this, and by more than so many deviations of
chance."""
NEAR, SEEN = 1 / 3, 0.1
"""Farness up to which images are like those of pretraining, which were mirrored too; of others
it must be seen that they have no sides, where chance moves the lean by no more than this."""
SOFTENING = 0.1
WARM_STEPS = 50


@dataclass(frozen=True)
class Recipe:
    """Settings of the epoch loop.

    Attributes
    ----------
    steps
        Optimiser steps of `batch_size` images; fewer if the deadline is nearer.
    lr
        Peak learning rate of the body (linear warm-up, then a cosine to zero).
    spectral
        Weight in the loss of the smallest squared singular value of a batch's features (batch
        spectral shrinkage): directions that hardly matter fade, and with them what pretraining
        left that only harms; 0: none.
    warmup_share
        Share of the steps that the learning rate rises in; see `warmup`.
    head_lr_factor
        The head learns this many times faster.
    layer_lr_decay
        Every depth learns at this share of the rate of the next deeper one; 1: all alike.
    optimiser
        "adamw", or "sgd" with Nesterov momentum 0.9.
    l2_sp
        Pull towards the weights that training started from, as a share of the distance a step at
        learning rate 1 (as `weight_decay` pulls towards zero); it takes the place of the latter
        on the body if it is above 0.
    mixup
        Parameter of the Beta distribution that pairs of images are mixed by; 0: none.
    cutmix
        The same for the part of an image that is replaced by that of another; 0: none. With
        both, every batch draws one of the two.
    ema
        Decay of the moving average of the weights that is judged and kept; 0: none.
    blend
        How far the final weights go from those that training started from (0) to those that it
        ended with (1).
    batch_norm
        "frozen" keeps the statistics that the network came with; "reestimated" takes them once
        from the train images and then keeps them (`renewal`); "trained" replaces them by those
        of each batch. Layers of frozen stages always keep theirs.
    frozen_stages
        Number of depths, from the input, whose parameters stay as they are.
    reset_stages
        Number of depths, from the end, that start from random weights (`renewal`); their
        BatchNorm statistics are always trained.
    min_area
        Smallest share of an image that a random crop keeps.
    hflip
        Whether crops are mirrored at random.

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
        """Share of the steps that warm up: at least `WARM_STEPS` of them, at most a half.

        Adam's first steps have full length whatever the gradient, and where the head is a probe
        that is right already the gradient is noise: a short training would not recover.

        References
        ----------
        J. Ma, D. Yarats, On the adequacy of untuned warmup for adaptive optimization, 2021.
        """
        return min(max(self.warmup_share, WARM_STEPS / self.steps), 0.5)

    @property
    def mixes(self) -> bool:
        """Whether pairs of images are mixed into one."""
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
                f"mixup and cutmix pair the images of a batch, so batch_size must be even, "
                f"got {self.batch_size}"
            )
        for name, value in {"l2_sp": self.l2_sp, "spectral": self.spectral}.items():
            if not 0 <= value < np.inf:
                raise NotApplicable(f"{name} must be at least 0, got {value}")
        if not 0 <= self.ema < 1:
            raise NotApplicable(f"ema must be at least 0 and below 1, got {self.ema}")


@dataclass(frozen=True)
class Defaults:
    """What a fine-tune does unless told otherwise: peak learning rate, blend and mirroring."""

    lr: float
    blend: float
    hflip: bool


def fine_tune_defaults(
    features: Features, probe_accuracy: float, flip_asymmetry: FlipAsymmetry
) -> Defaults:
    """Choose learning rate, blend and mirroring by how much there is to gain and to lose.

    Near the pretraining domain, and where a linear probe is already right, the pretrained weights
    are nearly right and a few images teach little but themselves: small steps, and the final
    weights stay half-way; where the probe names many images wrongly there is more to learn, and
    the same small steps are taken in full. Far from it, or where the probe fails on many images,
    the body has to change: large steps, taken in full. Without BatchNorm layers the distance is
    unknown and the middle is taken. Mirror images are new images of the same things where a
    class does not lean to one side; letters, signs and hands mean something else in a mirror.

    Parameters
    ----------
    features
        Of the train images.
    probe_accuracy
        Out-of-fold accuracy of a linear probe on them.
    lean
        Whether they lean to one side.
    """
    far = 0.5 if features.moments is None else domain_distance(domain_shift(features))
    n, errors = len(features.pooled[0]), 1 - probe_accuracy
    safe, risky = PROBE_ERRORS
    failing = float(np.clip((errors - safe) / (risky - safe), 0, 1)) * _abundance(n)
    position = 1 - (1 - far) * (1 - failing)
    lr = NEAR_LR * (FAR_LR / NEAR_LR) ** position
    blend = NEAR_BLEND + (1 - NEAR_BLEND) * max(position, _abundance(n * errors))
    return Defaults(
        float(f"{lr:.2g}"), round(blend, 2), hflip=_is_flip_symmetric(flip_asymmetry, far)
    )


def _abundance(n: float) -> float:
    """Map a number of images to 0 (few) ... 1 (many), linear in its logarithm."""
    return float(np.clip(np.log(max(n, 1) / FEW) / np.log(MANY / FEW), 0, 1))


def _is_flip_symmetric(flip_asymmetry: FlipAsymmetry, far: float) -> bool:
    sided = flip_asymmetry.cosine > max(ONE_SIDED, BEYOND_CHANCE * flip_asymmetry.noise)
    return not sided and (far < NEAR or flip_asymmetry.noise < SEEN)


def domain_distance(shift: float) -> float:
    """Map a shift to 0 (near) ... 1 (far), linear in its logarithm between the two bounds."""
    position = np.log(max(shift, 1e-6) / NEAR_SHIFT) / np.log(FAR_SHIFT / NEAR_SHIFT)
    return float(np.clip(position, 0, 1))


def domain_shift(features: Features) -> float:
    """Divergence of what reaches the BatchNorm layers from what reached them in pretraining.

    Mean over layers of the mean over channels of ``KL(N(m, v + e) || N(0, 1 + e))`` in nats with
    e = `SOFTENING`, for activations in units of the running statistics: 0 when they look like the
    pretraining data. A plain estimate; comparable between datasets on one backbone and input size.
    """
    moments = features.moments
    assert moments is not None
    mean = moments.mean.mean(axis=0, dtype=np.float64)
    variance = np.maximum(moments.square.mean(axis=0, dtype=np.float64) - mean**2, 0)
    ratio = (variance + SOFTENING) / (1 + SOFTENING)
    by_channel = 0.5 * (ratio + mean**2 / (1 + SOFTENING) - 1 - np.log(ratio))
    counts = np.bincount(moments.layer)
    return float((np.bincount(moments.layer, by_channel) / counts).mean())


def default_steps(n_train: int, batch_size: int) -> int:
    """Return optimiser steps for a train split: eight epochs, within 150 and 600 steps."""
    return int(min(max(8 * n_train / batch_size, 150), 600))
