"""Training from scratch: the random-init control for negative transfer."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

from optuna.trial import BaseTrial

from strategies.base import Strategy
from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone, input_sizes, resized
from strategies.models.classifier import ImageClassifier, make_network
from strategies.training.lp_ft import calibrate, training_passes
from strategies.training.recipe import BATCH_SIZE, Recipe, default_steps
from strategies.training.trainer import train


@final
@dataclass(frozen=True)
class FromScratch(Strategy):
    """All layers trained from random weights, BatchNorm included.

    Attributes
    ----------
    lr
        Peak learning rate.
    steps
        Optimiser steps of 32 images. None: twice as many as in fine-tuning.
    hflip
        Whether train images are randomly flipped horizontally.
    input_px
        Side of the square input. None: that of the backbone.
    """

    lr: float = 3e-3
    steps: int | None = None
    hflip: bool = False
    input_px: int | None = None

    name: ClassVar[str] = "from_scratch"
    summary: ClassVar[str] = "training from random weights: the control for negative transfer"
    references: ClassVar[tuple[str, ...]] = (
        "K. He, R. Girshick, P. Dollar, Rethinking ImageNet pre-training, ICCV 2019",
    )
    selects_on_val: ClassVar[bool] = True

    @classmethod
    def suggest(cls, trial: BaseTrial, dataset: Dataset, backbone: Backbone) -> Self:
        """Sample learning rate, steps, horizontal flips and input size."""
        base = 2 * default_steps(len(dataset.train), BATCH_SIZE)
        return cls(
            lr=trial.suggest_float("lr", 3e-4, 1e-2, log=True),
            steps=trial.suggest_int("steps", base // 2, 2 * base),
            hflip=trial.suggest_categorical("hflip", [False, True]),
            input_px=trial.suggest_categorical("input_px", input_sizes(backbone)),
        )

    def fit(self, dataset: Dataset, backbone: Backbone, ctx: RunContext) -> ImageClassifier:
        """Train; keep an earlier round only if it is significantly better on validation."""
        ctx.check_time()
        backbone = resized(backbone, self.input_px)
        used = replace(self, steps=self._steps(dataset), input_px=backbone.input_px)
        recipe = Recipe(
            steps=self._steps(dataset), lr=self.lr, batch_norm="trained", hflip=self.hflip
        )
        depths = (backbone.n_depths,)
        with ctx.seeded():
            network = make_network(backbone.with_random_weights(), depths, dataset.n_classes)
            scores = train(network, dataset, backbone, recipe, ctx)
        calibrate(network, scores, dataset)
        return ImageClassifier(
            dataset.classes, backbone, depths, network, self.name, used.hyperparameters()
        )

    def image_passes(self, dataset: Dataset, backbone: Backbone) -> float:
        """Return the passes of all training steps and of validation."""
        scale = (self.input_px or backbone.input_px) / backbone.input_px
        n_train, n_val, steps = len(dataset.train), len(dataset.val), self._steps(dataset)
        return training_passes(n_train, n_val, steps, BATCH_SIZE, 0.0, scale)

    def _steps(self, dataset: Dataset) -> int:
        return self.steps or 2 * default_steps(len(dataset.train), BATCH_SIZE)
