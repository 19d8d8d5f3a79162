"""Network: a body with a linear head, and its scores for images."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from strategies.core.activation_store import EvalCrops
from strategies.core.allocator import inference_passes
from strategies.core.cache import Rows
from strategies.core.context import RunContext
from strategies.core.metrics import Scores
from strategies.data.decoding import Pixels
from strategies.data.image import Split
from strategies.models.backbone import Backbone
from strategies.models.body import Body
from strategies.models.features import batches, to_input


class Network(nn.Module):
    """A body with a linear head: normalised images (n, 3, h, w) to scores (n, classes)."""

    def __init__(self, body: Body, head: nn.Linear) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores (logits). Their softmax is the class probabilities."""
        return self.scores(self.body(images))

    def scores(self, features: Tensor) -> Tensor:
        """Apply the head to features (n, d) in float32, also within autocast.

        bfloat16 has 8 bits of precision: of the scores of 1,000 classes, a few per cent would be
        exact ties.
        """
        kind = features.device.type
        if not torch.is_autocast_enabled(kind):
            return self._head_scores(features)
        with torch.autocast(kind, enabled=False):
            return self._head_scores(features)

    def _head_scores(self, features: Tensor) -> Tensor:
        scores: Tensor = self.head(features.float())
        return scores


@torch.inference_mode()
def outputs_of(
    network: Callable[[Tensor], Tensor],
    paths: Sequence[Path],
    backbone: Backbone,
    ctx: RunContext,
    eval_crops: EvalCrops | None = None,
) -> Rows:
    """Return the outputs of a network for the centre crops of files, float32 (n, d).

    The context's deadline is not checked. Crops in `eval_crops` are not read again.
    """

    def forward(pixels: Pixels) -> Tensor:
        with ctx.autocast():
            found = network(to_input(pixels, backbone, ctx.device))
        return found.float().cpu()

    chunks = batches(paths, backbone, ctx.n_workers, eval_crops=eval_crops)
    parts = inference_passes(forward, chunks, ctx.device)
    return np.concatenate([part.numpy() for part in parts])


def scores_of(
    network: Network,
    split: Split,
    backbone: Backbone,
    ctx: RunContext,
    eval_crops: EvalCrops | None = None,
) -> Scores:
    """Return the scores of the centre crops of a split, (n, classes); see `outputs_of`."""
    paths = [image.path for image in split]
    return outputs_of(network.eval(), paths, backbone, ctx, eval_crops)
