"""Body: a backbone cut at one or several depths, with pooled activations as its output."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from strategies.core.errors import BackboneError

Pooling = Literal["mean", "grid"]


def depth_modules(net: nn.Module) -> list[str]:
    """Return the module names of timm's feature levels, ordered from input to output.

    Raises
    ------
    BackboneError
        If the architecture has no feature levels.
    """
    info = getattr(net, "feature_info", None)
    if not info or not hasattr(net, "forward_intermediates"):
        raise BackboneError(
            f"{type(net).__name__} has no feature levels in timm (feature_info and "
            "forward_intermediates), so it cannot be cut into depths. Choose another backbone."
        )
    return [level["module"] for level in getattr(info, "info", info)]


def source_head(net: nn.Module, width: int) -> nn.Linear | None:
    """Return the linear layer that predicts the pretraining classes.

    None for a network without one, or if its head has other inputs than the `width` penultimate
    activations.
    """
    head = _call(net, "get_classifier")() if hasattr(net, "get_classifier") else None
    return head if isinstance(head, nn.Linear) and head.in_features == width else None


def pool(maps: Tensor, pooling: Pooling) -> Tensor:
    """Average feature maps (n, channels, h, w) over the whole map, or over each of its quarters.

    "grid" is the mean in each cell of a 2 x 2 grid, (n, 4 * channels), which keeps rough
    positions. If a side is odd, both halves include its middle row or column.
    """
    if pooling == "mean":
        return maps.mean((2, 3))
    down, across = (maps.shape[2] + 1) // 2, (maps.shape[3] + 1) // 2
    halves = (maps[:, :, :down], maps[:, :, -down:])
    quarters = [q for half in halves for q in (half[..., :across], half[..., -across:])]
    return torch.cat([q.mean((2, 3)) for q in quarters], dim=1)


class Body(nn.Module):
    """A network up to the deepest of some depths: images to pooled activations.

    Input: normalised images, (n, 3, h, w). Output: the concatenated pooled activations of
    `depths`, (n, d). The penultimate depth has the number `n_depths`; its activations are pooled
    as the network itself pools them.
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
        self.whole = n_depths in depths
        self.levels = [d - 1 for d in depths if d < n_depths]
        self.pooling: Pooling = pooling

    def cut(self) -> "Body":
        """Remove all layers that the selected depths do not need, and the original head."""
        if self.whole:
            _call(self.net, "reset_classifier")(0)
        else:
            _call(self.net, "prune_intermediate_layers")(self.levels, prune_head=True)
        return self

    def maps(self, images: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Return the feature maps of the selected depths, and the penultimate activations.

        The maps are (n, channels, h, w). The penultimate activations are (n, channels), or None
        if that depth is not selected.
        """
        if not self.whole:
            maps = _call(self.net, "forward_intermediates")(
                images, indices=self.levels, intermediates_only=True
            )
            return maps, None
        if not self.levels:
            last, maps = _call(self.net, "forward_features")(images), []
        else:
            last, maps = _call(self.net, "forward_intermediates")(images, indices=self.levels)
        return maps, _call(self.net, "forward_head")(last, pre_logits=True)

    def activations(self, images: Tensor) -> list[Tensor]:
        """Return the pooled activations, one tensor (n, width) per selected depth."""
        maps, last = self.maps(images)
        pooled = [pool(m, self.pooling) for m in maps]
        return pooled if last is None else [*pooled, last]

    def forward(self, images: Tensor) -> Tensor:
        """Return the concatenated pooled activations of all selected depths, (n, d)."""
        return torch.cat(self.activations(images), dim=1)


def widths(channels: Sequence[int], pooling: Pooling) -> tuple[int, ...]:
    """Return the pooled width of every depth. The penultimate depth is never grid-pooled."""
    cells = 1 if pooling == "mean" else 4
    return (*(cells * c for c in channels[:-1]), channels[-1])


def _call(net: nn.Module, name: str) -> Callable[..., Any]:
    method: Callable[..., Any] = getattr(net, name)
    return method
