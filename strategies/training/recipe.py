"""Training recipe: settings of the training loop, and a draft that leaves some of them open."""

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from strategies.core.errors import NotApplicable

BatchNorm = Literal["frozen", "reestimated", "trained"]
Optimiser = Literal["adamw", "sgd"]
TrainedParameters = Literal["all", "norms_and_biases"]

BATCH_SIZE = 32
"""Images of a batch, unless there are many train images (`defaults.default_batch_size`)."""
MIN_WARMUP_STEPS = 50


@dataclass(frozen=True)
class RecipeDraft:
    """A recipe in which some settings may be open (None), to be chosen from the images.

    Attributes
    ----------
    steps
        Optimiser steps of `batch_size` images; fewer if the deadline comes first.
    batch_size
        Images whose mean gradient is one step. None: chosen by the number of train images
        (`defaults.default_batch_size`). A batch that does not fit into memory is computed in
        parts.
    lr
        Peak learning rate of the body (linear warm-up, then cosine decay to zero), for batches of
        `batch_size` images.
    blend
        Linear interpolation of the final weights between the starting weights (0) and the trained
        ones (1).
    hflip
        Whether crops are randomly flipped horizontally (wrong for letters and hands).
    frozen_stages
        Number of depths, from the input, whose parameters are frozen.
    last_trained_stage
        Last depth, counted from 1, whose parameters are trained; the deeper ones are frozen. None:
        all are trained that `frozen_stages` leaves.
    trained
        Parameters that are trained in these stages: "all", or "norms_and_biases" (scale and shift
        of normalisation layers, and all biases). The head is always trained.
    lora_rank
        Rank of the LoRA matrices that are trained in place of the body's own weights. 0: off.
    warmup_share
        Share of the steps that are warm-up; see `Recipe.warmup`. None: chosen by architecture.
    head_lr_factor
        Learning rate of the head, as a multiple of `lr`.
    layer_lr_decay
        Learning rate of a depth, or of a layer with `by_layer`, as a share of that of the next one
        towards the output. 1: the same for all.
    by_layer
        Whether `layer_lr_decay` counts the layers of timm's ``param_groups_layer_decay`` (stem,
        every block, head), and whatever timm exempts has no weight decay. If not, it counts
        depths, and all matrices have weight decay. None: chosen by architecture.
    drop_path
        Probability that the last residual block is skipped in training (stochastic depth). It
        grows linearly from 0 at the first block. Frozen stages are not skipped. 0: off.
    weight_decay
        Decoupled weight decay of AdamW, or L2 penalty of SGD, on matrices and kernels. None:
        chosen by architecture.
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
    batch_norm
        BatchNorm statistics. "frozen": those of the pretrained network. "reestimated": recomputed
        once from the train images, then frozen (`reinit`). "trained": updated in every step, as
        in ordinary training. Layers of frozen stages are always frozen.
    reset_stages
        Number of depths, from the end, that start from random weights (`reinit`). Their BatchNorm
        statistics are always trained.
    min_area
        Smallest share of an image's area that a random crop keeps.

    References
    ----------
    X. Li et al., Explicit inductive bias for transfer learning with convolutional networks, 2018
    (L2-SP). H. Zhang et al., mixup: Beyond empirical risk minimization, 2018. M. Wortsman et al.,
    Robust fine-tuning of zero-shot models, 2022 (WiSE-FT: `blend`). H. Bao et al., BEiT, 2022
    (`layer_lr_decay` by block). G. Huang et al., Deep networks with stochastic depth, 2016
    (`drop_path`).
    """

    steps: int | None = None
    lr: float | None = None
    blend: float | None = None
    hflip: bool | None = None
    frozen_stages: int | None = None
    head_lr_factor: float = 1.0
    layer_lr_decay: float | None = None
    by_layer: bool | None = None
    drop_path: float | None = None
    batch_size: int | None = None
    optimiser: Optimiser = "adamw"
    weight_decay: float | None = None
    l2_sp: float = 0.0
    warmup_share: float | None = None
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float = 0.0
    clip_norm: float = 1.0
    batch_norm: BatchNorm = "frozen"
    last_trained_stage: int | None = None
    trained: TrainedParameters = "all"
    lora_rank: int = 0
    reset_stages: int = 0
    min_area: float = 0.5

    @property
    def mixes(self) -> bool:
        """Whether mixup or CutMix is on."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def trains_layers(self) -> bool:
        """Whether whole layers are trained, and not a few parameters of each."""
        return self.trained == "all" and not self.lora_rank

    @property
    def reinitialises(self) -> bool:
        """Whether statistics or stages are reinitialised, so that the head must be refitted."""
        return self.batch_norm == "reestimated" or self.reset_stages > 0

    def __post_init__(self) -> None:
        shares = {"layer_lr_decay": self.layer_lr_decay, "blend": self.blend}
        for name, value in shares.items():
            if value is not None and not 0 < value <= 1:
                raise NotApplicable(f"{name} must be above 0 and at most 1, got {value}")
        strengths = {"mixup": self.mixup, "cutmix": self.cutmix, "l2_sp": self.l2_sp}
        for name, value in strengths.items():
            if not 0 <= value < np.inf:
                raise NotApplicable(f"{name} must be at least 0, got {value}")
        if self.batch_size is not None and self.batch_size < 1:
            raise NotApplicable(f"batch_size must be at least 1, got {self.batch_size}")
        if self.mixes and self.batch_size is not None and self.batch_size % 2:
            raise NotApplicable(
                f"mixup and cutmix mix images of a batch in pairs, so batch_size must be even, "
                f"got {self.batch_size}"
            )
        for name, value in {"ema": self.ema, "drop_path": self.drop_path}.items():
            if value is not None and not 0 <= value < 1:
                raise NotApplicable(f"{name} must be at least 0 and below 1, got {value}")


@dataclass(frozen=True)
class Recipe(RecipeDraft):
    """Settings of the training loop: a draft without open settings."""

    steps: int
    lr: float
    batch_size: int = BATCH_SIZE
    blend: float = 1.0
    hflip: bool = False
    frozen_stages: int = 0
    layer_lr_decay: float = 1.0
    by_layer: bool = False
    drop_path: float = 0.0
    weight_decay: float = 0.01
    warmup_share: float = 0.1

    @staticmethod
    def of(draft: RecipeDraft) -> "Recipe":
        """Return a draft as a recipe. What is open has the value of this class.

        Raises
        ------
        ValueError
            If steps or learning rate are open.
        """
        if draft.steps is None or draft.lr is None:
            raise ValueError("a recipe needs a number of steps and a learning rate")
        return Recipe(**{name: v for name, v in asdict(draft).items() if v is not None})

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


SMOOTHED = RecipeDraft(label_smoothing=0.1)
"""Default of fine-tuning; C. Szegedy et al., Rethinking the Inception architecture for computer
vision, CVPR 2016."""
