"""Training from scratch: the random-init control for negative transfer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self, final

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from strategies.base import GainPrior, Role, Strategy
from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone, input_sizes, resized
from strategies.models.classifier import ImageClassifier, make_network
from strategies.training.costs.memory import training_bytes
from strategies.training.defaults import (
    Measurements,
    NetworkFacts,
    default_batch_size,
    default_steps,
    lr_factor,
    settle,
)
from strategies.training.lp_ft import calibrate, training_passes
from strategies.training.recipe import Recipe, RecipeDraft
from strategies.training.trainer import train

LR, LR_BY_LAYER = 3e-3, 5e-4
"""Learning rates of convolutional networks, and of transformers and ConvNeXt, for batches of 32.

The second is that of compact transformers on small datasets, 5.5e-4 (A. Hassani et al., Escaping
the big data paradigm with compact transformers, 2021).
"""
WEIGHT_DECAY = 0.05
"""Weight decay of transformers and ConvNeXt, as in DeiT and ConvNeXt."""


@final
@dataclass(frozen=True)
class FromScratch(Strategy):
    """All layers trained from random weights, BatchNorm included.

    Attributes
    ----------
    lr
        Peak learning rate. None: `LR`, or `LR_BY_LAYER` for transformers and ConvNeXt, times
        `lr_factor`.
    steps
        Optimiser steps. Their batch is `default_batch_size`. None: twice as many as in
        fine-tuning.
    hflip
        Whether train images are randomly flipped horizontally.
    input_px
        Side of the square input. None: that of the backbone.
    """

    lr: float | None = None
    steps: int | None = None
    hflip: bool = False
    input_px: int | None = None

    name: ClassVar[str] = "from_scratch"
    title: ClassVar[str] = "From scratch"
    references: ClassVar[tuple[str, ...]] = (
        "K. He, R. Girshick, P. Dollar, Rethinking ImageNet pre-training, ICCV 2019",
    )
    role: ClassVar[Role] = "control"
    trains_network: ClassVar[bool] = True
    fallback_gain: ClassVar[GainPrior] = GainPrior(-0.39, 1.14)

    @classmethod
    def search_space(cls, dataset: Dataset, backbone: Backbone) -> Mapping[str, BaseDistribution]:
        """Return learning rate, steps, horizontal flips and input size."""
        base = cls._default_steps(len(dataset.train))
        low, high = (3e-4, 1e-2) if backbone.family == "convolutional" else (5e-5, 3e-3)
        factor = lr_factor(default_batch_size(len(dataset.train)))
        return {
            "lr": FloatDistribution(low * factor, high * factor, log=True),
            "steps": IntDistribution(base // 2, 2 * base),
            "hflip": CategoricalDistribution([False, True]),
            "input_px": CategoricalDistribution(input_sizes(backbone)),
        }

    @classmethod
    def starting_point(cls, measured: Measurements) -> Self:
        """Return the defaults, with a number of steps for the number of images."""
        n_train = measured.n_train
        lr, steps = _default_lr(measured, n_train), cls._default_steps(n_train)
        return cls(lr=lr, steps=steps, input_px=measured.input_px)

    def fit(self, dataset: Dataset, backbone: Backbone, ctx: RunContext) -> ImageClassifier:
        """Train; keep an earlier round only if it is significantly better on validation."""
        ctx.check_time()
        backbone = resized(backbone, self.input_px)
        recipe = self._recipe(dataset, backbone)
        used = replace(self, lr=recipe.lr, steps=recipe.steps, input_px=backbone.input_px)
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
        return training_passes(dataset, backbone, self._recipe(dataset, backbone), self.input_px)

    def peak_bytes(self, dataset: Dataset, backbone: Backbone, ctx: RunContext) -> int:
        """Predict the largest memory of the training run in bytes."""
        recipe = self._recipe(dataset, backbone)
        return training_bytes(backbone, recipe, ctx, dataset.n_classes, input_px=self.input_px)

    def _recipe(self, dataset: Dataset, backbone: Backbone) -> Recipe:
        n_train = len(dataset.train)
        draft = RecipeDraft(
            steps=self.steps or self._default_steps(n_train),
            batch_size=default_batch_size(n_train),
            lr=_default_lr(backbone, n_train) if self.lr is None else self.lr,
            batch_norm="trained",
            hflip=self.hflip,
            weight_decay=None if backbone.family == "convolutional" else WEIGHT_DECAY,
        )
        return Recipe.of(settle(draft, backbone.family))

    @staticmethod
    def _default_steps(n_train: int) -> int:
        return 2 * default_steps(n_train, default_batch_size(n_train))


def _default_lr(network: NetworkFacts, n_train: int) -> float:
    lr = LR if network.family == "convolutional" else LR_BY_LAYER
    return lr * lr_factor(default_batch_size(n_train))
