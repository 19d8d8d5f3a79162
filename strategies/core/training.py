"""The only epoch loop: a recipe, and how a network is trained by it."""

import copy
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from strategies.core.backbone import Backbone, stages
from strategies.core.body import Body
from strategies.core.errors import OutOfTime, TrainingDiverged
from strategies.core.features import batches, to_input
from strategies.core.images import Pixels, random_box, read_image, resize_box
from strategies.core.metrics import Scores
from strategies.core.run import RunContext
from strategies.core.task import ImageTask, Split, labels_of

BatchNorm = Literal["frozen", "trained"]

ROUNDS = 6
"""A training is judged on val this many times; each is one call of ``on_epoch``."""
KEPT_BYTES = 1 << 30
"""Decoded train pictures are kept in memory up to this size."""
TIME_SHARE = 0.9
"""Share of the time until the deadline that the steps may take; the rest judges and saves."""
_NO_TIME = "There was no time left for a single training step."


@dataclass(frozen=True)
class Recipe:
    """Settings of the epoch loop.

    Attributes
    ----------
    steps
        Optimiser steps of `batch_size` pictures; fewer if the deadline is nearer.
    lr
        Peak learning rate of the body (AdamW, linear warm-up, then a cosine to zero).
    head_lr_factor
        The head learns this many times faster.
    batch_norm
        "frozen" keeps the statistics that the network came with; "trained" replaces them by
        those of each batch. Layers of frozen stages always keep theirs.
    frozen_stages
        Number of depths, from the input, whose parameters stay as they are.
    min_area
        Smallest share of a picture that a random crop keeps.
    hflip
        Whether crops are mirrored at random.
    """

    steps: int
    lr: float
    head_lr_factor: float = 1.0
    batch_size: int = 32
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    label_smoothing: float = 0.0
    clip_norm: float = 1.0
    batch_norm: BatchNorm = "frozen"
    frozen_stages: int = 0
    min_area: float = 0.5
    hflip: bool = False


class Network(nn.Module):
    """A body and a linear head: normalised images (n, 3, h, w) to scores (n, classes)."""

    def __init__(self, body: Body, head: nn.Linear) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores, whose softmax are the probabilities."""
        scores: Tensor = self.head(self.body(images).float())
        return scores


def train(
    network: Network, task: ImageTask, backbone: Backbone, recipe: Recipe, ctx: RunContext
) -> None:
    """Train a network in place; it ends with the weights that were best on val.

    The starting point counts as a candidate, so a network that began well is never made worse on
    val. Without val pictures the last weights stay. The learning rate follows the larger of the
    shares of steps and of time used, so a training that meets its deadline has still cooled down.

    Raises
    ------
    OutOfTime
        If not one step fits before the deadline.
    TrainingDiverged
        If the loss stays non-finite after three cuts of the learning rate.
    """
    network.to(ctx.device).to(memory_format=torch.channels_last)
    kept = _freeze(network, backbone, recipe)
    optimiser = _optimiser(network, recipe)
    pace = _Pace(recipe, ctx)
    best_accuracy, best_state = _val_accuracy(network, task, backbone, ctx), _state(network)
    labels = torch.as_tensor(labels_of(task.train))
    rounds, brake = 0, 1.0
    for step, (rows, pixels) in enumerate(_train_batches(task.train, backbone, recipe, ctx)):
        progress = pace.progress(step)
        if step == 0 and progress >= 1:
            raise OutOfTime(_NO_TIME)
        if progress * ROUNDS >= rounds + 1 or progress >= 1:
            rounds += 1
            accuracy = _val_accuracy(network, task, backbone, ctx)
            if accuracy >= best_accuracy:
                best_accuracy, best_state = accuracy, _state(network)
            ctx.on_epoch(rounds, accuracy)
        if progress >= 1:
            break
        _set_train_mode(network, kept)
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * brake * _warm_cosine(progress, recipe.warmup_share)
        images = to_input(pixels, backbone, ctx.device)
        images = images.to(memory_format=torch.channels_last)
        if not _step(network, optimiser, images, labels[rows].to(ctx.device), recipe, ctx):
            brake /= 2
            if brake < 1 / 8:
                raise TrainingDiverged(f"The loss was not finite at step {step}, lr {recipe.lr}.")
    network.load_state_dict(best_state)
    network.eval()


class _Pace:
    """How much of a training is behind, by steps or by time, whichever is more."""

    def __init__(self, recipe: Recipe, ctx: RunContext) -> None:
        self.steps = recipe.steps
        self.start_s = time.monotonic()
        self.seconds = ctx.seconds_left() * TIME_SHARE
        if self.seconds <= 0:
            raise OutOfTime(_NO_TIME)

    def progress(self, step: int) -> float:
        used = (time.monotonic() - self.start_s) / self.seconds
        return max(step / self.steps, used)


def _warm_cosine(progress: float, warmup_share: float) -> float:
    if progress < warmup_share:
        return max(progress / warmup_share, 0.02)
    rest = (progress - warmup_share) / (1 - warmup_share)
    return float(0.5 * (1 + np.cos(np.pi * min(rest, 1.0))))


def _freeze(network: Network, backbone: Backbone, recipe: Recipe) -> set[nn.Module]:
    """Freeze the first stages; return the BatchNorm layers whose statistics must not move."""
    net = network.body.net
    stage = stages(net, backbone)
    kept: set[nn.Module] = set()
    for name, module in net.named_modules():
        frozen = stage.get(name, backbone.n_depths) <= recipe.frozen_stages
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(not frozen)
        if isinstance(module, nn.BatchNorm2d) and (frozen or recipe.batch_norm == "frozen"):
            kept.add(module)
    return kept


def _optimiser(network: Network, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; no weight decay on vectors (norms, biases), a faster head."""
    groups = []
    for module, peak in (
        (network.body, recipe.lr),
        (network.head, recipe.lr * recipe.head_lr_factor),
    ):
        trained = [p for p in module.parameters() if p.requires_grad]
        for parameters, decay in (
            ([p for p in trained if p.ndim > 1], recipe.weight_decay),
            ([p for p in trained if p.ndim <= 1], 0.0),
        ):
            groups.append({"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay})
    return torch.optim.AdamW([g for g in groups if g["params"]])


def _set_train_mode(network: Network, kept: set[nn.Module]) -> None:
    network.train()
    for module in kept:
        module.eval()


def _step(
    network: Network,
    optimiser: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    ctx: RunContext,
) -> bool:
    """Take one step; False, and nothing changed, if the loss or its gradient is not finite."""
    optimiser.zero_grad(set_to_none=True)
    before = [buffer.clone() for buffer in network.buffers()]  # BatchNorm's move on the way
    with ctx.autocast():
        scores = network(images)
    loss = nn.functional.cross_entropy(
        scores.float(), labels, label_smoothing=recipe.label_smoothing
    )
    if torch.isfinite(loss):
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
        if torch.isfinite(norm):
            optimiser.step()
            return True
    for buffer, value in zip(network.buffers(), before, strict=True):
        buffer.copy_(value)
    return False


def _state(network: Network) -> dict[str, Tensor]:
    return copy.deepcopy(network.state_dict())


def _val_accuracy(network: Network, task: ImageTask, backbone: Backbone, ctx: RunContext) -> float:
    """Accuracy on val; 0 without val pictures, so that the latest weights win."""
    if not task.val:
        return 0.0
    found = scores_of(network, task.val, backbone, ctx).argmax(axis=1)
    return float(np.mean(found == labels_of(task.val)))


@torch.inference_mode()
def scores_of(network: Network, split: Split, backbone: Backbone, ctx: RunContext) -> Scores:
    """Return the scores of a split's pictures, centre crops, shape (n, classes)."""
    network.eval()
    parts = []
    for pixels in batches([p.path for p in split], backbone, ctx.n_workers):
        with ctx.autocast():
            parts.append(network(to_input(pixels, backbone, ctx.device)).float().cpu().numpy())
    return np.concatenate(parts)


def _train_batches(
    split: Split, backbone: Backbone, recipe: Recipe, ctx: RunContext
) -> Iterator[tuple[Sequence[int], Pixels]]:
    """Yield batches without end: row numbers and augmented pixels; the same for the same seed."""
    kept: dict[int, Image.Image] = {}
    kept_bytes = 0

    def image_of(row: int) -> Image.Image:
        nonlocal kept_bytes
        if row in kept:
            return kept[row]
        image = read_image(split[row].path)
        size = 3 * image.width * image.height
        if kept_bytes + size <= KEPT_BYTES:
            kept[row] = image
            kept_bytes += size
        return image

    def draw(number: int, rows: Sequence[int]) -> Pixels:
        return np.stack([crop(number, i, row) for i, row in enumerate(rows)])

    def crop(number: int, i: int, row: int) -> Pixels:
        rng = np.random.default_rng([ctx.seed, number, i])
        image = image_of(row)
        box = random_box(image.width, image.height, recipe.min_area, rng)
        pixels = resize_box(image, box, backbone.input_px, backbone.interpolation)
        return pixels[:, ::-1] if recipe.hflip and rng.random() < 0.5 else pixels

    with ThreadPoolExecutor(ctx.n_workers) as pool:
        ahead = []
        for number, rows in enumerate(_row_batches(len(split), recipe.batch_size, ctx.seed)):
            ahead.append((rows, pool.submit(draw, number, rows)))
            if len(ahead) > ctx.n_workers:
                first, pixels = ahead.pop(0)
                yield first, pixels.result()


def _row_batches(n: int, size: int, seed: int) -> Iterator[list[int]]:
    """Yield batches of row numbers from one random order after the other, without end."""
    rng = np.random.default_rng(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < size:
            waiting += rng.permutation(n).tolist()
        yield waiting[:size]
        waiting = waiting[size:]
