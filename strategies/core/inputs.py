"""What a training is fed with: pictures, or what a frozen prefix of the network makes of them."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from strategies.core.backbone import Backbone
from strategies.core.features import batches, to_input
from strategies.core.loader import train_batches
from strategies.core.network import Network
from strategies.core.prefix import NotCached, cached_prefix
from strategies.core.recipe import Recipe
from strategies.core.run import RunContext
from strategies.core.task import ImageTask
from strategies.core.team import ALONE, Team


class Inputs(Protocol):
    """Batches for a network, on its device."""

    @property
    def kind(self) -> str:
        """Return what the batches hold: belongs to the identity of a training."""
        ...

    @property
    def network(self) -> Network:
        """Return what they are for: the network, or what follows its frozen prefix."""
        ...

    def batches(self, first: int) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Yield augmented train batches without end from number `first` on, with their rows."""
        ...

    def shared(self, team: Team) -> "Inputs":
        """Return inputs that yield a process's share of every train batch."""
        ...

    def val(self) -> Iterator[Tensor]:
        """Yield the val pictures, centre crops, in order."""
        ...


class Pictures:
    """Pictures from their files, cropped anew every time."""

    kind = "pictures"

    def __init__(
        self,
        network: Network,
        task: ImageTask,
        backbone: Backbone,
        recipe: Recipe,
        ctx: RunContext,
        team: Team = ALONE,
    ) -> None:
        self.network, self.task, self.backbone = network, task, backbone
        self.recipe, self.ctx, self.team = recipe, ctx, team

    def batches(self, first: int) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Yield augmented train batches without end from number `first` on, with their rows."""
        found = train_batches(
            self.task.train, self.backbone, self.recipe, self.ctx, first, self.team
        )
        with contextlib.closing(found):
            for rows, pixels in found:
                images = to_input(pixels, self.backbone, self.ctx.device)
                yield rows, images.to(memory_format=torch.channels_last)

    def shared(self, team: Team) -> Inputs:
        """Return inputs that yield a process's share of every train batch."""
        return Pictures(self.network, self.task, self.backbone, self.recipe, self.ctx, team)

    def val(self) -> Iterator[Tensor]:
        """Yield the val pictures, centre crops, in order."""
        paths = [p.path for p in self.task.val]
        for pixels in batches(paths, self.backbone, self.ctx.n_workers):
            yield to_input(pixels, self.backbone, self.ctx.device)


def open_inputs(
    network: Network,
    stage: Mapping[str, int],
    task: ImageTask,
    backbone: Backbone,
    recipe: Recipe,
    ctx: RunContext,
) -> Inputs:
    """Run a frozen prefix once and feed on what it made; feed on pictures where that cannot be.

    The reason why not is told by ``ctx.on_note``.
    """
    try:
        return cached_prefix(network, stage, task, backbone, recipe, ctx)
    except NotCached as reason:
        if str(reason):
            ctx.on_note(f"The frozen stages run anew for every picture: {reason}")
        return Pictures(network, task, backbone, recipe, ctx)
