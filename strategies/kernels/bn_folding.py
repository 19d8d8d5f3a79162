"""BatchNorm folding in training: compute a convolution and its frozen BatchNorm layer as one.

A BatchNorm layer with fixed running statistics scales and shifts every channel. In every training
step the layer's scale is multiplied into the weights of the convolution before it, and its shift
is added to the bias. The parameters and their gradients stay those of the two layers. This saves
one traversal of the activations in the forward pass, one in the backward pass, and one stored copy
of the activations.
"""

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from strategies.kernels.depthwise import FastDepthwiseGradient

_TOLERANCE = 1e-3
"""Largest change of any output, as a share of the largest output; above it nothing is folded."""

NormByConv = Mapping[int, nn.BatchNorm2d]
"""The BatchNorm layer that follows a convolution, by the id of the convolution's weights."""


class FoldedNorms(TorchFunctionMode):
    """Context in which some convolutions also apply the BatchNorm layers that follow them."""

    def __init__(self, norms: NormByConv) -> None:
        super().__init__()
        self.norms = norms
        self._folded_norms = {id(norm.weight) for norm in norms.values()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Convolve with folded weights, and skip the BatchNorm layers folded into them."""
        kwargs = kwargs or {}
        if func is functional.conv2d and len(args) > 1 and id(args[1]) in self.norms:
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            folded = _folded_parameters(args[1], bias, self.norms[id(args[1])])
            others = {k: v for k, v in kwargs.items() if k != "bias"}
            return func(args[0], *folded, *args[3:], **others)
        if func is functional.batch_norm and _norm_of(args, kwargs) in self._folded_norms:
            return args[0]
        return func(*args, **kwargs)


def _norm_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Return the id of the weight (the scale) in the arguments of batch_norm."""
    return id(kwargs.get("weight", args[3] if len(args) > 3 else None))


def _folded_parameters(
    weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d
) -> tuple[Tensor, Tensor]:
    """Return the weights and the bias of a convolution that includes the BatchNorm layer."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    centred = -norm.running_mean if bias is None else bias - norm.running_mean
    return weight * scale[:, None, None, None], torch.addcmul(norm.bias, centred, scale)


@torch.no_grad()
def norms_to_fold(network: nn.Module, frozen: Collection[nn.Module], images: Tensor) -> NormByConv:
    """Find the convolutions that can be folded with one of the `frozen` BatchNorm layers.

    That is, the BatchNorm layer is the only module that reads the convolution's output. A fixed
    convolution with a trained scale is not folded: its weights would need a gradient. The network
    is run in eval mode on noise of the shape of `images`: once to trace which layers
    follow which, and once to check that folding does not change the outputs. Empty if it does, and
    on any device but a CPU (`fast_kernels`).
    """
    if images.device.type != "cpu":
        return {}
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with _ConvNormTracer() as tracer:
            expected = network(noise)
        layers = {
            id(m.weight): m
            for m in frozen
            if isinstance(m, nn.BatchNorm2d) and m.affine and m.track_running_stats
        }
        fixed = {id(p) for p in network.parameters() if not p.requires_grad}
        norms = {
            conv: layers[norm]
            for conv, norm in tracer.pairs()
            if norm in layers and (conv not in fixed or norm in fixed)
        }
        if not norms:
            return {}
        with FoldedNorms(norms):
            folded = network(noise)
    finally:
        for module, training in modes.items():
            module.training = training
    largest = float(expected.abs().max())
    same = torch.allclose(folded, expected, rtol=0, atol=_TOLERANCE * largest)
    return norms if same else {}


class _ConvNormTracer(TorchFunctionMode):
    """Context that records which convolution's output each BatchNorm layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_outputs: dict[int, tuple[Tensor, int]] = {}
        self._pairs: list[tuple[int, int]] = []
        self._conv_uses: Counter[int] = Counter()
        self._norm_uses: Counter[int] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is functional.conv2d and len(args) > 1:
            # The reference to the output keeps its id from being used again.
            self._conv_outputs[id(output)] = output, id(args[1])
            self._conv_uses[id(args[1])] += 1
        elif func is functional.batch_norm:
            norm = _norm_of(args, kwargs)
            self._norm_uses[norm] += 1
            if id(args[0]) in self._conv_outputs:
                self._pairs.append((self._conv_outputs[id(args[0])][1], norm))
        return output

    def pairs(self) -> list[tuple[int, int]]:
        """Return the weight ids of convolution and BatchNorm pairs in which each is used once."""
        return [(c, n) for c, n in self._pairs if self._conv_uses[c] == self._norm_uses[n] == 1]


@contextlib.contextmanager
def fast_kernels(device: torch.device, norms: NormByConv) -> Iterator[None]:
    """Context in which a network computes with the faster kernels for CPUs.

    Any other device has fast ones of its own. There it changes nothing, because Python code around
    every call of torch would only delay it.

    Parameters
    ----------
    norms
        The BatchNorm layers to fold (`norms_to_fold`).
    """
    if device.type != "cpu":
        yield
        return
    with FastDepthwiseGradient(), FoldedNorms(norms):
        yield
