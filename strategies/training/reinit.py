"""Reinitialisation before fine-tuning: BatchNorm statistics (AdaBN) and random last stages."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from strategies.core.allocator import PartsThatFit
from strategies.core.context import RunContext
from strategies.core.metrics import Scores
from strategies.data.dataset import Dataset
from strategies.data.decoding import Pixels
from strategies.models.backbone import Backbone
from strategies.models.features import INFERENCE_BATCH, batches, to_input
from strategies.models.network import Network
from strategies.models.stages import stages
from strategies.training.recipe import Recipe

REINIT_PASSES = 2
"""Passes over the train images: one for the BatchNorm statistics, one for refitting the head."""


def reinitialise(
    network: Network, dataset: Dataset, backbone: Backbone, recipe: Recipe, ctx: RunContext
) -> Scores:
    """Reinitialise what the recipe asks for; return the new train features, (n, d).

    The last ``reset_stages`` get random weights, drawn from torch's global generator. BatchNorm
    statistics are recomputed from the train images: in the reset stages, and with ``batch_norm``
    "reestimated" in all stages that are trained.

    References
    ----------
    Y. Li et al., Revisiting batch normalization for practical domain adaptation, 2017 (AdaBN).

    Raises
    ------
    OutOfTime
        If the deadline passes first.
    """
    network.to(ctx.device)
    stage = stages(network.body.net, backbone)
    first_reset = max(stage.values()) - recipe.reset_stages + 1
    if recipe.reset_stages:
        _reset(network.body.net, stage, first_reset, backbone)
    reestimated = recipe.batch_norm == "reestimated"
    first = recipe.frozen_stages + 1 if reestimated else first_reset
    norms = [
        module
        for name, module in network.body.net.named_modules()
        if isinstance(module, nn.BatchNorm2d) and stage[name] >= first
    ]
    ctx.check_time()
    recompute_bn_statistics(network, norms, dataset, backbone, ctx)
    ctx.check_time()
    return _run(network, dataset, backbone, ctx)


def recompute_bn_statistics(
    network: Network,
    norms: Sequence[nn.BatchNorm2d],
    dataset: Dataset,
    backbone: Backbone,
    ctx: RunContext,
) -> None:
    """Recompute the running statistics of some BatchNorm layers from the train images.

    The other layers keep their statistics and their train or eval mode.
    """
    with _collecting(norms):
        _run(network, dataset, backbone, ctx)


@torch.no_grad()
def _reset(net: nn.Module, stage: Mapping[str, int], first_reset: int, backbone: Backbone) -> None:
    """Copy random weights into all stages from `first_reset` on."""
    fresh = backbone.with_random_weights().build()
    for name, module in net.named_modules():
        if stage[name] < first_reset:
            continue
        source = fresh.get_submodule(name)
        for old, new in (
            (module.named_parameters(recurse=False), source.named_parameters(recurse=False)),
            (module.named_buffers(recurse=False), source.named_buffers(recurse=False)),
        ):
            values = dict(new)
            for key, tensor in old:
                tensor.copy_(values[key])


@contextlib.contextmanager
def _collecting(norms: Sequence[nn.BatchNorm2d]) -> Iterator[None]:
    """Reset running statistics; inside the context, average those of all batches."""
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean over batches
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.eval()


@torch.no_grad()
def _run(network: Network, dataset: Dataset, backbone: Backbone, ctx: RunContext) -> Scores:
    """Return the features of the train images (centre crops) in their order, (n, d).

    The images are read in random order: in folder order a batch would hold a single class, and its
    BatchNorm statistics would be those of that class. A batch that does not fit into memory is
    passed in parts, and each of them counts as a batch for the statistics that are recomputed.
    """
    order = np.random.default_rng(ctx.seed).permutation(len(dataset.train))
    paths = [dataset.train[row].path for row in order]
    # Batches of equal size, so that the last one does not hold a single image.
    size = math.ceil(len(paths) / math.ceil(len(paths) / INFERENCE_BATCH))
    updated = [b for m in network.modules() if m.training for b in m.buffers(recurse=False)]

    def forward(pixels: Pixels) -> Tensor:
        before = [buffer.clone() for buffer in updated]
        try:
            with ctx.autocast():
                found: Tensor = network.body(to_input(pixels, backbone, ctx.device))
            return found.float().cpu()
        except RuntimeError:  # out of memory, after some statistics were updated
            for buffer, value in zip(updated, before, strict=True):
                buffer.copy_(value)
            raise

    fitting = PartsThatFit(ctx.device)
    parts = [fitting(forward, p) for p in batches(paths, backbone, ctx.n_workers, size)]
    shuffled = torch.cat(parts).numpy()
    features = np.empty_like(shuffled)
    features[order] = shuffled
    return features
