"""A body and a linear head."""

from torch import Tensor, nn

from strategies.core.body import Body


class Network(nn.Module):
    """A body and a linear head: normalised images (n, 3, h, w) to scores (n, classes)."""

    def __init__(self, body: Body, head: nn.Linear) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores, whose softmax are the probabilities."""
        scores: Tensor = self.head(self.body(images).float())
        return scores
