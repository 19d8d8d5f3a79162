"""Default hyperparameters of fine-tuning, chosen from measurements of the images."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import numpy as np

from strategies.core.metrics import FlipAsymmetry
from strategies.models.architectures.family import Family
from strategies.training.recipe import BATCH_SIZE, Optimiser, RecipeDraft

NEAR_SHIFT, FAR_SHIFT = 0.13, 0.18
"""Domain shifts (`strategies.models.domain_shift`): images up to the first are near ImageNet, from
the second on far. They were chosen by training the embedded network at the input size of the shift
(docs/benchmarks/training.md); the shift is the same for every backbone."""
PROBE_ERRORS = 0.25, 0.5
"""Error rates of a linear probe: up to the first it works, from the second on it fails."""
FEW, MANY = 50, 150
"""Numbers of images between which evidence grows from none to full. With `FEW` train images, a
probe may fail because they are few; with `MANY`, its features do not separate the classes. The
same numbers apply to misclassified images: how much is left to learn from them."""
NEAR_LR, FAR_LR = 3e-4, 1e-3
"""Learning rates of convolutional networks. All rates here are for batches of `BATCH_SIZE` images;
see `lr_factor`."""
NEAR_LR_BY_LAYER, FAR_LR_BY_LAYER = 3e-5, 1.2e-4
"""Learning rates of transformers and ConvNeXt, of the head and the layers next to it. CLIP is
fine-tuned with 3e-5 (WiSE-FT), BEiT after supervised pretraining with 2e-5, ConvNeXt with 5e-5.
After self-supervised pretraining, which leaves more to learn, MAE and BEiT use 6e-5 and 1.2e-4 for
the base size, scaled linearly to batches of 32 images."""
NEAR_DECAY, FAR_DECAY, DECAY_LAYERS = 0.65, 0.85, 13
DECAY_RANGE = 0.65, 0.9
"""Layer decay near and far for a network of `DECAY_LAYERS` layers below the head (stem and 12
blocks), and its range. BEiT uses 0.65 or 0.85 for the base size and 0.75 or 0.9 for 25 layers, MAE
0.65 and 0.75, ConvNeXt 0.7 to 0.8."""
DROP_PATH = 0.1
"""Drop path of BEiT and MAE for the base size."""
NEAR_BLEND = 0.5
EPOCHS, MIN_STEPS, MAX_SHORT_STEPS = 8, 150, 600
MIN_EPOCHS = 4
"""Length of a training run: `EPOCHS`, with at least `MIN_STEPS` steps and at most
`MAX_SHORT_STEPS`, but never fewer than `MIN_EPOCHS`. The benchmarks measured the first three, with
up to 4,000 train images in batches of 32; the last rule begins at 4,800."""
MAX_BATCH_SIZE = 512
"""Batch of BiT's fine-tuning of large datasets (A. Kolesnikov et al., Big Transfer, 2020)."""
ASYMMETRY_COSINE, ASYMMETRY_SDS = 0.04, 2.0
"""Classes count as flip-asymmetric if the cosine (`flip_symmetry`) is above the first, and above
its standard deviation times the second."""
NEAR_DISTANCE, PRECISE_SD = 1 / 3, 0.1
"""Images with a domain distance below the first resemble the pretraining images, which were
flipped too. Others are flipped only if the cosine's standard deviation is below the second."""


class NetworkFacts(Protocol):
    """What hyperparameters depend on besides the images: facts about the backbone."""

    @property
    def n_depths(self) -> int:
        """Number of depths."""

    @property
    def family(self) -> Family:
        """Family of the architecture."""

    @property
    def n_layers(self) -> int:
        """Number of layers below the head; 0 for a convolutional network."""


class Measurements(NetworkFacts, Protocol):
    """What was measured on the images, and what the first hyperparameters depend on."""

    @property
    def n_train(self) -> int:
        """Number of train images."""

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
    family: Family = "convolutional"
    n_layers: int = 0


@dataclass(frozen=True)
class Defaults:
    """Default hyperparameters of fine-tuning.

    Attributes
    ----------
    lr, blend, hflip, layer_lr_decay, drop_path
        As in `RecipeDraft`. The last two are None for a convolutional network.
    """

    lr: float
    blend: float
    hflip: bool
    layer_lr_decay: float | None = None
    drop_path: float | None = None


def fine_tune_defaults(measured: Measurements) -> Defaults:
    """Choose the first hyperparameters from domain distance, probe errors and flip symmetry.

    Near the pretraining domain, and where a linear probe works, the pretrained weights are nearly
    right, and training on few images mostly overfits: the learning rate is `NEAR_LR`, and the
    blend is `NEAR_BLEND`. If the probe misclassifies many images, there is more to learn: the
    learning rate is the same, and the blend is 1. Far from the pretraining domain, or if the probe
    fails on many images, the body has to change: the learning rate is `FAR_LR`, and the blend
    is 1. In between, both are interpolated. Without a measured domain shift, a distance of
    0.5 is assumed. Random flips are on if classes are flip-symmetric; letters, signs and hands are
    not.

    Transformers and ConvNeXt get the rates `NEAR_LR_BY_LAYER` ... `FAR_LR_BY_LAYER` by the same
    rule, a layer decay (`layer_decay`) and drop path, which is off for `FEW` images and grows to
    `DROP_PATH` for `MANY`.

    References
    ----------
    H. Bao et al., BEiT, ICLR 2022. K. He et al., Masked autoencoders are scalable vision learners,
    CVPR 2022. Z. Liu et al., A ConvNet for the 2020s, CVPR 2022. M. Wortsman et al., Robust
    fine-tuning of zero-shot models, CVPR 2022 (WiSE-FT). The published fine-tuning commands of
    the first three.
    """
    shift = measured.domain_shift
    distance = 0.5 if shift is None else domain_distance(shift)
    n, errors = measured.n_measured, 1 - measured.probe_accuracy
    low, high = PROBE_ERRORS
    failing = float(np.clip((errors - low) / (high - low), 0, 1)) * _abundance(n)
    change = 1 - (1 - distance) * (1 - failing)
    by_layer = measured.family != "convolutional"
    near, far = (NEAR_LR_BY_LAYER, FAR_LR_BY_LAYER) if by_layer else (NEAR_LR, FAR_LR)
    lr = near * (far / near) ** change
    blend = NEAR_BLEND + (1 - NEAR_BLEND) * max(change, _abundance(n * errors))
    hflip = _is_flip_symmetric(measured.flip_asymmetry, distance)
    return Defaults(
        float(f"{lr:.2g}"),
        round(blend, 2),
        hflip=hflip,
        layer_lr_decay=layer_decay(change, measured) if by_layer else None,
        drop_path=round(DROP_PATH * _abundance(measured.n_train), 2) if by_layer else None,
    )


def layer_decay(change: float, network: NetworkFacts) -> float:
    """Return the default layer decay: less decay where more has to change, and in deep networks.

    The learning rate of the first layer is the decay to the power of the number of layers. A
    deeper network needs a decay nearer to 1: its distance from 1 is in proportion to the inverse
    root of the number of layers. That is how BEiT's base and large size differ, near and far.

    Parameters
    ----------
    change
        How much the pretrained weights have to change: 0 (near) ... 1 (far).
    """
    base = NEAR_DECAY + (FAR_DECAY - NEAR_DECAY) * change
    layers = network.n_layers or network.n_depths
    return round(float(np.clip(1 - (1 - base) * np.sqrt(DECAY_LAYERS / layers), *DECAY_RANGE)), 2)


def fill(draft: RecipeDraft, found: Defaults) -> RecipeDraft:
    """Set what is open in a draft, and was found; the learning rate fits the draft's batch."""
    scaled = replace(found, lr=scaled_lr(found.lr, draft))
    return replace(
        draft,
        **{name: v for name, v in asdict(scaled).items() if getattr(draft, name) is None},
    )


def settle(draft: RecipeDraft, family: Family) -> RecipeDraft:
    """Set what depends on the family alone, where it is open.

    Transformers and ConvNeXt decay the learning rate by layer, exempt from weight decay what timm
    exempts, and warm up for a fifth of the steps, as BEiT does (20 of 100 epochs) and the vision
    transformer on VTAB's 1,000 images (500 of 2,500 steps). The weight decay of transformers is
    that of BEiT and MAE. ConvNeXt is fine-tuned with next to none.

    References
    ----------
    As for `fine_tune_defaults`; A. Dosovitskiy et al., An image is worth 16x16 words, ICLR 2021.
    """
    if family == "convolutional":
        return draft
    decay = 0.05 if family == "transformer" else 1e-8
    return replace(
        draft,
        by_layer=True if draft.by_layer is None else draft.by_layer,
        warmup_share=0.2 if draft.warmup_share is None else draft.warmup_share,
        weight_decay=decay if draft.weight_decay is None else draft.weight_decay,
    )


def is_open(draft: RecipeDraft, family: Family) -> bool:
    """Return whether a draft leaves a setting open that is chosen from the images."""
    names = ["lr", "blend", "hflip"]
    names += [] if family == "convolutional" else ["layer_lr_decay", "drop_path"]
    return any(getattr(draft, name) is None for name in names)


def default_batch_size(n_train: int) -> int:
    """Return the default batch for a number of train images: 32 to `MAX_BATCH_SIZE`.

    It is doubled as long as `MIN_EPOCHS` epochs are still `MAX_SHORT_STEPS` steps: from 9,600
    images on it is 64, from 76,800 on 512. Larger batches use a GPU better, and more steps than
    that are not needed to anneal the learning rate.
    """
    size = BATCH_SIZE
    while size < MAX_BATCH_SIZE and MIN_EPOCHS * n_train >= MAX_SHORT_STEPS * 2 * size:
        size *= 2
    return size


def default_steps(n_train: int, batch_size: int) -> int:
    """Return the default number of optimiser steps.

    Eight epochs, at least 150 and at most 600 steps, but never fewer than four epochs.
    """
    epoch = n_train / batch_size
    short = int(min(max(EPOCHS * epoch, MIN_STEPS), MAX_SHORT_STEPS))
    return max(short, math.ceil(MIN_EPOCHS * epoch))


def lr_factor(batch_size: int, optimiser: Optimiser = "adamw") -> float:
    """Return by how much the learning rate of a batch differs from that of `BATCH_SIZE` images.

    For AdamW it grows with the square root of the batch; for SGD in proportion to it.

    References
    ----------
    S. Malladi et al., On the SDEs and scaling rules for adaptive gradient algorithms, NeurIPS
    2022. Their rule also changes Adam's decay rates; with batches up to 16 times as large, these
    stay as they are here. P. Goyal et al., Accurate, large minibatch SGD, 2017.
    """
    ratio = batch_size / BATCH_SIZE
    return float(ratio if optimiser == "sgd" else np.sqrt(ratio))


def scaled_lr(lr: float, draft: RecipeDraft) -> float:
    """Return a learning rate for batches of `BATCH_SIZE` images as one for a draft's batch."""
    factor = lr_factor(draft.batch_size or BATCH_SIZE, draft.optimiser)
    return lr if factor == 1 else float(f"{lr * factor:.2g}")


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
