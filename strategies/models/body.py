"""Body: a backbone cut at one or several depths, with pooled activations as its output."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from strategies.core.errors import BackboneError
from strategies.models.architectures.anatomy import call
from strategies.models.architectures.capabilities import has_tokens

Pooling = Literal["mean", "grid"]


@dataclass(frozen=True)
class Depth:
    """A cut point of the body.

    Attributes
    ----------
    name
        Its module in timm.
    channels
        Width of its activations with mean pooling.
    flops_share
        Share of the forward FLOPs up to here.
    token_channels
        How many of the channels are those of a class token, which is not pooled.
    """

    name: str
    channels: int
    flops_share: float
    token_channels: int = 0


@dataclass(frozen=True)
class Level:
    """Activations of a depth: feature maps (n, channels, h, w), and a class token (n, channels).

    The token is None for networks without one.
    """

    maps: Tensor
    token: Tensor | None = None


def depth_modules(net: nn.Module) -> list[str]:
    """Return the module names of timm's feature levels, ordered from input to output.

    Raises
    ------
    BackboneError
        If the architecture has no feature levels, or modules of other names.
    """
    info = getattr(net, "feature_info", None)
    if not info or not hasattr(net, "forward_intermediates"):
        raise BackboneError(
            f"{type(net).__name__} has no feature levels in timm (feature_info and "
            "forward_intermediates), so it cannot be cut into depths. Choose another backbone."
        )
    names = [str(level["module"]) for level in getattr(info, "info", info)]
    missing = sorted(set(names) - {name for name, _ in net.named_modules()})
    if missing:
        raise BackboneError(
            f"{type(net).__name__} has no modules {', '.join(missing)}, which timm lists as its "
            "feature levels, so it cannot be cut into depths. Choose another backbone."
        )
    return names


def source_head(net: nn.Module, width: int) -> nn.Linear | None:
    """Return the linear layer that predicts the pretraining classes.

    None for a network without one, or if its head has other inputs than the `width` penultimate
    activations.
    """
    head = call(net, "get_classifier")() if hasattr(net, "get_classifier") else None
    return head if isinstance(head, nn.Linear) and head.in_features == width else None


def pool(level: Level, pooling: Pooling) -> Tensor:
    """Average feature maps (n, channels, h, w) over the whole map, or over each of its quarters.

    "grid" is the mean in each cell of a 2 x 2 grid, (n, 4 * channels), which keeps rough
    positions. If a side is odd, both halves include its middle row or column. A class token
    stands before the means.
    """
    maps = level.maps
    token = [] if level.token is None else [level.token]
    if pooling == "mean":
        return torch.cat([*token, maps.mean((2, 3))], dim=1)
    down, across = (maps.shape[2] + 1) // 2, (maps.shape[3] + 1) // 2
    halves = (maps[:, :, :down], maps[:, :, -down:])
    quarters = [q for half in halves for q in (half[..., :across], half[..., -across:])]
    return torch.cat([*token, *(q.mean((2, 3)) for q in quarters)], dim=1)


class Body(nn.Module):
    """A network up to the deepest of some depths: images to pooled activations.

    Input: normalised images, (n, 3, h, w). Output: the concatenated pooled activations of
    `depths`, (n, d). The penultimate depth has the number `n_depths`; its activations are pooled
    as the network itself pools them.

    The activations of an earlier depth of a transformer are its class token beside the mean of
    its patch tokens, both after the network's final norm, as in the linear evaluation of DINOv2
    (M. Oquab et al., DINOv2, 2023). Registers and other prefix tokens are left out. Which depths
    a head reads is chosen by cross-validation, as for other networks.
    """

    def __init__(
        self,
        net: nn.Module,
        depths: tuple[int, ...],
        n_depths: int,
        pooling: Pooling = "mean",
    ) -> None:
        super().__init__()
        if not depths or list(depths) != sorted(set(depths) & set(range(1, n_depths + 1))):
            raise ValueError(f"depths must be ascending within 1..{n_depths}, got {depths}")
        self.net = net
        self.has_tokens = has_tokens(net)
        self.has_class_token = self.has_tokens and getattr(net, "cls_token", None) is not None
        self.whole = n_depths in depths
        self.levels = [d - 1 for d in depths if d < n_depths]
        self.pooling: Pooling = pooling

    def cut(self) -> "Body":
        """Remove all layers that the selected depths do not need, and the original head."""
        if self.whole:
            call(self.net, "reset_classifier")(0)
        else:
            call(self.net, "prune_intermediate_layers")(self.levels, prune_head=True)
        return self

    def levels_of(self, images: Tensor) -> tuple[list[Level], Tensor | None]:
        """Return the activations of the selected depths, and the penultimate activations.

        The penultimate activations are (n, channels), or None if that depth is not selected.
        """
        levels, last = self.unpooled(images)
        return levels, None if last is None else self.pool_last(last)

    def unpooled(self, images: Tensor) -> tuple[list[Level], Tensor | None]:
        """Return the activations of the selected depths, and the network's last, not pooled.

        The last are as the network computes them: feature maps or tokens in its own layout, or
        None if the penultimate depth is not selected.
        """
        if not self.whole:
            return self._levels(self._intermediates(images, only=True)), None
        if self.levels:
            last, found = self._intermediates(images, only=False)
        else:
            last, found = call(self.net, "forward_features")(images), []
        return self._levels(found), last

    def pool_last(self, last: Tensor) -> Tensor:
        """Pool the network's last activations as the network does, (n, channels)."""
        pooled: Tensor = call(self.net, "forward_head")(last, pre_logits=True)
        return pooled

    def read_blocks(self) -> list[nn.Module]:
        """Return the modules whose outputs are the feature levels that the head reads.

        The penultimate activations are those of the last level, after norm and pooling.
        """
        info = getattr(self.net, "feature_info", [])
        names = [str(level["module"]) for level in getattr(info, "info", info)]
        read = [names[level] for level in self.levels] + names[-1:] * self.whole
        return [self.net.get_submodule(name) for name in dict.fromkeys(read)]

    def _intermediates(self, images: Tensor, *, only: bool) -> Any:
        method = call(self.net, "forward_intermediates")
        if not self.has_tokens:
            return method(images, indices=self.levels, intermediates_only=only)
        return method(
            images,
            indices=self.levels,
            norm=True,
            return_prefix_tokens=self.has_class_token,
            intermediates_only=only,
        )

    def _levels(self, found: Sequence[Any]) -> list[Level]:
        """Split what timm returns into maps and class tokens."""
        pairs = [level if isinstance(level, tuple | list) else (level, None) for level in found]
        return [Level(maps, prefix if prefix is None else prefix[:, 0]) for maps, prefix in pairs]

    def activations(self, images: Tensor) -> list[Tensor]:
        """Return the pooled activations, one tensor (n, width) per selected depth."""
        levels, last = self.levels_of(images)
        pooled = [pool(level, self.pooling) for level in levels]
        return pooled if last is None else [*pooled, last]

    def forward(self, images: Tensor) -> Tensor:
        """Return the concatenated pooled activations of all selected depths, (n, d)."""
        return torch.cat(self.activations(images), dim=1)


def widths(depths: Sequence[Depth], pooling: Pooling) -> tuple[int, ...]:
    """Return the pooled width of every depth. The penultimate depth is never grid-pooled."""
    cells = 1 if pooling == "mean" else 4
    *earlier, last = depths
    wide = (d.token_channels + cells * (d.channels - d.token_channels) for d in earlier)
    return (*wide, last.channels)
