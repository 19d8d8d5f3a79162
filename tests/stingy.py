"""A network that is out of memory with more than two images, also in other processes."""

import torch
from torch import Tensor

from strategies.models.body import Body
from strategies.models.network import Network


class StingyBody(Body):
    """A body that is out of memory with more than two images."""

    def forward(self, images: Tensor) -> Tensor:
        if self.training and len(images) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(images)


def make_stingy(network: Network) -> None:
    """Let the body of a network be out of memory in training."""
    network.body.__class__ = StingyBody
