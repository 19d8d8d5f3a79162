"""Data loading for training: batches of random crops, or of cached activations, read ahead."""

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from strategies.core.activation_store import EvalCrops
from strategies.core.context import RunContext
from strategies.core.errors import DataError, TransferError
from strategies.core.prefetch import batches_on_device, chunks, prefetch
from strategies.data.dataset import Dataset, Split
from strategies.data.decoding import Pixels, UnreadableImage, read_image
from strategies.data.transforms import random_box, resize_box
from strategies.models.backbone import Backbone
from strategies.models.features import INFERENCE_BATCH, batches, normalised
from strategies.models.network import Network
from strategies.training.data_parallel import SINGLE_PROCESS, DataParallelGroup
from strategies.training.recipe import Recipe

T = TypeVar("T")

IMAGE_CACHE_BYTES = 1 << 30
"""Size up to which decoded train images are kept in memory."""
GATHER_THREADS = 2
"""Threads that gather batches of cached activations. Batches of up to 100 MB wait in memory, at
most two more than threads."""


class Crops:
    """Random crops of a split's images, each determined by the seed and a key."""

    def __init__(self, split: Split, backbone: Backbone, recipe: Recipe, seed: int) -> None:
        self.split, self.backbone, self.recipe, self.seed = split, backbone, recipe, seed
        self._cached: dict[int, Image.Image] = {}
        self._cached_bytes = 0

    def batch(self, keys: Iterable[tuple[int, ...]]) -> Pixels:
        """Return one random crop per key, (n, px, px, 3). A key starts with the image's row.

        Raises
        ------
        DataError
            If an image can no longer be read.
        TransferError
            If reading fails for any other reason.
        """
        try:
            return np.stack([self._crop(row, *key) for row, *key in keys])
        except TransferError:
            raise
        except (Exception, SystemExit) as error:
            raise TransferError(
                f"A worker thread that reads images failed ({type(error).__name__}: {error}), so "
                "training was stopped. Run it again. If it fails again, use fewer workers."
            ) from error

    def _crop(self, row: int, *key: int) -> Pixels:
        """Return one random crop of an image, (px, px, 3)."""
        rng = np.random.default_rng([self.seed, *key])
        image = self._image(row)
        box = random_box(image.width, image.height, self.recipe.min_area, rng)
        pixels = resize_box(image, box, self.backbone.input_px, self.backbone.interpolation)
        return pixels[:, ::-1] if self.recipe.hflip and rng.random() < 0.5 else pixels

    def _image(self, row: int) -> Image.Image:
        if row in self._cached:
            return self._cached[row]
        path = self.split[row].path
        try:
            image = read_image(path)
        except UnreadableImage as error:
            raise DataError(
                f"{path} was readable when the dataset was loaded, and is not any more: {error}. "
                "Restore it, or remove it from the dataset, and start again."
            ) from error
        size = 3 * image.width * image.height
        if self._cached_bytes + size <= IMAGE_CACHE_BYTES:
            self._cached[row] = image
            self._cached_bytes += size
        return image


def train_batches(
    split: Split,
    backbone: Backbone,
    recipe: Recipe,
    ctx: RunContext,
    first: int = 0,
    dp_group: DataParallelGroup = SINGLE_PROCESS,
) -> Generator[tuple[list[int], Pixels]]:
    """Return batches forever: row numbers and augmented pixels, reproducible for a seed.

    Parameters
    ----------
    first
        Number of the first batch; a resumed run skips the batches before it.
    dp_group
        Process whose share of every batch is yielded.

    Raises
    ------
    DataError
        If an image can no longer be read.
    TransferError
        If a worker thread fails for any other reason.
    """
    crops = Crops(split, backbone, recipe, ctx.seed)
    own = dp_group.shard(recipe.batch_size).tolist()

    def draw(numbered: tuple[int, list[int]]) -> tuple[list[int], Pixels]:
        number, batch = numbered
        rows = [batch[i] for i in own]
        return rows, crops.batch((row, number, i) for i, row in zip(own, rows, strict=True))

    numbered = enumerate(row_batches(len(split), recipe.batch_size, ctx.seed))
    return prefetch(draw, islice(numbered, first, None), ctx.n_workers)


def row_batches(n: int, size: int, seed: int) -> Iterator[list[int]]:
    """Yield batches of row numbers forever: each epoch is a random permutation of all rows."""
    rng = np.random.default_rng(seed)
    queue, start = rng.permutation(n), 0
    while True:
        while len(queue) - start < size:
            queue, start = np.concatenate([queue[start:], rng.permutation(n)]), 0
        yield queue[start : start + size].tolist()
        start += size


class Inputs(Protocol):
    """Source of train batches and validation batches for a network, on its device."""

    @property
    def kind(self) -> str:
        """Return what the batches hold; part of the identity of a checkpoint."""
        ...

    @property
    def network(self) -> Network:
        """Return the network to train: the whole one, or the part after its frozen stages."""
        ...

    def batches(self, first: int) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Yield rows and images of augmented train batches forever, from batch `first` on."""
        ...

    def val(self) -> Iterator[Tensor]:
        """Yield batches of the validation images (centre crops), in order."""
        ...


class ImageInputs:
    """Inputs that read image files, with new random crops in every epoch."""

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
        store = ctx.training.activation_store
        self.eval_crops = EvalCrops() if store is None else store.eval_crops

    def batches(self, first: int) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Yield rows and images of augmented train batches forever, from batch `first` on."""
        found = train_batches(
            self.dataset.train, self.backbone, self.recipe, self.ctx, first, self.dp_group
        )
        with contextlib.closing(found), contextlib.closing(self._on_device(found)) as moved:
            for rows, images in moved:
                yield rows, images.to(memory_format=torch.channels_last)

    def val(self) -> Iterator[Tensor]:
        """Yield batches of the validation images (centre crops), in order.

        The crops are kept in memory (`EvalCrops`): rounds after the first read no file.
        """
        paths = [p.path for p in self.dataset.val]
        found = batches(paths, self.backbone, self.ctx.n_workers, eval_crops=self.eval_crops)
        with (
            contextlib.closing(found),
            contextlib.closing(self._on_device(enumerate(found))) as moved,
        ):
            for _, images in moved:
                yield images

    def _on_device(self, found: Iterable[tuple[T, Pixels]]) -> Generator[tuple[T, Tensor]]:
        """Yield batches of pixels as normalised images on the device."""
        with contextlib.closing(batches_on_device(found, self.ctx.device)) as moved:
            for given, pixels in moved:
                yield given, normalised(pixels, self.backbone)


@dataclass(frozen=True)
class CachedPrefix:
    """Inputs that yield cached activations, for the part of the network after the frozen stages.

    Batches are gathered and copied to the device in float16, ahead of the loop. They are converted
    to float32 on the device.

    Attributes
    ----------
    network
        The part of the network after the frozen stages.
    train, val_rows
        Activations of train and validation images, (n, views, ...) and (n, ...), float16, on disk.
    """

    network: Network
    train: NDArray[Any]
    val_rows: NDArray[Any]
    recipe: Recipe
    ctx: RunContext
    kind: str = "frozen prefix"

    def batches(self, first: int) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Yield rows and activations of train batches forever, with another view in each epoch."""
        n, views = self.train.shape[:2]
        size = self.recipe.batch_size

        def gather(numbered: tuple[int, Sequence[int]]) -> tuple[Sequence[int], NDArray[Any]]:
            number, rows = numbered
            epochs = (number * size + np.arange(size)) // n
            return rows, self.train[rows, (np.asarray(rows) + epochs) % views]

        numbered = enumerate(row_batches(n, size, self.ctx.seed))
        return self._gathered(gather, islice(numbered, first, None))

    def val(self) -> Iterator[Tensor]:
        """Yield the activations of the validation images (centre crops), in order."""

        def gather(rows: Sequence[int]) -> tuple[Sequence[int], NDArray[Any]]:
            return rows, self.val_rows[list(rows)]

        rows = chunks(range(len(self.val_rows)), INFERENCE_BATCH)
        with contextlib.closing(self._gathered(gather, rows)) as gathered:
            for _, values in gathered:
                yield values

    def _gathered(
        self, gather: Callable[[T], tuple[Sequence[int], NDArray[Any]]], items: Iterable[T]
    ) -> Generator[tuple[Sequence[int], Tensor]]:
        """Yield rows and activations, float32, on the device; `gather` is called in threads."""
        n_threads = min(GATHER_THREADS, self.ctx.n_workers)
        with (
            contextlib.closing(prefetch(gather, items, n_threads)) as gathered,
            contextlib.closing(batches_on_device(gathered, self.ctx.device)) as moved,
        ):
            for rows, values in moved:
                layout = torch.channels_last if values.ndim == 4 else torch.preserve_format
                yield rows, values.to(torch.float32, memory_format=layout)
