"""Anatomy of a network: its architecture, the layers of its parameters, and its projections.

Fine-tuning recipes depend on it. All of it is read from the network itself, not from its name.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

from strategies.models.architectures import timm_zoo
from strategies.models.architectures.family import Family

HEAD = "new_head.weight"
"""Name under which the new classifier layer is grouped: no matcher of timm knows it."""
_PROJECTION = re.compile(r"(qkvs?|qkv_proj|q|kv|q_proj|query|in_proj_weight|qkv_weight)")
"""Names of an attention layer's projections in timm and torch. Squeeze-excitation has none."""


def family_of(net: nn.Module) -> Family:
    """Return the family of a network, from its modules."""
    attention: dict[int, int] = {}
    for block in {_block(net, n) for n, m in net.named_modules() if _is_self_attention(m)}:
        attention |= {id(p): p.numel() for p in net.get_submodule(block).parameters()}
    total = sum(p.numel() for p in net.parameters()) - _classifier_size(net)
    if 2 * sum(attention.values()) > total:
        return "transformer"
    kinds = " ".join({type(module).__name__ for module in net.modules()})
    others = "BatchNorm" in kinds or "GroupNorm" in kinds
    return "convnext" if "LayerNorm" in kinds and not others else "convolutional"


def _is_self_attention(module: nn.Module) -> bool:
    names = [name for name, _ in module.named_children()]
    names += [name for name, _ in module.named_parameters(recurse=False)]
    return any(_PROJECTION.fullmatch(name) for name in names)


def _block(net: nn.Module, name: str) -> str:
    """Return the innermost block around a module: a member of a sequence, or the module itself."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        parent = net.get_submodule(".".join(parts[: end - 1]))
        if isinstance(parent, nn.Sequential | nn.ModuleList):
            return ".".join(parts[:end])
    return name


def _classifier_size(net: nn.Module) -> int:
    """Return the number of parameters of the original classifier layer."""
    found = call(net, "get_classifier")() if hasattr(net, "get_classifier") else None
    return sum(p.numel() for p in found.parameters()) if isinstance(found, nn.Module) else 0


def layers_below_head(net: nn.Module) -> dict[str, int] | None:
    """Return how many layers every parameter lies below the head: 1 or more, or 0 beside it.

    Layers are those of timm's ``group_matcher``: stem, every block, head. A final norm belongs to
    the last block or to the head, as timm has it. None for a network without a matcher.
    """
    if not hasattr(net, "group_matcher"):
        return None
    matcher = call(net, "group_matcher")(coarse=False)
    group = timm_zoo.timm_module("timm.models").group_parameters
    number: Mapping[str, int] = group(_WithHead(net), matcher, reverse=True)
    return {name: number[HEAD] - number[name] for name, _ in net.named_parameters()}


class _WithHead:
    """A network's parameters and one of a classifier layer, for timm to group."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the parameters, that of the new classifier layer last."""
        yield from self.net.named_parameters()
        yield HEAD, torch.zeros(1)


def n_layers(net: nn.Module) -> int:
    """Return the number of layers below the head (`layers_below_head`); 0 if they are unknown."""
    return max((layers_below_head(net) or {}).values(), default=0)


def is_exempt_from_weight_decay(net: nn.Module) -> Callable[[str], bool]:
    """Return whether timm exempts a parameter, by its name, from weight decay.

    These are class and register tokens, position embeddings, and tables of relative positions.
    Vectors (norms and biases) are exempt as well; they need no list.
    """
    patterns = call(net, "no_weight_decay")() if hasattr(net, "no_weight_decay") else ()
    return lambda name: any(fnmatch(name, pattern) for pattern in patterns)


def drop_path_slots(net: nn.Module) -> list[str]:
    """Return the names of the modules that drop path takes the place of, from input to output."""
    return [
        name
        for name, module in net.named_modules()
        if name.rpartition(".")[2].startswith("drop_path") and isinstance(module, nn.Identity)
    ]


@torch.no_grad()
def projections(net: nn.Module, input_px: int) -> list[str]:
    """Return the names of the linear layers that a forward pass calls, 1 x 1 convolutions too.

    A layer whose weights are used without calling it (BEiT's qkv) is left out. So is one that is
    not a plain ``nn.Linear`` or ``nn.Conv2d``, or has groups.
    """
    called: dict[str, None] = {}

    def recorder(name: str) -> Callable[..., None]:
        def record(*_: object) -> None:
            called[name] = None

        return record

    device = next(net.parameters()).device
    with contextlib.ExitStack() as stack:
        for name, module in net.named_modules():
            if type(module) is nn.Linear or _is_pointwise(module):
                stack.enter_context(module.register_forward_pre_hook(recorder(name)))
        stack.callback(net.train, net.training)
        _features(net.eval(), torch.zeros(1, 3, input_px, input_px, device=device))
    return list(called)


def _is_pointwise(module: nn.Module) -> bool:
    if type(module) is not nn.Conv2d:
        return False
    return module.kernel_size == module.stride == (1, 1) and module.groups == 1


def _features(net: nn.Module, images: Tensor) -> Tensor:
    """Return the penultimate activations, without calling the original classifier layer."""
    found: Tensor = call(net, "forward_head")(
        call(net, "forward_features")(images), pre_logits=True
    )
    return found


def call(net: nn.Module, name: str) -> Callable[..., Any]:
    """Return a method of timm's interface."""
    method: Callable[..., Any] = getattr(net, name)
    return method
