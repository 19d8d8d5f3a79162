"""Class activation maps: where in an image a classifier finds evidence for a class.

Where the head is linear on activations that are pooled by their mean, the score of a class is the
mean over the positions of a map, plus the bias. That map is exact (CAM). Where something that is
not linear lies between the positions and the head (norm or layers after the pooling, attention,
class tokens), the map is a linear approximation at the image (Grad-CAM).

References
----------
B. Zhou et al., Learning deep features for discriminative localization, CVPR 2016 (CAM).
R. R. Selvaraju et al., Grad-CAM: visual explanations from deep networks via gradient-based
localization, ICCV 2017.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from strategies.core.allocator import PartsThatFit
from strategies.core.devices import cuda_settings
from strategies.core.errors import BackboneError
from strategies.core.metrics import Labels
from strategies.data.decoding import Pixels
from strategies.models.body import Body, Pooling, pool
from strategies.models.classifier import ImageClassifier
from strategies.models.features import to_input

Method = Literal["CAM", "Grad-CAM", "CAM and Grad-CAM"]
"""How maps were computed. "CAM and Grad-CAM": a head that reads several depths, of which some are
pooled by their mean and one is not; the map is the sum of those of its parts."""
_NO_POSITIONS = (
    "Class activation maps need feature maps or a square grid of patch tokens before the pooling; "
    "this network has {}. Predict without --explain."
)
_TOLERANCE = 1e-4
"""Relative difference up to which the network's own pooling counts as the mean."""


@dataclass(frozen=True)
class ClassMaps:
    """Maps of the evidence for a class in some images.

    Attributes
    ----------
    maps
        One map per image at the size of its crop, float32 (n, px, px), in units of the score
        (logit). Positive where a position speaks for the class, negative where against it. With
        "CAM" its mean plus the bias of the head is the score, or the difference of two scores.
        "Grad-CAM" has the same unit, but is an approximation. Unlike in its paper, negative values
        are kept.
    method
        How the maps were computed.
    features
        What the head reads, float32 (n, d).
    bias
        The part of each score that has no position, float32 (n,): the bias of the head.
    """

    maps: NDArray[np.float32]
    method: Method
    features: NDArray[np.float32]
    bias: NDArray[np.float32]

    def with_bias(self) -> NDArray[np.float32]:
        """Return exact maps with the bias spread evenly: their means are the scores.

        So a map of the predicted class rather than another one is positive somewhere. Maps by
        Grad-CAM are returned as they are.
        """
        return self.maps + self.bias[:, None, None] if self.method == "CAM" else self.maps


def class_maps(
    classifier: ImageClassifier, pixels: Pixels, classes: Labels, against: Labels | None = None
) -> ClassMaps:
    """Return where each image speaks for a class, or for a class rather than another one.

    Parameters
    ----------
    pixels
        Evaluation crops, uint8 (n, px, px, 3), see `features.eval_pixels`.
    classes
        Number of the class that is explained, for every image, (n,).
    against
        Number of another class for every image: the map is the difference of the two classes'
        maps. None: the map of the class alone.

    Raises
    ------
    BackboneError
        If the network has neither feature maps nor patch tokens before its pooling.
    TransferError
        If a single image does not fit into memory.
    """
    network, device = classifier.network.eval(), classifier.device
    head = network.head
    weight = torch.cat([head.weight, head.bias[:, None]], dim=1).detach().float()
    joint = weight[torch.from_numpy(classes).to(device)]
    if against is not None:
        joint = joint - weight[torch.from_numpy(against).to(device)]
    of_image, bias = joint[:, :-1], joint[:, -1].cpu().numpy()
    px, kinds = classifier.backbone.input_px, set[bool]()

    def forward(numbers: Tensor) -> Tensor:
        images = to_input(pixels[numbers.numpy()], classifier.backbone, device)
        parts, features = _parts(network.body, images, of_image[numbers.to(device)])
        kinds.update(part.is_exact for part in parts)
        maps = torch.stack([_enlarged(part.maps, px) for part in parts]).sum(dim=0)
        return torch.cat([maps.flatten(1), features], dim=1).cpu()

    with torch.no_grad(), cuda_settings(device), _frozen(network):
        joined = PartsThatFit(device)(forward, torch.arange(len(pixels))).numpy()
    maps, features = np.split(joined, [px * px], axis=1)
    method: Method = "CAM" if False not in kinds else "Grad-CAM"
    if len(kinds) > 1:
        method = "CAM and Grad-CAM"
    return ClassMaps(maps.reshape(-1, px, px), method, features, bias)


@dataclass(frozen=True)
class _Part:
    """Map of one depth, (n, h, w), and whether it is exact (CAM)."""

    maps: Tensor
    is_exact: bool


def _parts(body: Body, images: Tensor, weights: Tensor) -> tuple[list[_Part], Tensor]:
    """Return the maps of every depth, and the features (n, d).

    Parameters
    ----------
    weights
        Weights of the explained score for every image, (n, d).
    """
    if body.has_class_token or (body.has_tokens and body.whole):
        return _token_parts(body, images, weights)
    levels, last = body.unpooled(images)
    features = [pool(level, body.pooling) for level in levels]
    if last is not None:
        features.append(body.pool_last(last))
        if _is_of_tokens(last) and not _is_mean(last.mean(dim=1), features[-1]):
            return _token_parts(body, images, weights)
    by_depth = torch.split(weights, [f.shape[1] for f in features], dim=1)
    parts = [
        _Part(_level_map(level.maps, part, body.pooling), True)
        for level, part in zip(levels, by_depth, strict=False)
    ]
    if last is not None:
        parts.append(_last_part(body, last, features[-1], by_depth[-1]))
    return parts, torch.cat(features, dim=1).float()


def _level_map(maps: Tensor, weights: Tensor, pooling: Pooling) -> Tensor:
    """Return the exact map (n, h, w) of feature maps (n, channels, h, w) that `pool` pools."""
    if pooling == "mean":
        return torch.einsum("nchw,nc->nhw", maps, weights)
    height, width = maps.shape[2:]
    down, across = (height + 1) // 2, (width + 1) // 2
    rows, columns = (
        (slice(0, half), slice(side - half, side))
        for side, half in ((height, down), (width, across))
    )
    found = maps.new_zeros(len(maps), height, width)
    # A quarter's mean is over a part of the positions: each of them counts for more.
    share = down * across / (height * width)
    for (r, c), part in zip(product(rows, columns), weights.chunk(4, dim=1), strict=True):
        found[:, r, c] += torch.einsum("nchw,nc->nhw", maps[:, :, r, c], part) / share
    return found


def _last_part(body: Body, last: Tensor, pooled: Tensor, weights: Tensor) -> _Part:
    """Return the map of the last activations, which the network pools in its own way."""
    maps = _as_maps(last)
    if _is_mean(maps.mean((2, 3)), pooled):
        return _Part(_level_map(maps, weights, "mean"), True)
    with torch.enable_grad():
        leaf = last.detach().requires_grad_()
        (gradient,) = torch.autograd.grad((body.pool_last(leaf) * weights).sum(), leaf)
    return _Part(_grad_cam(maps, _as_maps(gradient)), False)


def _is_of_tokens(last: object) -> bool:
    return isinstance(last, Tensor) and last.ndim == 3


def _is_mean(mean: Tensor, pooled: Tensor) -> bool:
    """Return whether pooled activations (n, channels) are the mean over the positions."""
    atol = _TOLERANCE * float(mean.abs().max())
    return mean.shape == pooled.shape and torch.allclose(pooled, mean, _TOLERANCE, atol)


def _token_parts(body: Body, images: Tensor, weights: Tensor) -> tuple[list[_Part], Tensor]:
    """Return Grad-CAM of the tokens that enter each block whose output the head reads.

    The head may read only a class token of the block's output. What that token took from the
    patches is known by the gradient before the block's attention.
    """
    leaves: list[Tensor] = []

    def cut(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        leaves.append(given[0].detach().requires_grad_())
        return (leaves[-1], *given[1:])

    with contextlib.ExitStack() as stack, torch.enable_grad():
        for block in body.read_blocks():
            stack.enter_context(block.register_forward_pre_hook(cut))
        features = body(images)
        score = (features * weights).sum()
        gradients = torch.autograd.grad(score, leaves) if leaves else ()
    n_prefix = int(getattr(body.net, "num_prefix_tokens", 0))
    if not leaves or any(len(leaf) != len(images) for leaf in leaves):
        raise BackboneError(_NO_POSITIONS.format("blocks that do not take one row per image"))
    parts = [
        _Part(_grad_cam(_as_maps(leaf.detach(), n_prefix), _as_maps(gradient, n_prefix)), False)
        for leaf, gradient in zip(leaves, gradients, strict=True)
    ]
    return parts, features.detach().float()


def _grad_cam(maps: Tensor, gradient: Tensor) -> Tensor:
    """Return the sum of feature maps (n, channels, h, w), weighted by their mean gradients.

    The gradient is summed over the positions and not averaged, so that the mean of the map is the
    score if that is linear in the mean of the feature maps.
    """
    return torch.einsum("nchw,nc->nhw", maps, gradient.sum((2, 3)))


def _as_maps(activations: object, n_prefix: int = 0) -> Tensor:
    """Return activations in any of timm's layouts as feature maps (n, channels, h, w).

    The input is square, so the two equal sides of (n, a, b, c) are height and width. Some
    networks add the class token only after some blocks, and do not say how many tokens it makes.
    """
    if isinstance(activations, Tensor) and activations.ndim == 4:
        _, a, b, c = activations.shape
        return activations.permute(0, 3, 1, 2) if a == b != c else activations
    if isinstance(activations, Tensor) and activations.ndim == 3:
        n = activations.shape[1]
        for prefix in (n_prefix, 0, 1):
            side = math.isqrt(max(n - prefix, 0))
            if side > 1 and side**2 == n - prefix:
                patches = activations[:, prefix:].transpose(1, 2)
                return patches.reshape(*patches.shape[:2], side, side)
    shape = tuple(activations.shape) if isinstance(activations, Tensor) else type(activations)
    raise BackboneError(_NO_POSITIONS.format(shape))


def _enlarged(coarse: Tensor, px: int) -> Tensor:
    """Enlarge maps (n, h, w) to (n, px, px), bilinearly and with the same mean."""
    large = functional.interpolate(coarse[:, None], (px, px), mode="bilinear")[:, 0]
    return large + (coarse.mean((1, 2)) - large.mean((1, 2)))[:, None, None]


@contextlib.contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Let no gradient be kept for the weights, so that no activations are stored for it."""
    trained = [p for p in network.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
