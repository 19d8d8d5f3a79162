"""Memory: predict the peak of a feature pass and of a training run before it starts.

A pass of two images at half the input size is run on the device. The bytes of the tensors that it
makes grow with the number of images and with the area of an image. Weights, gradients and the
state of the optimiser do not. Memory that an operation takes and frees inside itself is not
counted, nor are the images that are read ahead, the features, and the libraries.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from strategies.core.allocator import first_micro_batches, free_bytes
from strategies.core.cache import space_name
from strategies.core.context import RunContext
from strategies.kernels.bn_folding import fast_kernels, norms_to_fold
from strategies.kernels.depthwise import training_precision
from strategies.models.backbone import Backbone, half_size
from strategies.models.classifier import make_network
from strategies.models.features import INFERENCE_BATCH, to_input
from strategies.models.network import Network
from strategies.models.stages import stages
from strategies.training.costs.live_bytes import LiveBytes
from strategies.training.optimiser import Loss, freeze
from strategies.training.recipe import Recipe

N_TRIED = 2
"""Images of a trial: BatchNorm cannot be trained on one image with maps of one position."""
TRIED_PX = 96
"""A trial is at half the input size, but at least this."""
FREE_SHARE = 0.9
"""Share of the free memory that a training step may take: operations need some for themselves."""
USUAL_FACTOR = 48
"""By how much a usual batch has more pixels than a trial: 32 images at twice the side."""
_KEY = "bytes of a pass"
_FORMAT = 1


@dataclass(frozen=True)
class PassMemory:
    """Bytes that passes of a network take.

    Attributes
    ----------
    weights
        Parameters and buffers of the network, without a new head.
    trained
        Parameters that get a gradient, without a new head.
    fixed
        Other bytes at the peak of a pass, whatever the number of images: folded weights.
    per_image
        Bytes of a pass for every image.
    """

    weights: float
    trained: float
    fixed: float
    per_image: float


def feature_pass_bytes(
    backbone: Backbone,
    ctx: RunContext,
    input_px: int | None = None,
    n_images: int = INFERENCE_BATCH,
) -> int:
    """Predict the peak bytes of a feature pass.

    Parameters
    ----------
    input_px
        Side of the input; None: that of the backbone.
    n_images
        Images of a batch. Larger ones on a CUDA device only take what is free
        (`inference_passes`).
    """
    tried = half_size(backbone, TRIED_PX)
    key = ("features",)
    found = _cached(key, tried, ctx, partial(_try_features, tried, ctx))
    scale = ((input_px or backbone.input_px) / tried.input_px) ** 2
    return round(found.weights + n_images * scale * found.per_image)


def training_bytes(
    backbone: Backbone,
    recipe: Recipe,
    ctx: RunContext,
    n_classes: int,
    *,
    input_px: int | None = None,
    depths: tuple[int, ...] | None = None,
    n_copies: int = 2,
) -> int:
    """Predict the peak bytes of a training run by a recipe.

    A batch counts as a whole on an accelerator, which splits it if it does not fit, and in its
    micro-batches on a CPU.

    Parameters
    ----------
    input_px
        Side of the input; None: that of the backbone.
    depths
        Depths that the head reads; None: the penultimate one. A network that is cut earlier is
        trained as a whole, with its BatchNorm statistics.
    n_copies
        Copies of all weights that the run keeps beside the network: those of the start and of the
        best round.
    """
    depths = depths or (backbone.n_depths,)
    tried = half_size(backbone, TRIED_PX)
    recipe = replace(recipe, last_trained_stage=None)  # the stages after it pass gradients on
    settings = (recipe.frozen_stages, recipe.trained)
    key = ("training", *settings, recipe.batch_norm, recipe.reset_stages, depths)
    found = _cached(
        (*key, recipe.lora_rank), tried, ctx, partial(_try_step, tried, recipe, depths, ctx)
    )
    head = 4 * n_classes * (sum(backbone.depths[d - 1].channels for d in depths) + 1)
    weights = (1 + n_copies + (recipe.ema > 0)) * (found.weights + head)
    trained = found.trained + head
    scale = ((input_px or backbone.input_px) / tried.input_px) ** 2
    n_images = recipe.batch_size / first_micro_batches(recipe.batch_size, ctx.device)
    activations = math.ceil(n_images) * scale * found.per_image
    states = _n_moments(recipe) * trained + max(found.fixed, trained)
    return round(weights + states + activations)


def step_memory(
    network: Network,
    fixed_norms: Collection[nn.Module],
    recipe: Recipe,
    images: Tensor,
    ctx: RunContext,
) -> PassMemory:
    """Measure the bytes of a training step on a few images. The network is left as it was.

    A forward pass is enough: the most is alive when it ends, with all that the backward pass
    needs. Gradients then take the place of activations and of folded weights, which are freed.

    Parameters
    ----------
    fixed_norms
        BatchNorm layers with fixed statistics, from `freeze`.
    images
        Normalised images on the device, (n, 3, h, w).
    """
    precise = replace(ctx, precision=training_precision(network, ctx))
    norms = norms_to_fold(network, fixed_norms, images[:1]) if fixed_norms else {}
    modes = {module: module.training for module in network.modules()}
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.train()
    for module in fixed_norms:
        module.eval()
    targets = torch.zeros(len(images), dtype=torch.long, device=images.device)
    parameters = list(network.parameters())
    passed = LiveBytes(parameters)
    try:
        with ctx.seeded(), passed, precise.autocast(), fast_kernels(ctx.device, norms):
            Loss(network, recipe)(images, targets)
    finally:
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(before[name])
        for module, training in modes.items():
            module.training = training
    live, fixed = max(passed.history, key=_at_a_usual_batch)
    per_image = (live - fixed) / len(images) + images[0].nbytes
    weights = sum(value.nbytes for value in network.state_dict().values())
    trained = sum(p.nbytes for p in parameters if p.requires_grad)
    return PassMemory(weights, trained, fixed, per_image)


def fitting_micro_batches(
    network: Network,
    fixed_norms: Collection[nn.Module],
    recipe: Recipe,
    images: Tensor,
    ctx: RunContext,
) -> int:
    """Return into how many micro-batches a batch is split so that a step fits into memory.

    It is 1 on other devices than CUDA devices, on several GPUs (whose gradients a trial would
    share), and for very small batches. A step that does not fit all the same is split further when
    the device is out of memory.

    Parameters
    ----------
    fixed_norms, images
        As in `step_memory`; the first images are tried.
    """
    if ctx.device.type != "cuda" or ctx.training.n_gpus > 1 or len(images) <= N_TRIED:
        return 1
    try:
        step = step_memory(network, fixed_norms, recipe, images[:N_TRIED], ctx)
    except torch.OutOfMemoryError:
        return len(images)  # not even a trial fits, but a single image may
    states = _n_moments(recipe) * step.trained + max(step.fixed, step.trained)
    left = FREE_SHARE * free_bytes(ctx.device) - states
    return micro_batches(len(images), step.per_image, left)


def micro_batches(n_images: int, bytes_per_image: float, left: float) -> int:
    """Return the smallest number of equal parts of a batch that fit into `left` bytes each."""
    n_fitting = max(1, int(left / max(bytes_per_image, 1.0)))
    return math.ceil(n_images / n_fitting)


def _n_moments(recipe: Recipe) -> int:
    """Return how many copies of the trained parameters the state of the optimiser holds."""
    return 2 if recipe.optimiser == "adamw" else 1


def _at_a_usual_batch(counted: tuple[int, int]) -> int:
    """Return the bytes with so many images that activations outweigh gradients."""
    live, fixed = counted
    return USUAL_FACTOR * (live - fixed) + fixed


def _try_step(
    backbone: Backbone, recipe: Recipe, depths: tuple[int, ...], ctx: RunContext
) -> PassMemory:
    """Measure a training step on blank images, with a head of three classes."""
    with ctx.seeded():
        network = make_network(backbone, depths, 3).to(ctx.device)
    network.to(memory_format=torch.channels_last)
    fixed_norms: Collection[nn.Module] = ()
    if depths == (backbone.n_depths,):  # a network that is cut earlier is trained as a whole
        stage = stages(network.body.net, backbone)
        fixed_norms = freeze(network.body, stage, replace(recipe, lora_rank=0))
    found = step_memory(network, fixed_norms, recipe, _blank(backbone, ctx), ctx)
    head = sum(p.nbytes for p in network.head.parameters())
    trained = found.trained - head
    if recipe.lora_rank:
        matrices = [m.weight for m in network.body.modules() if _has_lora(m)]
        trained = sum(4 * recipe.lora_rank * (len(w) + w[0].numel()) for w in matrices)
    return replace(found, weights=found.weights - head, trained=trained)


def _has_lora(module: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Whether LoRA changes a layer; some that it leaves alone count too."""
    is_pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
    return isinstance(module, nn.Linear) or is_pointwise


@torch.no_grad()
def _try_features(backbone: Backbone, ctx: RunContext) -> PassMemory:
    """Measure a feature pass over blank images."""
    with ctx.seeded():
        network = make_network(backbone, (backbone.n_depths,), 2).to(ctx.device).eval()
    weights = sum(value.nbytes for value in network.body.state_dict().values())
    passed = LiveBytes(())
    with passed, ctx.autocast():
        network.body(_blank(backbone, ctx))
    peak = max(live for live, _ in passed.history)
    return PassMemory(weights, 0.0, 0.0, peak / N_TRIED)


def _cached(
    key: tuple[object, ...], backbone: Backbone, ctx: RunContext, measure: Callable[[], PassMemory]
) -> PassMemory:
    """Return what was measured of this network, input size, precision and device before."""
    name = (backbone.name, backbone.digest, backbone.input_px, ctx.precision, ctx.device.type)
    space = space_name([_KEY, _FORMAT, *name, *key])
    rows = ctx.cache.get(space, [_KEY])
    if _KEY not in rows:
        rows = {_KEY: np.array(astuple(measure()), dtype=np.float32)}
        ctx.cache.put(space, rows)
    return PassMemory(*rows[_KEY].tolist())


def _blank(backbone: Backbone, ctx: RunContext) -> Tensor:
    px = backbone.input_px
    return to_input(np.zeros((N_TRIED, px, px, 3), dtype=np.uint8), backbone, ctx.device)
