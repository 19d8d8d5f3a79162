"""Large depthwise convolutions trained on a CPU, with a quicker way to their weights' gradient.

What the library does for the gradient of a 5 x 5 depthwise convolution's weights takes ten to
forty times its forward pass (float32, channels last). The same sum is a forward depthwise
convolution in which every channel of every image is a channel of its own and the gradient of the
outputs is the kernel; that takes a third to a tenth of the time.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from strategies.core.context import RunContext
from strategies.kernels.torch_function import Calls

SMALLEST = 5
"""Kernels of 3 x 3 are quick as they are."""
IN_CACHE = 2 << 20
"""Bytes of images at a time: beyond what a core has at hand, both ways take three to five times
as long."""
FEW_OUTPUTS = 4
"""As a kernel so small a gradient takes up to two hundred times as long as its few products."""


def training_precision(network: nn.Module, ctx: RunContext) -> torch.dtype:
    """Return the precision that a network trains fastest in, of this and full precision.

    On CPUs the backward pass of depthwise convolutions is slower in bfloat16 than in float32:
    EfficientNet-Lite0 at 96 px trains on 41 images a second against 70 (one core, AVX512-BF16).
    """
    depthwise = any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in network.modules())
    return torch.float32 if ctx.device.type == "cpu" and depthwise else ctx.precision


class QuickDepthwise(Calls):
    """Inside this context large depthwise convolutions on the CPU have the quicker gradient."""

    def call(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Take the quicker way where it is known to be right."""
        if func is functional.conv2d and not kwargs and _is_eligible(*args):
            return _Convolution.apply(*args[:5])
        return func(*args, **kwargs)


def _is_eligible(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    """Whether a call of conv2d, by position, is one that the quicker way is known to be right for.

    That is: float32 on the CPU, pairs of numbers for stride and padding, one kernel a channel.
    """
    return (
        torch.is_grad_enabled()
        and weight.requires_grad
        and images.device.type == "cpu"
        and images.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and images.ndim == 4
        and groups == images.shape[1] == weight.shape[0]
        and min(weight.shape[2:]) >= SMALLEST
        and isinstance(stride, tuple)
        and stride[0] == stride[1]
        and isinstance(padding, tuple)
        and dilation in (1, (1, 1))
    )


class _Convolution(torch.autograd.Function):
    """A depthwise convolution."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(images, weight, bias, stride, padding, 1, len(weight))

    @staticmethod
    def backward(
        ctx: Any, slope: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        images, weight = ctx.saved_tensors
        by_images = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            by_images = torch.ops.aten.convolution_backward(
                *(slope, images, weight, None, ctx.stride, ctx.padding, [1, 1], False, [0, 0]),
                *(len(weight), [True, False, False]),
            )[0]
        if ctx.needs_input_grad[1]:
            by_weight = _by_weight(images, slope, weight.shape, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[2]:
            by_bias = slope.sum((0, 2, 3))
        return by_images, by_weight, by_bias, None, None


def _by_weight(
    images: Tensor,
    slope: Tensor,
    shape: torch.Size,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """Return the gradient of the weights, (channels, 1, k, k), from that of the outputs."""
    if slope.shape[2] * slope.shape[3] <= FEW_OUTPUTS:
        return _output_by_output(images, slope, shape, stride, padding)
    bytes_each = images.element_size() * max(images[0].numel(), slope[0].numel())
    n = max(1, IN_CACHE // bytes_each)
    parts = zip(torch.split(images, n), torch.split(slope, n), strict=True)
    return torch.stack([_as_kernel(x, by, shape, stride, padding) for x, by in parts]).sum(0)


def _as_kernel(
    images: Tensor,
    slope: Tensor,
    shape: torch.Size,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    n, channels = images.shape[:2]
    rows, columns = shape[2:]
    found = functional.conv2d(
        images.contiguous().view(1, n * channels, *images.shape[2:]),
        slope.contiguous().view(n * channels, 1, *slope.shape[2:]),
        None,
        1,
        padding,
        stride,
        n * channels,
    )
    # A stride that does not reach the last pixels leaves some that belong to no weight.
    kept = found[0, :, :rows, :columns].reshape(n, channels, rows, columns)
    return kept.sum(0)[:, None]


def _output_by_output(
    images: Tensor,
    slope: Tensor,
    shape: torch.Size,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    rows, columns = shape[2:]
    padded = functional.pad(images, (padding[1], padding[1], padding[0], padding[0]))
    found = torch.zeros(shape, dtype=slope.dtype)
    for y in range(slope.shape[2]):
        for x in range(slope.shape[3]):
            top, left = y * stride[0], x * stride[1]
            seen = padded[:, :, top : top + rows, left : left + columns]
            found[:, 0] += (seen * slope[:, :, y, x, None, None]).sum(0)
    return found
