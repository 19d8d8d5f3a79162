"""Pretrained weights of timm's networks: read, hashed and tried once per process."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from strategies.models.architectures import timm_zoo
from strategies.models.architectures.capabilities import InputSizes, reduction_of
from strategies.models.architectures.timm_zoo import Architecture

LARGEST_STEP = 32
"""Networks are not asked for finer input sizes than these multiples, the stride of most."""
# Exceptions of networks that were given, or created for, a size that they do not take.
SIZE_ERRORS = (
    RuntimeError,
    AssertionError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
)


@dataclass(frozen=True)
class Pretrained:
    """A network of timm with its weights, at the input size of its configuration.

    Attributes
    ----------
    config
        timm's ``pretrained_cfg``: preprocessing, classes, licence.
    state
        Parameters and buffers. Networks are copies of them.
    px
        Side of the input in pixels.
    """

    architecture: Architecture
    config: Mapping[str, Any]
    state: Mapping[str, Tensor]
    px: int
    sizes: InputSizes

    def network(self, px: int) -> nn.Module:
        """Create the network for an input size, with copies of the weights.

        Weights that depend on the size are resampled from those of the own size, as timm does.
        """
        with torch.random.fork_rng([]):
            if self.sizes.at_creation and px != self.px:
                config, state = self.config, self.state
                return timm_zoo.create_with_weights(self.architecture, px, config, state)
            net = create(self.architecture, self.sizes, px)
        net.load_state_dict(self.state)
        return net


def create(architecture: Architecture, sizes: InputSizes, px: int) -> nn.Module:
    """Create a network for an input size, with random weights of torch's global generator."""
    with torch.random.fork_rng([]):
        return timm_zoo.create(architecture, px if sizes.at_creation else None)


@cache
def read(name: str) -> Pretrained:
    """Read a network of timm, a hub or a local folder, and try which input sizes it takes.

    Later changes of the files do not matter to this process.
    """
    with torch.random.fork_rng([]):
        net = timm_zoo.load(name).eval().requires_grad_(False)
    config: Mapping[str, Any] = getattr(net, "pretrained_cfg", {})
    created_for = timm_zoo.image_size_at_creation(net)
    px = created_for or int(config.get("input_size", (3, 224, 224))[1])
    architecture, state = timm_zoo.architecture_of(net), net.state_dict()
    own = InputSizes(only=(px,), at_creation=created_for is not None)
    found = Pretrained(architecture, config, state, px, own)
    return replace(found, sizes=_try_another_size(found, net))


@cache
def digest(name: str) -> str:
    """Return the SHA-256 of the weights that `read` returns, which are hashed once."""
    return weights_digest(read(name).state)


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of all parameters and buffers, with their names."""
    contiguous = {name: value.contiguous() for name, value in state.items()}
    return hashlib.sha256(safetensors_bytes(contiguous)).hexdigest()


def class_names(name: str, count: int) -> tuple[str, ...] | None:
    """Return the names of the classes that the head of a network predicts, if they are known.

    They are those of its configuration, or else of the ImageNet subset of this size. A local
    folder without names may hold other classes than ImageNet's, so its names are not known.
    """
    labels = read(name).config.get("label_names")
    if isinstance(labels, dict):
        labels = list(labels.values())
    if labels is not None and len(labels) == count:
        return tuple(str(label) for label in labels)
    return None if name.startswith("local-dir:") else timm_zoo.class_names(count)


def _try_another_size(found: Pretrained, net: nn.Module) -> InputSizes:
    """Run the network once at about half its own size, and return the sizes that it takes.

    Half the size is rounded to an odd multiple of the stride, so that networks are found out whose
    windows divide only some multiples. A network that is created for one size is created again.
    """
    step = min(reduction_of(net), LARGEST_STEP)
    px = _odd_multiple(found.px, step)
    if not found.sizes.at_creation and _takes(net, px):
        return InputSizes()
    resizable = replace(found, sizes=InputSizes(step, at_creation=True))
    try:
        other = resizable.network(px)
    except SIZE_ERRORS:
        return found.sizes
    own_fits = found.px % step == 0
    return resizable.sizes if own_fits and _takes(other, px) else found.sizes


def _odd_multiple(px: int, step: int) -> int:
    """Return the odd multiple of `step` that is nearest to half of `px`, but is not `px`."""
    multiple = 2 * max(0, round((px / (2 * step) - 1) / 2)) + 1
    return step * (multiple + 2 if step * multiple == px else multiple)


@torch.no_grad()
def _takes(net: nn.Module, px: int) -> bool:
    """Whether the network runs on an image of zeros of this size."""
    try:
        net.eval()(torch.zeros(1, 3, px, px))
    except SIZE_ERRORS:
        return False
    return True
