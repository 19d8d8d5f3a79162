"""BatchNorm folding does not change outputs, gradients or statistics."""

import copy
from collections.abc import Iterator

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from strategies.kernels.bn_folding import FoldedNorms, norms_to_fold
from strategies.kernels.depthwise import FastDepthwiseGradient


def network_of(name: str) -> nn.Module:
    """Return an untrained network whose BatchNorm layers are not the identity."""
    torch.manual_seed(0)
    net: nn.Module = timm.create_model(name, num_classes=5)
    for norm in norms_of(net):
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.normal_(0, 0.2)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.normal_(0, 0.2)
        norm.running_var.uniform_(0.5, 2.0)
    return net


def norms_of(net: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]


def gradients(net: nn.Module, images: Tensor, labels: Tensor) -> Iterator[tuple[str, Tensor]]:
    net.zero_grad()
    torch.autograd.backward(functional.cross_entropy(net(images), labels))
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        yield name, parameter.grad.clone()


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet10t", "mobilenetv3_small_050"])
def test_folding_does_not_change_outputs_and_gradients(name: str) -> None:
    net = network_of(name).to(memory_format=torch.channels_last).eval()
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    plain = dict(gradients(net, images, labels))
    norms = norms_to_fold(net, norms_of(net), images[:1])
    assert len(norms) == len(norms_of(net))
    with FastDepthwiseGradient(), FoldedNorms(norms):
        folded = dict(gradients(net, images, labels))
    for key, gradient in plain.items():
        scale = float(gradient.abs().max()) + 1e-4
        torch.testing.assert_close(folded[key], gradient, rtol=0, atol=2e-3 * scale, msg=key)


def test_a_layer_that_updates_its_statistics_is_not_folded() -> None:
    net = network_of("resnet10t")
    first, *frozen = norms_of(net)
    norms = norms_to_fold(net, frozen, torch.randn(1, 3, 64, 64))
    assert first not in norms.values()
    assert len(norms) == len(frozen)
    assert net.training  # restored
    for norm in frozen:
        norm.eval()
    images = torch.randn(4, 3, 64, 64)
    twin = copy.deepcopy(net)
    expected = twin(images)
    with FoldedNorms(norms):
        found = net(images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(first.running_mean, norms_of(twin)[0].running_mean)


class Branched(nn.Module):
    """The convolution's output is read by the BatchNorm layer and by a second branch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        convolved = self.conv(images)
        out: Tensor = self.norm(convolved) + 3 * convolved
        return out


class UsedTwice(Branched):
    """The same layers are used twice."""

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(images)) - self.norm(self.conv(images.flip(-1)))
        return out


@pytest.mark.parametrize("kind", [Branched, UsedTwice])
def test_a_convolution_read_elsewhere_or_used_twice_is_not_folded(kind: type[nn.Module]) -> None:
    net = kind()
    for norm in norms_of(net):
        assert norm.running_mean is not None
        norm.running_mean += 1.0
    assert norms_to_fold(net, norms_of(net), torch.zeros(1, 3, 8, 8)) == {}


def test_a_network_without_batch_norm_has_nothing_to_fold() -> None:
    net = timm.create_model("test_convnext", num_classes=5)
    assert norms_to_fold(net, list(net.modules()), torch.zeros(1, 3, 64, 64)) == {}


def test_a_trained_scale_is_folded_only_into_a_convolution_that_is_trained_too() -> None:
    net = network_of("resnet10t")
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.requires_grad_(requires_grad=False)
    images = torch.randn(1, 3, 64, 64)
    assert norms_to_fold(net, norms_of(net), images) == {}
    net.requires_grad_(requires_grad=False)
    assert len(norms_to_fold(net, norms_of(net), images)) == len(norms_of(net))
