"""What of a pretrained network is made new before it is trained: statistics, last stages, head."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from strategies.core.context import RunContext
from strategies.core.metrics import Scores
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone, stages
from strategies.models.features import BATCH, batches, to_input
from strategies.models.network import Network
from strategies.training.recipe import Recipe

PASSES = 2
"""Renewing takes so many passes over the train images: for the statistics, and for the head."""


def needs_reinit(recipe: Recipe) -> bool:
    """Whether a recipe asks for anything new, so that the head has to be fitted again."""
    return recipe.batch_norm == "reestimated" or recipe.reset_stages > 0


def reinitialise(
    network: Network, dataset: Dataset, backbone: Backbone, recipe: Recipe, ctx: RunContext
) -> Scores:
    """Make new what the recipe asks for; return the train images' activations now, (n, d).

    The last ``reset_stages`` get random weights, drawn from torch's global generator. BatchNorm's
    statistics are taken from the train images in those stages and, where they are to be
    re-estimated, in all that learn.

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
    again = recipe.batch_norm == "reestimated"
    first = recipe.frozen_stages + 1 if again else first_reset
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
    """Give some BatchNorm layers the statistics of the train images as they see them now.

    All others stay in the mode that they are in.
    """
    with _collecting(norms):
        _run(network, dataset, backbone, ctx)


@torch.no_grad()
def _reset(net: nn.Module, stage: Mapping[str, int], first_reset: int, backbone: Backbone) -> None:
    """Copy random weights into the stages from `first_reset` on."""
    fresh = backbone.with_random_weights().build()
    for name, module in net.named_modules():
        if stage[name] < first_reset:
            continue
        source = fresh.get_submodule(name)
        for own, new in (
            (module.named_parameters(recurse=False), source.named_parameters(recurse=False)),
            (module.named_buffers(recurse=False), source.named_buffers(recurse=False)),
        ):
            values = dict(new)
            for key, tensor in own:
                tensor.copy_(values[key])


@contextlib.contextmanager
def _collecting(norms: Sequence[nn.BatchNorm2d]) -> Iterator[None]:
    """Let layers average the statistics of every batch that passes, from nothing."""
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's way of asking for a plain mean over batches
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.eval()


@torch.no_grad()
def _run(network: Network, dataset: Dataset, backbone: Backbone, ctx: RunContext) -> Scores:
    """Run the train images through the body in a drawn order, centre crops; (n, d) in theirs.

    In the order of the folder a batch would hold one class, and its statistics would be that
    class's own.
    """
    order = np.random.default_rng(ctx.seed).permutation(len(dataset.train))
    paths = [dataset.train[row].path for row in order]
    size = math.ceil(len(paths) / math.ceil(len(paths) / BATCH))  # no last batch of one image
    parts = []
    for pixels in batches(paths, backbone, ctx.n_workers, size):
        with ctx.autocast():
            found = network.body(to_input(pixels, backbone, ctx.device))
        parts.append(found.float().cpu().numpy())
    drawn = np.concatenate(parts)
    activations = np.empty_like(drawn)
    activations[order] = drawn
    return activations
