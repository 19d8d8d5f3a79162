"""Moments of the inputs of every BatchNorm layer, recorded during forward passes."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from strategies.core.cache import Rows
from strategies.models.backbone import Backbone
from strategies.models.body import Body

CHANNELS_PER_LAYER = 64
GRID = 14
"""Moments of larger maps are taken on a regular grid of about GRID x GRID positions."""
DEAD_VARIANCE = 1e-4
"""Channels whose running variance is below this share of their layer's median are skipped."""


@dataclass(frozen=True)
class Moments:
    """Moments of the inputs of every BatchNorm layer, standardised by its running statistics.

    With x an activation and (mu, var) the running statistics of its channel,
    z = (x - mu) / sqrt(var). The pretraining data have mean z = 0 and mean z**2 = 1.

    Attributes
    ----------
    mean, square
        Means of z and of z**2 over the positions of every image, shape (n, channels).
    layer
        Index of every channel's BatchNorm layer, shape (channels,).
    layer_depth
        First depth whose activations need the layer, counted from 1, shape (layers,).
    """

    mean: Rows
    square: Rows
    layer: NDArray[np.int64]
    layer_depth: NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """BatchNorm channels to measure.

    Attributes
    ----------
    channels
        Module name and channel numbers of every layer.
    depths
        First depth whose activations need the layer, counted from 1, for every layer.
    """

    channels: tuple[tuple[str, Tensor], ...]
    depths: Rows

    @property
    def counts(self) -> Rows:
        """Number of measured channels of every layer."""
        return np.array([len(c) for _, c in self.channels], dtype=np.float32)


def layout_of(net: nn.Module, backbone: Backbone) -> Layout:
    """Return the channels of every BatchNorm layer with running statistics."""
    norms = [
        (name, m)
        for name, m in net.named_modules()
        if isinstance(m, nn.BatchNorm2d) and m.running_var is not None
    ]
    return Layout(
        tuple((name, _live_channels(m)) for name, m in norms),
        _depths_of([name for name, _ in norms], net, backbone),
    )


def _depths_of(modules: Sequence[str], net: nn.Module, backbone: Backbone) -> Rows:
    """Return for each module the first depth that needs it: the next cut point after it.

    The order is that of ``named_modules``, so that no forward pass is needed.
    """
    position = {name: i for i, (name, _) in enumerate(net.named_modules())}
    ends = [
        max(i for name, i in position.items() if f"{name}.".startswith(f"{depth.name}."))
        for depth in backbone.depths[:-1]
    ]
    depths = [1 + sum(end < position[name] for end in ends) for name in modules]
    return np.array(depths, dtype=np.float32)


def _live_channels(norm: nn.BatchNorm2d) -> Tensor:
    """Choose at most `CHANNELS_PER_LAYER` channels, evenly spaced among the live ones."""
    assert norm.running_var is not None
    variance = norm.running_var
    live = torch.nonzero(variance > DEAD_VARIANCE * variance.median()).flatten()
    count = min(len(live), CHANNELS_PER_LAYER)
    return live[torch.linspace(0, len(live) - 1, count, device=live.device).round().long()]


def by_image(moments: Tensor, n: int) -> Tensor:
    """Return the moments of every image, (n, d), given those of every window, (n * windows, d).

    EfficientViT-M normalises the windows of a map one by one; those of one image follow each
    other.
    """
    return moments if len(moments) == n else moments.reshape(n, -1, moments.shape[1]).mean(1)


@contextlib.contextmanager
def watch(net: nn.Module, layout: Layout) -> Iterator[dict[str, Tensor]]:
    """Record [mean z, mean z**2] of the channels of every layer, at every forward pass.

    The yielded dictionary holds one tensor (n, 2 * channels) per layer, by module name.
    """
    moments: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        for name, channels in layout.channels:
            norm = net.get_submodule(name)
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            mean = norm.running_mean[channels]
            scale = (norm.running_var[channels] + norm.eps).rsqrt()

            def record(
                _: nn.Module,
                inputs: tuple[Tensor],
                name: str = name,
                channels: Tensor = channels,
                mean: Tensor = mean,
                scale: Tensor = scale,
            ) -> None:
                x = inputs[0]
                stride = max(1, min(x.shape[2:]) // GRID)
                flat = x[:, :, ::stride, ::stride][:, channels].float().flatten(2)
                average = flat.mean(2)
                variance = (flat - average[:, :, None]).square_().mean(2)
                z = (average - mean) * scale
                moments[name] = torch.cat([z, variance * scale**2 + z**2], dim=1)

            stack.enter_context(norm.register_forward_pre_hook(record))
        yield moments


class FeatureNetwork(nn.Module):
    """A body whose output row holds all that is stored of an image.

    Input: normalised images, (n, 3, h, w). Output, float32 (n, d): the pooled activations of every
    depth, then the moments of every BatchNorm layer.

    Parameters
    ----------
    moments
        What `watch` yields. It must be watching: a compiled network contains the hooks that it
        had at its first batch.
    """

    def __init__(self, body: Body, layout: Layout, moments: dict[str, Tensor]) -> None:
        super().__init__()
        self.body, self.moments = body, moments
        self.layers = [name for name, _ in layout.channels]

    def forward(self, images: Tensor) -> Tensor:
        """Return one row per image."""
        self.moments.clear()  # of a part that did not fit into memory
        pooled = self.body.activations(images)
        found = [by_image(self.moments[name], len(images)) for name in self.layers]
        self.moments.clear()
        return torch.cat([part.float() for part in (*pooled, *found)], dim=1)
