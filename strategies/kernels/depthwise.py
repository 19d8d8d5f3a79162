"""Faster weight gradients for large depthwise convolutions on CPUs.

torch's weight gradient of a 5 x 5 depthwise convolution takes ten to forty times as long as the
forward pass (float32, channels last). The same gradient is the output of a forward depthwise
convolution: every channel of every image is a separate channel, and the gradient of the outputs is
the kernel. That takes a third to a tenth of the time.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from strategies.core.context import RunContext

MIN_KERNEL = 5
"""Smallest kernel side. torch's gradient of 3 x 3 kernels is fast already."""
CHUNK_BYTES = 2 << 20
"""Bytes of images per chunk. Beyond the CPU cache of a core, both methods take three to five times
as long."""
FEW_OUTPUTS = 4
"""Up to this many output positions the products are summed directly. With so small a gradient as
kernel, a convolution takes up to two hundred times as long."""


def training_precision(network: nn.Module, ctx: RunContext) -> torch.dtype:
    """Return the precision in which a network trains fastest: the context's, or float32.

    On CPUs the backward pass of depthwise convolutions is slower in bfloat16 than in float32:
    EfficientNet-Lite0 at 96 px trains on 41 images per second in bfloat16 and on 70 in float32
    (one core, AVX512-BF16).
    """
    depthwise = any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in network.modules())
    return torch.float32 if ctx.device.type == "cpu" and depthwise else ctx.precision


class FastDepthwiseGradient(TorchFunctionMode):
    """Context in which large depthwise convolutions on the CPU use the faster weight gradient."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace eligible calls of conv2d; call everything else unchanged."""
        if func is functional.conv2d and not kwargs and _is_eligible(*args):
            return _Convolution.apply(*args[:5])
        return func(*args, **(kwargs or {}))


def _is_eligible(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    """Whether the faster gradient supports these positional arguments of conv2d.

    It needs float32 on the CPU, pairs of numbers for stride and padding, and one kernel per
    channel.
    """
    return (
        torch.is_grad_enabled()
        and weight.requires_grad
        and images.device.type == "cpu"
        and images.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and images.ndim == 4
        and groups == images.shape[1] == weight.shape[0]
        and min(weight.shape[2:]) >= MIN_KERNEL
        and isinstance(stride, tuple)
        and stride[0] == stride[1]
        and isinstance(padding, tuple)
        and dilation in (1, (1, 1))
    )


class _Convolution(torch.autograd.Function):
    """Depthwise convolution with the faster gradient of its weights."""

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
        ctx: Any, grad_output: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        images, weight = ctx.saved_tensors
        grad_images = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_images = torch.ops.aten.convolution_backward(
                *(grad_output, images, weight, None, ctx.stride, ctx.padding),
                *([1, 1], False, [0, 0], len(weight), [True, False, False]),
            )[0]
        if ctx.needs_input_grad[1]:
            gradient = _weight_gradient(images, grad_output, weight.shape, ctx.stride, ctx.padding)
            grad_weight = torch.empty_like(weight).copy_(gradient)  # the layout that DDP expects
        if ctx.needs_input_grad[2]:
            grad_bias = grad_output.sum((0, 2, 3))
        return grad_images, grad_weight, grad_bias, None, None


def _weight_gradient(
    images: Tensor,
    grad_output: Tensor,
    shape: torch.Size,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """Return the gradient of the weights, (channels, 1, k, k), from that of the outputs."""
    if grad_output.shape[2] * grad_output.shape[3] <= FEW_OUTPUTS:
        return _gradient_by_output(images, grad_output, shape, stride, padding)
    bytes_per_image = images.element_size() * max(images[0].numel(), grad_output[0].numel())
    n = max(1, CHUNK_BYTES // bytes_per_image)
    chunks = zip(torch.split(images, n), torch.split(grad_output, n), strict=True)
    parts = [_gradient_by_convolution(x, grad, shape, stride, padding) for x, grad in chunks]
    return torch.stack(parts).sum(0)


def _gradient_by_convolution(
    images: Tensor,
    grad_output: Tensor,
    shape: torch.Size,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """Convolve the images with the gradient of the outputs as kernel."""
    n, channels = images.shape[:2]
    rows, columns = shape[2:]
    products = functional.conv2d(
        images.contiguous().view(1, n * channels, *images.shape[2:]),
        grad_output.contiguous().view(n * channels, 1, *grad_output.shape[2:]),
        None,
        1,
        padding,
        stride,
        n * channels,
    )
    # If the stride does not reach the last pixels, the extra positions belong to no weight.
    by_image = products[0, :, :rows, :columns].reshape(n, channels, rows, columns)
    return by_image.sum(0)[:, None]


def _gradient_by_output(
    images: Tensor,
    grad_output: Tensor,
    shape: torch.Size,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """Sum the products of input patches and output gradients, one output position at a time."""
    rows, columns = shape[2:]
    padded = functional.pad(images, (padding[1], padding[1], padding[0], padding[0]))
    gradient = torch.zeros(shape, dtype=grad_output.dtype)
    for y in range(grad_output.shape[2]):
        for x in range(grad_output.shape[3]):
            top, left = y * stride[0], x * stride[1]
            patch = padded[:, :, top : top + rows, left : left + columns]
            gradient[:, 0] += (patch * grad_output[:, :, y, x, None, None]).sum(0)
    return gradient
