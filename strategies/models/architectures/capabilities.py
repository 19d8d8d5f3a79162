"""What a network can do: its input sizes, normalisation, pooling, tokens and source classes."""

import inspect
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from strategies.models.architectures.anatomy import family_of, n_layers
from strategies.models.architectures.family import Family

Norm = Literal["batch", "layer", "group", "none"]


@dataclass(frozen=True)
class InputSizes:
    """Sides of the square input, in pixels, that a network takes.

    Attributes
    ----------
    step
        It takes the multiples of this; 1: any size.
    only
        The only sizes that it takes; empty if `step` says which.
    at_creation
        Whether timm has to create the network for a size, because some weights depend on it
        (position embeddings, attention biases). If not, one network takes all sizes.
    """

    step: int = 1
    only: tuple[int, ...] = ()
    at_creation: bool = False

    def takes(self, px: int) -> bool:
        """Whether the network takes inputs of this size."""
        return px in self.only if self.only else px > 0 and px % self.step == 0

    def nearest(self, px: int) -> int:
        """Return the size nearest to `px` that the network takes."""
        if self.only:
            return min(self.only, key=lambda size: abs(size - px))
        return max(1, round(px / self.step)) * self.step

    def __str__(self) -> str:
        """Say the sizes in words, for messages."""
        if self.only:
            return "only " + ", ".join(f"{px} px" for px in self.only)
        return "any size" if self.step == 1 else f"multiples of {self.step} px"


@dataclass(frozen=True)
class Capabilities:
    """What was asked of a network, or tried once on an image of zeros.

    Attributes
    ----------
    norm
        The most frequent kind of its normalisation layers; RMSNorm counts as "layer".
    has_tokens
        Whether it is a transformer whose levels are tokens of patches.
    source_classes
        Number of classes that the pretrained head predicts; 0 without such a head, see
        `n_known_classes`.
    family
        Family of the architecture, as far as fine-tuning recipes differ.
    n_layers
        Layers below the head (`anatomy.n_layers`); 0 for a convolutional network.
    """

    sizes: InputSizes
    norm: Norm = "batch"
    has_tokens: bool = False
    source_classes: int = 0
    family: Family = "convolutional"
    n_layers: int = 0


def describe(net: nn.Module, sizes: InputSizes, source_classes: int) -> Capabilities:
    """Return the capabilities of a network."""
    family = family_of(net)
    return Capabilities(
        sizes=sizes,
        norm=norm_of(net),
        has_tokens=has_tokens(net),
        source_classes=source_classes,
        family=family,
        n_layers=0 if family == "convolutional" else n_layers(net),
    )


def has_tokens(net: nn.Module) -> bool:
    """Whether timm returns patch tokens and prefix tokens of the network's levels separately."""
    method = getattr(net, "forward_intermediates", None)
    return method is not None and "return_prefix_tokens" in inspect.signature(method).parameters


def norm_of(net: nn.Module) -> Norm:
    """Return the most frequent kind of normalisation layer."""
    counts: dict[Norm, int] = {"batch": 0, "layer": 0, "group": 0}
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            counts["batch"] += 1
        elif isinstance(module, nn.GroupNorm):
            counts["group"] += 1
        elif isinstance(module, nn.LayerNorm) or "rmsnorm" in type(module).__name__.lower():
            counts["layer"] += 1
    most = max(counts, key=lambda kind: counts[kind])
    return most if counts[most] else "none"


def reduction_of(net: nn.Module) -> int:
    """Return the pixels of an input's side for one position of the deepest feature level."""
    info: Any = getattr(net, "feature_info", None)
    levels = getattr(info, "info", info) or [{}]
    return int(levels[-1].get("reduction", 32))


def n_known_classes(n_outputs: int, label_names: object, has_imagenet_size: bool) -> int:
    """Return the number of classes that a linear head with `n_outputs` predicts, or 0.

    The rule: a head predicts known classes if its configuration names them all, or if timm knows
    an ImageNet subset with this number of classes. Any other number is taken for the width of a
    projection: image towers of CLIP have a linear head of 512, 640, 768 or 1,024 outputs, an
    embedding that is compared with texts, and their softmax means nothing.

    Parameters
    ----------
    label_names
        ``label_names`` of timm's configuration: a list, a mapping or None.
    has_imagenet_size
        Whether timm knows an ImageNet subset with this number of classes.
    """
    named = isinstance(label_names, list | tuple | dict) and len(label_names) == n_outputs
    return n_outputs if n_outputs and (named or has_imagenet_size) else 0
