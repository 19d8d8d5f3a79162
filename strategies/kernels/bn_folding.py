"""Convolutions trained together with a BatchNorm layer behind them that keeps its statistics.

Such a layer scales and shifts every channel, which a convolution with other weights does as well.
So in every step the layer's scale is multiplied into the convolution's weights and its shift added
to the bias: the parameters and their gradients stay those of the two layers, but the activations
are gone through once less on the way forth and on the way back, and kept once less in between.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from strategies.kernels.torch_function import Calls

_TOLERANCE = 1e-3
"""Share of the largest output by which rounding may change any; else nothing is folded."""

Norms = Mapping[int, nn.BatchNorm2d]
"""The BatchNorm layer that follows a convolution, by the id of the convolution's weights."""


class FoldedNorms(Calls):
    """Inside this context some convolutions do what the BatchNorm layers behind them would."""

    def __init__(self, norms: Norms) -> None:
        super().__init__()
        self.norms = norms
        self._done = {id(norm.weight) for norm in norms.values()}

    def call(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Normalise with the convolution; leave the BatchNorm layer nothing to do."""
        if func is functional.conv2d and len(args) > 1 and id(args[1]) in self.norms:
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            folded = _folded(args[1], bias, self.norms[id(args[1])])
            others = {k: v for k, v in kwargs.items() if k != "bias"}
            return func(args[0], *folded, *args[3:], **others)
        if func is functional.batch_norm and _norm_of(args, kwargs) in self._done:
            return args[0]
        return func(*args, **kwargs)


def _norm_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Return the id of the scale in a call of batch_norm."""
    return id(kwargs.get("weight", args[3] if len(args) > 3 else None))


def _folded(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return the weights and the bias of a convolution that normalises what it makes."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    before = -norm.running_mean if bias is None else bias - norm.running_mean
    return weight * scale[:, None, None, None], torch.addcmul(norm.bias, before, scale)


@torch.no_grad()
def norms_to_fold(network: nn.Module, kept: Collection[nn.Module], images: Tensor) -> Norms:
    """Find the convolutions whose outputs nothing but one of the `kept` BatchNorm layers reads.

    The network is run once, in eval mode, on noise of the shape of `images`, to see what follows
    what; and once more to see that folding changes nothing. Empty where it would.
    """
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with _Seen() as seen:
            expected = network(noise)
        layers = {
            id(m.weight): m
            for m in kept
            if isinstance(m, nn.BatchNorm2d) and m.affine and m.track_running_stats
        }
        norms = {conv: layers[norm] for conv, norm in seen.pairs() if norm in layers}
        if not norms:
            return {}
        with FoldedNorms(norms):
            found = network(noise)
    finally:
        for module, training in modes.items():
            module.training = training
    most = float(expected.abs().max())
    same = torch.allclose(found, expected, rtol=0, atol=_TOLERANCE * most)
    return norms if same else {}


class _Seen(Calls):
    """Notes which convolution's output each BatchNorm layer was given."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[Tensor, int]] = {}
        self._found: list[tuple[int, int]] = []
        self._convolved: Counter[int] = Counter()
        self._normed: Counter[int] = Counter()

    def call(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        made = func(*args, **kwargs)
        if func is functional.conv2d and len(args) > 1:
            self._made[id(made)] = made, id(args[1])  # kept, so that no other gets its id
            self._convolved[id(args[1])] += 1
        elif func is functional.batch_norm:
            norm = _norm_of(args, kwargs)
            self._normed[norm] += 1
            if id(args[0]) in self._made:
                self._found.append((self._made[id(args[0])][1], norm))
        return made

    def pairs(self) -> list[tuple[int, int]]:
        """Return the ids of the weights of both, where each was used once."""
        return [(c, n) for c, n in self._found if self._convolved[c] == self._normed[n] == 1]
