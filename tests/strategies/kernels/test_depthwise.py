import contextlib

import pytest
import torch
from torch import Tensor, nn

from strategies.kernels import depthwise
from strategies.kernels.depthwise import FastDepthwiseGradient


def _gradients(
    layer: nn.Module, images: Tensor, context: contextlib.AbstractContextManager[object]
) -> list[Tensor]:
    """Return the output of a layer, and the gradients of images and parameters for some loss."""
    layer.zero_grad(set_to_none=True)
    leaf = images.clone().requires_grad_()
    with context:
        found = layer(leaf)
    weights = torch.linspace(-1, 1, found.numel()).view_as(found)
    (found * weights).sum().backward()
    return [found.detach(), leaf.grad, *(p.grad.clone() for p in layer.parameters())]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "padding"), [(5, 2), (7, 3), (5, 0)])
@pytest.mark.parametrize("px", [9, 12])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_outputs_and_gradients_equal_those_of_torch(
    stride: int, kernel: int, padding: int, px: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 6, kernel, stride, padding, groups=6).to(memory_format=layout)
    images = torch.randn(4, 6, px, px).contiguous(memory_format=layout)

    found = _gradients(layer, images, FastDepthwiseGradient())
    expected = _gradients(layer, images, contextlib.nullcontext())

    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("px", [1, 2, 4, 9])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_gradient_is_right_for_tiny_maps_and_for_images_in_chunks(
    px: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depthwise, "CHUNK_BYTES", 4 * 6 * px * px * 3)  # three of seven images
    torch.manual_seed(1)
    layer = nn.Conv2d(6, 6, 5, stride, 2, groups=6)
    images = torch.randn(7, 6, px, px)

    found = _gradients(layer, images, FastDepthwiseGradient())
    expected = _gradients(layer, images, contextlib.nullcontext())

    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "eligible"),
    [
        (nn.Conv2d(6, 6, 5, padding=2, groups=6), True),
        (nn.Conv2d(6, 6, 3, padding=1, groups=6), False),
        (nn.Conv2d(6, 12, 5, padding=2, groups=6), False),
        (nn.Conv2d(6, 6, 5, padding=2, groups=3), False),
        (nn.Conv2d(6, 6, 5, padding="same", groups=6), False),
        (nn.Conv2d(6, 6, 5, padding=4, dilation=2, groups=6), False),
    ],
)
def test_only_eligible_convolutions_use_the_faster_gradient(
    layer: nn.Conv2d, eligible: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    weight_gradient = depthwise._weight_gradient

    def record(*args: object) -> Tensor:
        calls.append(args)
        return weight_gradient(*args)

    monkeypatch.setattr(depthwise, "_weight_gradient", record)
    images = torch.randn(2, 6, 8, 8)

    found = _gradients(layer, images, FastDepthwiseGradient())

    assert bool(calls) == eligible
    expected = _gradients(layer, images, contextlib.nullcontext())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
