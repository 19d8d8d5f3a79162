"""A network seen from its depths: where it can be cut, and what it computes up to there."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from strategies.core.errors import BackboneError


def depth_modules(net: nn.Module) -> list[str]:
    """Return the module names of timm's feature levels, from the input on.

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


def old_head(net: nn.Module, width: int) -> nn.Linear | None:
    """Return the linear layer that names the pretraining classes.

    None for a network without one, or whose head does not read the `width` penultimate
    activations alone.
    """
    head = _call(net, "get_classifier")() if hasattr(net, "get_classifier") else None
    return head if isinstance(head, nn.Linear) and head.in_features == width else None


class Body(nn.Module):
    """The network up to the deepest of some depths: images to pooled activations.

    Input (n, 3, h, w), normalised; output (n, d), the mean-pooled activations of `depths` side
    by side. The penultimate depth is number `n_depths`.
    """

    def __init__(self, net: nn.Module, depths: tuple[int, ...], n_depths: int) -> None:
        super().__init__()
        if not depths or list(depths) != sorted(set(depths) & set(range(1, n_depths + 1))):
            raise ValueError(f"depths must ascend within 1..{n_depths}, got {depths}")
        self.net = net
        self.whole = n_depths in depths
        self.levels = [d - 1 for d in depths if d < n_depths]

    def cut(self) -> "Body":
        """Remove from the network what no depth in use needs, its old head included."""
        if self.whole:
            _call(self.net, "reset_classifier")(0)
        else:
            _call(self.net, "prune_intermediate_layers")(self.levels, prune_head=True)
        return self

    def activations(self, images: Tensor) -> list[Tensor]:
        """Return the pooled activations, one tensor (n, channels) per depth in use."""
        if not self.whole:
            maps = _call(self.net, "forward_intermediates")(
                images, indices=self.levels, intermediates_only=True
            )
            return [m.mean((2, 3)) for m in maps]
        if not self.levels:
            last, maps = _call(self.net, "forward_features")(images), []
        else:
            last, maps = _call(self.net, "forward_intermediates")(images, indices=self.levels)
        head = _call(self.net, "forward_head")(last, pre_logits=True)
        return [*(m.mean((2, 3)) for m in maps), head]

    def forward(self, images: Tensor) -> Tensor:
        """Return the pooled activations of all depths in use side by side, (n, d)."""
        return torch.cat(self.activations(images), dim=1)


def _call(net: nn.Module, name: str) -> Callable[..., Any]:
    method: Callable[..., Any] = getattr(net, name)
    return method
