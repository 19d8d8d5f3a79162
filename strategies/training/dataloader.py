"""Train images in batches: an order, random crops, and threads that read ahead."""

import contextlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from strategies.core.context import RunContext
from strategies.core.errors import DataError, TransferError
from strategies.data.dataset import Dataset, Split
from strategies.data.decoding import Pixels, UnreadableImage, read_image
from strategies.data.transforms import random_box, resize_box
from strategies.models.backbone import Backbone
from strategies.models.features import batches, to_input
from strategies.models.network import Network
from strategies.training.data_parallel import SINGLE_PROCESS, DataParallelGroup
from strategies.training.recipe import Recipe

KEPT_BYTES = 1 << 30
"""Decoded train images are kept in memory up to this size."""


class Crops:
    """Random crops of a split's images; what is drawn depends on the seed and a key alone."""

    def __init__(self, split: Split, backbone: Backbone, recipe: Recipe, seed: int) -> None:
        self.split, self.backbone, self.recipe, self.seed = split, backbone, recipe, seed
        self._kept: dict[int, Image.Image] = {}
        self._kept_bytes = 0

    def crop(self, row: int, *key: int) -> Pixels:
        """Draw one crop of an image, (px, px, 3)."""
        rng = np.random.default_rng([self.seed, *key])
        image = self._image(row)
        box = random_box(image.width, image.height, self.recipe.min_area, rng)
        pixels = resize_box(image, box, self.backbone.input_px, self.backbone.interpolation)
        return pixels[:, ::-1] if self.recipe.hflip and rng.random() < 0.5 else pixels

    def _image(self, row: int) -> Image.Image:
        if row in self._kept:
            return self._kept[row]
        path = self.split[row].path
        try:
            image = read_image(path)
        except UnreadableImage as error:
            raise DataError(
                f"{path} could be read before and cannot any more: {error}. "
                "Restore it, or remove it from the dataset, and start again."
            ) from error
        size = 3 * image.width * image.height
        if self._kept_bytes + size <= KEPT_BYTES:
            self._kept[row] = image
            self._kept_bytes += size
        return image


def train_batches(
    split: Split,
    backbone: Backbone,
    recipe: Recipe,
    ctx: RunContext,
    first: int = 0,
    dp_group: DataParallelGroup = SINGLE_PROCESS,
) -> Generator[tuple[Sequence[int], Pixels]]:
    """Yield batches without end: row numbers and augmented pixels; the same for the same seed.

    Parameters
    ----------
    first
        Number of the first batch: a resumed training leaves out those that it has seen.
    team
        Whose share of every batch is yielded.

    Raises
    ------
    DataError
        If an image can no longer be read.
    TransferError
        If a worker fails for any other reason.
    """
    crops = Crops(split, backbone, recipe, ctx.seed)
    places = dp_group.share(recipe.batch_size).tolist()

    def draw(number: int, rows: Sequence[int]) -> Pixels:
        return np.stack([crops.crop(row, number, i) for i, row in zip(places, rows, strict=True)])

    waiting: deque[tuple[list[int], Future[Pixels]]] = deque()
    with ThreadPoolExecutor(ctx.n_workers) as pool:
        try:
            for number, drawn in enumerate(row_batches(len(split), recipe.batch_size, ctx.seed)):
                if number < first:
                    continue
                rows = [drawn[i] for i in places]
                waiting.append((rows, pool.submit(draw, number, rows)))
                if len(waiting) > ctx.n_workers:
                    batch, pixels = waiting.popleft()
                    yield batch, result_of(pixels)
        finally:
            for _, pixels in waiting:
                pixels.cancel()


def result_of(work: Future[Pixels]) -> Pixels:
    """Return what a worker made; whatever it died of becomes an error with a sentence."""
    try:
        return work.result()
    except TransferError:
        raise
    except (Exception, SystemExit) as error:  # a worker's last words, whatever they are
        raise TransferError(
            f"A worker that reads images died ({type(error).__name__}: {error}), so the "
            "training was stopped. Run it again; if it happens again, use fewer workers."
        ) from error


def row_batches(n: int, size: int, seed: int) -> Iterator[list[int]]:
    """Yield batches of row numbers from one random order after the other, without end."""
    rng = np.random.default_rng(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < size:
            waiting += rng.permutation(n).tolist()
        yield waiting[:size]
        waiting = waiting[size:]


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

    def shared(self, dp_group: DataParallelGroup) -> "Inputs":
        """Return inputs that yield a process's share of every train batch."""
        ...

    def val(self) -> Iterator[Tensor]:
        """Yield the validation images, centre crops, in order."""
        ...


class ImageInputs:
    """Images from their files, cropped again every time."""

    kind = "images"

    def __init__(
        self,
        network: Network,
        dataset: Dataset,
        backbone: Backbone,
        recipe: Recipe,
        ctx: RunContext,
        dp_group: DataParallelGroup = SINGLE_PROCESS,
    ) -> None:
        self.network, self.dataset, self.backbone = network, dataset, backbone
        self.recipe, self.ctx, self.dp_group = recipe, ctx, dp_group

    def batches(self, first: int) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Yield augmented train batches without end from number `first` on, with their rows."""
        found = train_batches(
            self.dataset.train, self.backbone, self.recipe, self.ctx, first, self.dp_group
        )
        with contextlib.closing(found):
            for rows, pixels in found:
                images = to_input(pixels, self.backbone, self.ctx.device)
                yield rows, images.to(memory_format=torch.channels_last)

    def shared(self, dp_group: DataParallelGroup) -> Inputs:
        """Return inputs that yield a process's share of every train batch."""
        return ImageInputs(
            self.network, self.dataset, self.backbone, self.recipe, self.ctx, dp_group
        )

    def val(self) -> Iterator[Tensor]:
        """Yield the validation images, centre crops, in order."""
        paths = [p.path for p in self.dataset.val]
        for pixels in batches(paths, self.backbone, self.ctx.n_workers):
            yield to_input(pixels, self.backbone, self.ctx.device)
