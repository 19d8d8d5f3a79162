"""Auto-encoder probe: a linear probe on features learnt without labels, from the dataset alone."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Self, final

import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from torch import Tensor, nn
from torch.nn import functional

from strategies.base import GainPrior, Role, Strategy
from strategies.core.allocator import PartsThatFit, first_micro_batches, in_micro_batches
from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime, TrainingDiverged
from strategies.core.folds import fold_numbers
from strategies.data.dataset import Dataset, groups_of, labels_of
from strategies.heads.cross_validation import cross_validate, fit_head, temperature
from strategies.models.backbone import Backbone, input_sizes, resized
from strategies.models.body import Body
from strategies.models.classifier import ImageClassifier, make_network, set_head
from strategies.models.features import to_input
from strategies.models.network import Network, outputs_of
from strategies.training.costs.memory import training_bytes
from strategies.training.dataloader import train_batches
from strategies.training.defaults import Measurements, default_steps
from strategies.training.lp_ft import PASSES_PER_STEP
from strategies.training.optimiser import NO_TIME, ProgressSchedule, Updater, warmup_cosine
from strategies.training.recipe import BATCH_SIZE, Recipe
from strategies.training.reinit import recompute_bn_statistics

TARGET_PX = 32
"""Side of the reconstructed image."""
DECODER_CHANNELS = 16
"""The decoder is small: its cost does not count, and the code has to hold the image."""


@final
@dataclass(frozen=True)
class AutoencoderProbe(Strategy):
    """A convolutional auto-encoder of the train images, and a linear probe on its code.

    The encoder is the first half of the backbone's architecture with random weights. A small
    decoder reconstructs the image at `TARGET_PX` pixels from its feature maps; labels are not
    used. The code is the mean of these maps over each quarter of the image. As a control, it shows
    what the images alone teach without pretraining and without labels. On 26 datasets it was never
    the best strategy (docs/benchmarks/suite.md).

    Attributes
    ----------
    depth
        Depth of the code, counted from 1. None: half of the depths.
    lr
        Peak learning rate.
    steps
        Optimiser steps of 32 images. None: as many as in fine-tuning.
    input_px
        Side of the square input. None: that of the backbone.
    """

    depth: int | None = None
    lr: float = 1e-3
    steps: int | None = None
    input_px: int | None = None

    name: ClassVar[str] = "autoencoder_probe"
    title: ClassVar[str] = "Autoencoder probe"
    references: ClassVar[tuple[str, ...]] = (
        "G. E. Hinton, R. R. Salakhutdinov, Reducing the dimensionality of data with neural "
        "networks, Science 2006",
    )
    role: ClassVar[Role] = "control"
    trains_network: ClassVar[bool] = False
    fallback_gain: ClassVar[GainPrior] = GainPrior(-1.3, 1.2)
    """Gain of a linear classifier of grey thumbnails over the linear probe: mean and standard
    deviation over the cases of the benchmarks."""

    @classmethod
    def search_space(cls, dataset: Dataset, backbone: Backbone) -> Mapping[str, BaseDistribution]:
        """Return depth of the code, learning rate, steps and input size."""
        base = default_steps(len(dataset.train), BATCH_SIZE)
        return {
            "depth": IntDistribution(1, backbone.n_depths - 1),
            "lr": FloatDistribution(1e-4, 1e-2, log=True),
            "steps": IntDistribution(base // 2, 2 * base),
            "input_px": CategoricalDistribution(input_sizes(backbone)),
        }

    @classmethod
    def starting_point(cls, measured: Measurements) -> Self:
        """Return half of the depths, the default rate, and steps for the number of images."""
        return cls(
            depth=max(1, measured.n_depths // 2),
            steps=default_steps(measured.n_train, BATCH_SIZE),
            input_px=measured.input_px,
        )

    def fit(self, dataset: Dataset, backbone: Backbone, ctx: RunContext) -> ImageClassifier:
        """Train the auto-encoder, then fit a calibrated head to the codes of the train images."""
        ctx.check_time()
        backbone = resized(backbone, self.input_px)
        used = self._resolved(dataset, backbone)
        assert used.depth is not None
        with ctx.seeded():
            network = make_network(
                backbone.with_random_weights(), (used.depth,), dataset.n_classes, "grid"
            ).to(ctx.device)
            used._train(network, dataset, backbone, ctx)
        _fit_head(network, dataset, backbone, ctx)
        return ImageClassifier(
            dataset.classes,
            backbone,
            (used.depth,),
            network.eval(),
            self.name,
            used.hyperparameters(),
            "grid",
        )

    def image_passes(self, dataset: Dataset, backbone: Backbone) -> float:
        """Return the passes of the training steps, of BatchNorm statistics, and of the codes.

        A step counts as one of the whole network: the first stages have the largest feature maps,
        and their training takes about as long (measured on a CPU with EfficientNet-Lite0).
        """
        used = self._resolved(dataset, backbone)
        assert used.depth is not None
        assert used.steps is not None
        encoded = 2 * len(dataset.train) * backbone.depths[used.depth - 1].flops_share
        scale = (self.input_px or backbone.input_px) / backbone.input_px
        return (used.steps * BATCH_SIZE * PASSES_PER_STEP + encoded) * scale**2

    def peak_bytes(self, dataset: Dataset, backbone: Backbone, ctx: RunContext) -> int:
        """Predict the largest memory in bytes: that of training the encoder.

        The decoder is small, and no other copies of the weights are kept.
        """
        used = self._resolved(dataset, backbone)
        assert used.depth is not None
        recipe = Recipe(1, self.lr, batch_norm="trained")
        return training_bytes(
            backbone,
            recipe,
            ctx,
            dataset.n_classes,
            input_px=self.input_px,
            depths=(used.depth,),
            n_copies=0,
        )

    def inapplicable(self, dataset: Dataset, backbone: Backbone) -> str | None:
        """Reject depths that have no feature maps."""
        if self.depth is not None and not 1 <= self.depth < backbone.n_depths:
            return f"depth must be in 1..{backbone.n_depths - 1}, got {self.depth}"
        return None

    def _resolved(self, dataset: Dataset, backbone: Backbone) -> Self:
        return replace(
            self,
            depth=self.depth or max(1, backbone.n_depths // 2),
            steps=self.steps or default_steps(len(dataset.train), BATCH_SIZE),
            input_px=backbone.input_px,
        )

    def _train(
        self, network: Network, dataset: Dataset, backbone: Backbone, ctx: RunContext
    ) -> None:
        """Train the body to reconstruct random crops; then recompute its BatchNorm statistics.

        Raises
        ------
        TrainingDiverged
            If the gradient is not finite.
        """
        assert self.steps is not None
        body, recipe = network.body, Recipe(steps=self.steps, lr=self.lr)
        model = _Autoencoder(body, _decoder(body, backbone, ctx))
        is_fused = True if ctx.device.type == "cuda" else None
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=self.lr, weight_decay=recipe.weight_decay, fused=is_fused
        )
        updater = Updater(model, optimiser, recipe.clip_norm, ctx.precision)
        n_parts = first_micro_batches(BATCH_SIZE, ctx.device)
        schedule = ProgressSchedule(recipe, ctx)
        body.train()
        with contextlib.closing(train_batches(dataset.train, backbone, recipe, ctx)) as crops:
            for step, (_, pixels) in enumerate(crops):
                progress = schedule.progress(step)
                if progress >= 1:
                    if step == 0:
                        raise OutOfTime(NO_TIME)
                    break
                for group in optimiser.param_groups:
                    group["lr"] = self.lr * warmup_cosine(progress, recipe.warmup)
                gradient = partial(
                    _compute_gradient, model, updater, to_input(pixels, backbone, ctx.device), ctx
                )
                n_parts = in_micro_batches(gradient, n_parts, len(pixels), ctx.device)
                updater.update()
                if (step + 1) % updater.check_steps == 0 and updater.has_failed():
                    raise TrainingDiverged(
                        f"The gradient was not finite at step {step}, with the learning rate "
                        f"{self.lr:g}. Use a smaller one."
                    )
        network.eval()
        norms = [m for m in body.modules() if isinstance(m, nn.BatchNorm2d)]
        recompute_bn_statistics(network, norms, dataset, backbone, ctx)


class _Autoencoder(nn.Module):
    """Encoder and decoder; the output is the squared error of every image, (n,)."""

    def __init__(self, body: Body, decoder: nn.Sequential) -> None:
        super().__init__()
        self.body, self.decoder = body, decoder

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean squared error of the reconstruction at `TARGET_PX` pixels."""
        found = self.decoder(self.body.levels_of(images)[0][-1].maps)
        target = functional.adaptive_avg_pool2d(images, TARGET_PX)
        error: Tensor = (found.float() - target).square().mean(dim=(1, 2, 3))
        return error


def _compute_gradient(
    model: _Autoencoder, updater: Updater, images: Tensor, ctx: RunContext, n_parts: int
) -> None:
    """Compute the gradient of the mean error of a batch, in micro-batches."""
    updater.optimiser.zero_grad(set_to_none=True)
    for part in images.tensor_split(n_parts):
        with ctx.autocast():
            loss = model(part).sum() / len(images)
        torch.autograd.backward(updater.scaler.scale(loss))


def _decoder(body: Body, backbone: Backbone, ctx: RunContext) -> nn.Sequential:
    """Return a decoder from the body's feature maps to an image of `TARGET_PX` pixels."""
    blank = torch.zeros(1, 3, backbone.input_px, backbone.input_px, device=ctx.device)
    with torch.no_grad():
        maps = PartsThatFit(ctx.device)(lambda x: body.eval().levels_of(x)[0][-1].maps, blank)
    return nn.Sequential(
        nn.Conv2d(maps.shape[1], DECODER_CHANNELS, 1),
        nn.GELU(),
        nn.Upsample(size=(TARGET_PX, TARGET_PX), mode="bilinear"),
        nn.Conv2d(DECODER_CHANNELS, DECODER_CHANNELS, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(DECODER_CHANNELS, 3, 3, padding=1),
    ).to(ctx.device)


def _fit_head(network: Network, dataset: Dataset, backbone: Backbone, ctx: RunContext) -> None:
    """Fit the head to the codes; choose strength and temperature by cross-validation."""
    paths, labels = [image.path for image in dataset.train], labels_of(dataset.train)

    def encode(pixels: Tensor) -> Tensor:
        ctx.check_time()
        codes: Tensor = network.body(pixels)
        return codes

    codes = outputs_of(encode, paths, backbone, ctx)
    folds = fold_numbers(labels, ctx.seed, groups=groups_of(dataset.train))
    found = cross_validate(codes, labels, dataset.n_classes, folds=folds, device=ctx.head_device)
    t, _ = temperature(found.scores, labels)
    strength = found.strengths[found.best]
    head = fit_head(
        codes, labels, dataset.n_classes, strength, temperature=t, device=ctx.head_device
    )
    set_head(network, head.weight, head.bias)
