from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from strategies.models.architectures import timm_zoo
from strategies.models.architectures.efficientnet_lite import (
    SCALES,
    EfficientNetLite,
    FlopCounter,
)
from strategies.models.backbone import load_backbone

timm = pytest.importorskip("timm")


def _both(name: str) -> tuple[Any, EfficientNetLite]:
    """Create timm's network and ours with the same seed."""
    torch.manual_seed(3)
    theirs = timm.create_model(name)
    torch.manual_seed(3)
    return theirs, EfficientNetLite(SCALES[name])


def _images(px: int) -> Tensor:
    images = torch.randn(2, 3, px, px, generator=torch.Generator().manual_seed(0))
    return images.to(memory_format=torch.channels_last)


def _assert_all_equal(theirs: Sequence[Tensor], ours: Sequence[Tensor]) -> None:
    for a, b in zip(theirs, ours, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", SCALES)
def test_names_and_random_weights_are_those_of_timm(name: str) -> None:
    theirs, ours = (net.state_dict() for net in _both(name))

    assert list(theirs) == list(ours)
    _assert_all_equal([*theirs.values()], [*ours.values()])


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("px", [64, 97])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_outputs_at_every_depth_are_those_of_timm(
    name: str, px: int, precision: torch.dtype
) -> None:
    theirs, ours = (net.eval() for net in _both(name))
    assert [level["module"] for level in theirs.feature_info] == [
        level["module"] for level in ours.feature_info
    ]
    with (
        torch.inference_mode(),
        torch.autocast("cpu", precision, enabled=precision != torch.float32),
    ):
        expected, maps = theirs.forward_intermediates(_images(px), indices=[0, 2, 4])
        found, our_maps = ours.forward_intermediates(_images(px), indices=[0, 2, 4])
        _assert_all_equal([expected, *maps], [found, *our_maps])
        assert torch.equal(theirs(_images(px)), ours(_images(px)))


def test_gradients_and_running_statistics_are_those_of_timm() -> None:
    theirs, ours = _both("tf_efficientnet_lite0")
    for net in (theirs, ours):
        net.train()(_images(64)).square().mean().backward()

    gradients = ([p.grad for p in net.parameters()] for net in (theirs, ours))
    _assert_all_equal(*gradients)
    _assert_all_equal(*([*net.state_dict().values()] for net in (theirs, ours)))


@pytest.mark.parametrize("levels", [[0], [1, 3], [4]])
def test_a_cut_network_keeps_the_layers_that_timm_keeps(levels: list[int]) -> None:
    theirs, ours = _both("tf_efficientnet_lite0")
    for net in (theirs, ours):
        net.prune_intermediate_layers(levels, prune_head=True)

    assert list(theirs.state_dict()) == list(ours.state_dict())


def test_flops_are_those_that_torch_counts() -> None:
    _, net = _both("tf_efficientnet_lite1")
    with torch.inference_mode(), FlopCounterMode(display=False) as theirs:
        net.forward_features(_images(97))
    with torch.inference_mode(), FlopCounter(net) as ours:
        net.forward_features(_images(97))

    assert ours.get_total_flops() == theirs.get_total_flops()


def test_the_names_of_imagenet_are_those_of_timm() -> None:
    assert timm_zoo.imagenet_1k_names() == timm_zoo.class_names(1000)


def test_embedded_weights_are_contiguous_so_that_they_can_be_saved() -> None:
    weights = load_backbone().build().state_dict().values()
    assert all(value.is_contiguous() for value in weights)
