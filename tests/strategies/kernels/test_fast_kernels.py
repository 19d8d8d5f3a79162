"""Where the faster kernels for CPUs are used."""

import torch
from torch.overrides import _get_current_function_mode_stack

from strategies.kernels.bn_folding import FoldedNorms, fast_kernels, norms_to_fold
from strategies.kernels.depthwise import FastDepthwiseGradient
from tests.fake_mps import MPS, FakeMps


def _active() -> list[type]:
    return [type(mode) for mode in _get_current_function_mode_stack()]


def test_a_cpu_uses_the_kernels_and_no_other_device_wraps_the_calls_of_torch() -> None:
    with fast_kernels(torch.device("cpu"), {}):
        assert _active() == [FastDepthwiseGradient, FoldedNorms]
    for name in ("cuda", "mps"):
        with fast_kernels(torch.device(name), {}):
            assert _active() == []


def test_no_layers_are_folded_on_another_device() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)).eval()
    images = torch.randn(2, 3, 8, 8)
    assert norms_to_fold(net, [net[1]], images)
    with FakeMps():
        assert norms_to_fold(net, [net[1]], images.to(MPS)) == {}
