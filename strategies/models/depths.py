"""Depths of a network: their widths and their costs."""

from typing import Any

import torch
from torch import nn

from strategies.models.architectures.efficientnet_lite import EfficientNetLite, FlopCounter
from strategies.models.architectures.timm_zoo import timm_module
from strategies.models.body import Body, Depth, depth_modules


@torch.no_grad()
def measure_depths(net: nn.Module, px: int) -> tuple[tuple[Depth, ...], float]:
    """Measure the width and the cumulative FLOPs of every depth on one image of noise.

    Returns
    -------
    The depths, and the GMACs of a forward pass.
    """
    modules = depth_modules(net)
    noise = torch.randn(1, 3, px, px, generator=torch.Generator().manual_seed(0))
    flops: list[int] = []
    if isinstance(net, EfficientNetLite):
        counter: Any = FlopCounter(net)
    else:  # its import takes a fifth of that of torch: it imports Triton, as timm does too
        counter = timm_module("torch.utils.flop_counter").FlopCounterMode(display=False)

    def record_flops(*_: object) -> None:
        flops.append(counter.get_total_flops())

    handles = [net.get_submodule(m).register_forward_hook(record_flops) for m in modules]
    body = Body(net, tuple(range(1, len(modules) + 2)), len(modules) + 1)
    try:
        with counter:
            pooled = body.activations(noise)
    finally:
        for handle in handles:
            handle.remove()
    total = max(counter.get_total_flops(), 1)
    shares = [min(cost / total, 1.0) for cost in flops[: len(modules)]]
    # A class token is as wide as the mean of the patch tokens beside it.
    depths = [
        Depth(name, p.shape[1], share, p.shape[1] // 2 if body.has_class_token else 0)
        for name, p, share in zip(modules, pooled[:-1], shares, strict=True)
    ]
    if pooled[-2].shape == pooled[-1].shape and torch.allclose(pooled[-2], pooled[-1]):
        del depths[-1]  # the last level is already the penultimate activations (ResNet)
    depths.append(Depth("penultimate", pooled[-1].shape[1], 1.0))
    return tuple(depths), total / 2e9
