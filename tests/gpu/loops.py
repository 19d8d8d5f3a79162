"""Helpers of the tests on a GPU: a training loop to step by hand, and measures of agreement."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.models.classifier import make_network
from strategies.models.network import Network
from strategies.models.stages import stages
from strategies.training.dataloader import ImageInputs
from strategies.training.loop import TrainingLoop
from strategies.training.recipe import Recipe


def make_loop(
    backbone: Backbone, dataset: Dataset, recipe: Recipe, ctx: RunContext
) -> TrainingLoop:
    """Return a training loop on the context's device, before its first step."""
    with ctx.seeded():
        network = make_network(backbone, (backbone.n_depths,), dataset.n_classes)
    network.to(ctx.device).to(memory_format=torch.channels_last).train()
    inputs = ImageInputs(network, dataset, backbone, recipe, ctx)
    stage = stages(network.body.net, backbone)
    return TrainingLoop(inputs, stage, dataset, recipe, ctx)


def noise(n: int, backbone: Backbone, ctx: RunContext, scale: float = 1.0) -> Tensor:
    """Return n images of noise on the context's device, the same on every device."""
    generator = torch.Generator().manual_seed(0)
    images = scale * torch.randn(n, 3, backbone.input_px, backbone.input_px, generator=generator)
    return images.to(ctx.device).to(memory_format=torch.channels_last)


def step(loop: TrainingLoop, images: Tensor) -> None:
    """Take a step on images whose labels are those of the train images, in turn."""
    rows = [i % len(loop.labels) for i in range(len(images))]
    with loop.ctx.device_settings():
        loop.take_step(rows, images)


def state_of(loop: TrainingLoop) -> dict[str, Tensor]:
    """Return a copy of everything that a checkpoint would hold, by name."""
    return {name: value.clone() for name, value in loop.snapshot().tensors.items()}


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that are not the same, bit for bit."""
    return [name for name, value in before.items() if not torch.equal(value, after[name])]


def inject_nan(network: Network, affects: Callable[[int], bool]) -> None:
    """Make the scores of some training steps, counted from 0, NaN."""
    steps = iter(range(1000))

    def inject(module: nn.Module, inputs: object, scores: Tensor) -> Tensor | None:
        return scores * torch.nan if module.training and affects(next(steps)) else None

    network.head.register_forward_hook(inject)


def relative_error(found: object, expected: object) -> float:
    """Return the Euclidean norm of the difference, relative to that of the expected values."""
    a, b = (
        v.detach().double().cpu().numpy() if isinstance(v, Tensor) else np.asarray(v, dtype=float)
        for v in (found, expected)
    )
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
