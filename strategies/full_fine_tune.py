"""Full fine-tuning: train all layers from the pretrained weights (LP-FT)."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self, cast, final, get_args

from optuna.trial import BaseTrial

from strategies.base import Strategy
from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone, input_sizes, resized
from strategies.models.classifier import ImageClassifier
from strategies.training.lp_ft import fine_tune, prepare, training_passes
from strategies.training.recipe import (
    BATCH_SIZE,
    LABEL_SMOOTHING,
    BatchNorm,
    Optimiser,
    Recipe,
    default_steps,
)


@final
@dataclass(frozen=True)
class FullFineTune(Strategy):
    """Fit a linear probe as the head, then train body and head together (LP-FT).

    Attributes
    ----------
    lr
        Peak learning rate of the body. None: from the domain distance of the images and the
        errors of a linear probe (`recipe.fine_tune_defaults`).
    blend
        Interpolation between the starting weights (0) and the trained ones (1), as in WiSE-FT.
        None: chosen like `lr`.
    head_lr_factor
        Learning rate of the head, as a multiple of `lr`.
    steps
        Optimiser steps of 32 images. None: eight epochs, at least 150 and at most 600 steps.
    hflip
        Whether train images are randomly flipped horizontally (wrong for letters and hands). None:
        unless the images of a class differ from their flips in a common direction
        (`flip_symmetry`).
    input_px
        Side of the square input. None: that of the backbone.
    layer_lr_decay, optimiser, batch_norm, reset_stages, label_smoothing, mixup, cutmix, l2_sp, \
    spectral, ema
        As in `Recipe`.
    """

    lr: float | None = None
    blend: float | None = None
    head_lr_factor: float = 1.0
    layer_lr_decay: float = 1.0
    steps: int | None = None
    optimiser: Optimiser = "adamw"
    batch_norm: BatchNorm = "frozen"
    reset_stages: int = 0
    label_smoothing: float = LABEL_SMOOTHING
    mixup: float = 0.0
    cutmix: float = 0.0
    l2_sp: float = 0.0
    spectral: float = 0.0
    ema: float = 0.0
    hflip: bool | None = None
    input_px: int | None = None

    name: ClassVar[str] = "full_fine_tune"
    summary: ClassVar[str] = "fine-tuning of all layers, starting from a linear probe (LP-FT)"
    references: ClassVar[tuple[str, ...]] = (
        "A. Kumar et al., Fine-tuning can distort pretrained features, ICLR 2022",
        "S. Kornblith et al., Do better ImageNet models transfer better?, CVPR 2019",
        "M. Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022",
    )
    selects_on_val: ClassVar[bool] = True

    @classmethod
    def suggest(cls, trial: BaseTrial, dataset: Dataset, backbone: Backbone) -> Self:
        """Sample learning rates, steps, blend, BatchNorm mode, smoothing, flips, input size."""
        base = default_steps(len(dataset.train), BATCH_SIZE)
        return cls(
            lr=trial.suggest_float("lr", 3e-5, 3e-3, log=True),
            blend=trial.suggest_float("blend", 0.25, 1.0),
            head_lr_factor=trial.suggest_float("head_lr_factor", 1.0, 10.0, log=True),
            steps=trial.suggest_int("steps", base // 2, 2 * base),
            batch_norm=cast(
                BatchNorm, trial.suggest_categorical("batch_norm", get_args(BatchNorm))
            ),
            label_smoothing=trial.suggest_float("label_smoothing", 0.0, 0.2),
            hflip=trial.suggest_categorical("hflip", [False, True]),
            input_px=trial.suggest_categorical("input_px", input_sizes(backbone)),
        )

    def fit(self, dataset: Dataset, backbone: Backbone, ctx: RunContext) -> ImageClassifier:
        """Train; keep an earlier round only if it is significantly better on validation."""
        backbone = resized(backbone, self.input_px)
        start = prepare(dataset, backbone, ctx, self.hflip)
        lr = self.lr or start.defaults.lr
        blend = self.blend or start.defaults.blend
        hflip = start.defaults.hflip
        steps = self.steps or default_steps(len(dataset.train), BATCH_SIZE)
        recipe = Recipe(
            steps=steps,
            lr=lr,
            blend=blend,
            head_lr_factor=self.head_lr_factor,
            layer_lr_decay=self.layer_lr_decay,
            optimiser=self.optimiser,
            batch_norm=self.batch_norm,
            reset_stages=self.reset_stages,
            label_smoothing=self.label_smoothing,
            mixup=self.mixup,
            cutmix=self.cutmix,
            l2_sp=self.l2_sp,
            spectral=self.spectral,
            ema=self.ema,
            hflip=hflip,
        )
        network = fine_tune(dataset, backbone, start, recipe, ctx)
        px = backbone.input_px
        used = replace(self, lr=lr, blend=blend, steps=steps, hflip=hflip, input_px=px)
        return ImageClassifier(
            dataset.classes,
            backbone,
            (backbone.n_depths,),
            network,
            self.name,
            used.hyperparameters(),
        )

    def image_passes(self, dataset: Dataset, backbone: Backbone) -> float:
        """Return the passes of the probe, of all training steps, and of validation."""
        steps = self.steps or default_steps(len(dataset.train), BATCH_SIZE)
        scale = (self.input_px or backbone.input_px) / backbone.input_px
        n_train, n_val = len(dataset.train), len(dataset.val)
        reinit = self.batch_norm == "reestimated" or self.reset_stages > 0
        return training_passes(n_train, n_val, steps, BATCH_SIZE, 0.0, scale, reinit=reinit)

    def inapplicable(self, dataset: Dataset, backbone: Backbone) -> str | None:
        """Reject resetting all stages: that is training from scratch."""
        if not 0 <= self.reset_stages < backbone.n_depths:
            return f"reset_stages must be in 0..{backbone.n_depths - 1}, got {self.reset_stages}"
        return None
