"""The frozen first stages run once: their activations are kept in a file while the rest learns.

Every train image is seen in a few random crops, every validation image in its centre crop.
The file has no name, so nothing of it is left behind, however the training ends. Training runs that
freeze the same stages of the same network and see the same crops share it (`RunContext.activation_store`).
"""

import contextlib
import copy
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.data.decoding import Pixels
from strategies.models.backbone import Backbone
from strategies.models.features import batches, to_input
from strategies.models.network import Network
from strategies.training.data_parallel import DataParallelGroup
from strategies.training.dataloader import (
    Crops,
    ImageInputs,
    Inputs,
    result_of,
    row_batches,
)
from strategies.training.recipe import Recipe

VIEWS_PER_EPOCH, MOST_VIEWS = 0.3, 16
"""Random crops kept of every train image: fewer than there are epochs, or nothing is saved."""
MOST_BYTES = 8 << 30
"""A larger file is not written."""
DISK_SHARE = 0.5
"""Share of the free disk that the file may take."""
_IMAGES = 8
TIME_SHARE = 0.5
"""Share of the time left that filling the file may take; else the steps have too little of it."""
_LARGEST_HALF = 6e4


class NotCached(Exception):
    """The frozen prefix is not run once; the message is the reason, empty if it is none."""


class _Reached(Exception):
    """Ends a forward pass at the cut, with what was computed."""

    def __init__(self, activations: Tensor) -> None:
        super().__init__("the cut is reached")
        self.activations = activations


@dataclass(frozen=True)
class CachedPrefix:
    """Activations behind the frozen stages, and the rest of the network that learns from them.

    Attributes
    ----------
    train, centre
        Activations of train and validation images, (n, views, ...) and (n, ...), float16, on disk.
    """

    network: Network
    train: NDArray[Any]
    centre: NDArray[Any]
    recipe: Recipe
    ctx: RunContext
    kind: str = "frozen prefix"

    def batches(self, first: int) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Yield train batches without end; an image's views take turns from epoch to epoch."""
        n, views = self.train.shape[:2]
        size = self.recipe.batch_size
        for number, rows in enumerate(row_batches(n, size, self.ctx.seed)):
            if number >= first:
                epochs = (number * size + np.arange(size)) // n
                yield rows, self._tensor(self.train[rows, (np.asarray(rows) + epochs) % views])

    def shared(self, dp_group: DataParallelGroup) -> "CachedPrefix":
        """Return itself: what follows a frozen prefix is trained by one process."""
        assert dp_group.size == 1
        return self

    def val(self) -> Iterator[Tensor]:
        """Yield the centre views of the validation images, in order."""
        for start in range(0, len(self.centre), self.recipe.batch_size):
            yield self._tensor(self.centre[start : start + self.recipe.batch_size])

    def _tensor(self, rows: NDArray[Any]) -> Tensor:
        values = torch.from_numpy(rows.astype(np.float32)).to(self.ctx.device)
        return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values


def cached_prefix(
    network: Network,
    stage: Mapping[str, int],
    dataset: Dataset,
    backbone: Backbone,
    recipe: Recipe,
    ctx: RunContext,
) -> CachedPrefix:
    """Fill the file, or take up what another training left.

    Raises
    ------
    NotCached
        If nothing is frozen, the crops are seen too seldom to be worth keeping, the network
        cannot be taken up behind the cut, or the file would not fit.
    """
    views = _views(dataset, recipe)
    prefix = _Prefix(network, backbone.depths[recipe.frozen_stages - 1].name, ctx)
    crops = Crops(dataset.train, backbone, recipe, ctx.seed)
    with ThreadPoolExecutor(1) as pool:
        sample = result_of(pool.submit(lambda: np.stack([crops.crop(0, 0, 0)])))
    images = to_input(sample, backbone, ctx.device)
    rest = _rest(network, stage, recipe.frozen_stages)
    _check_same(network, prefix, rest, images)
    shape = prefix(images).shape[1:]
    n = len(dataset.train) * views

    def parts(rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        return rows[:n].reshape(len(dataset.train), views, *shape), rows[n:]

    def fill() -> NDArray[Any]:
        rows = _file(n + len(dataset.val), shape, ctx)
        train, val = parts(rows)
        _fill_train(train, prefix, crops, backbone, ctx)
        _fill_val(val, prefix, dataset, backbone, ctx)
        return rows

    if ctx.activation_store is None:
        rows = fill()
    else:
        rows = ctx.activation_store.get(
            _key(network, stage, dataset, backbone, recipe, views, ctx), fill
        )
    return CachedPrefix(rest, *parts(rows), recipe, ctx)


def _key(
    network: Network,
    stage: Mapping[str, int],
    dataset: Dataset,
    backbone: Backbone,
    recipe: Recipe,
    views: int,
    ctx: RunContext,
) -> Hashable:
    """Return all that the activations depend on: weights, images, crops, rounding."""
    weights = hashlib.sha256()
    for name, value in network.body.net.state_dict().items():
        if stage.get(name.rpartition(".")[0], 0) <= recipe.frozen_stages:
            weights.update(f"{name}\n".encode())
            weights.update(value.cpu().numpy().tobytes())
    images = tuple(tuple(p.path for p in split) for split in (dataset.train, dataset.val))
    crops = (backbone, views, recipe.min_area, recipe.hflip, ctx.seed)
    return recipe.frozen_stages, weights.digest(), images, crops, ctx.device, ctx.precision


def _views(dataset: Dataset, recipe: Recipe) -> int:
    """Return the number of crops to keep of every image."""
    epochs = recipe.steps * recipe.batch_size / len(dataset.train)
    if not recipe.frozen_stages or epochs <= 1:
        raise NotCached
    if recipe.mixes:
        raise NotCached("mixup and cutmix mix images, not activations.")
    return min(MOST_VIEWS, int(np.ceil(VIEWS_PER_EPOCH * epochs)))


class _Prefix:
    """The network up to the cut, in eval mode."""

    def __init__(self, network: Network, cut: str, ctx: RunContext) -> None:
        self.body, self.ctx = network.body, ctx
        self.cut = network.body.net.get_submodule(cut)

    @torch.no_grad()
    def __call__(self, images: Tensor, precision: torch.dtype | None = None) -> Tensor:
        def stop(_: nn.Module, __: object, output: Tensor) -> None:
            raise _Reached(output)

        self.body.eval()
        handle = self.cut.register_forward_hook(stop)
        try:
            with self.ctx.autocast() if precision is None else contextlib.nullcontext():
                self.body(images.to(memory_format=torch.channels_last))
        except _Reached as reached:
            return reached.activations.float()
        finally:
            handle.remove()
        raise NotCached("the network does not pass through its own cut point.")


def _rest(network: Network, stage: Mapping[str, int], frozen: int) -> Network:
    """Copy the network with its frozen modules replaced by ones that hand on what they get."""
    rest = copy.deepcopy(network)
    net = rest.body.net
    for name in [n for n, _ in net.named_modules() if n]:
        parent_name, _, child = name.rpartition(".")
        inside = [s for n, s in stage.items() if f"{n}.".startswith(f"{name}.")]
        if inside and max(inside) <= frozen and _has(net, name):
            setattr(net.get_submodule(parent_name), child, nn.Identity())
    return rest


def _has(net: nn.Module, name: str) -> bool:
    """Whether a module is still there, its parents not yet replaced."""
    return name in dict(net.named_modules())


@torch.no_grad()
def _check_same(network: Network, prefix: _Prefix, rest: Network, images: Tensor) -> None:
    """Refuse networks whose rest, fed with the activations at the cut, computes something else."""
    why = "this network cannot be taken up behind its frozen stages."
    network.eval(), rest.eval()
    try:
        found = rest(prefix(images, torch.float32))
        expected = network(images)
    except (RuntimeError, AttributeError, TypeError, ValueError, AssertionError) as error:
        raise NotCached(why) from error
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise NotCached(why)


def _file(n: int, shape: Sequence[int], ctx: RunContext) -> NDArray[np.float16]:
    """Map a nameless file of `n` rows of half precision, in the cache's folder.

    It is gone from the disk as soon as nobody reads it.
    """
    size = 2 * n * int(np.prod(shape))
    folder = ctx.cache.path.parent
    if ctx.activation_store is not None:
        ctx.activation_store.make_room(size, MOST_BYTES)
        if size > DISK_SHARE * shutil.disk_usage(folder).free:
            ctx.activation_store.make_room(size, 0)
    free = shutil.disk_usage(folder).free
    if size > min(MOST_BYTES, DISK_SHARE * free):
        raise NotCached(
            f"what they make of all images takes {size / 1e9:.1f} GB; at most "
            f"{MOST_BYTES / 1e9:.1f} GB and half of the {free / 1e9:.1f} GB free are used."
        )
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is told now, not by a signal later
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            return np.memmap(file, dtype=np.float16, shape=(n, *shape))
    except OSError as error:
        raise NotCached(f"{folder} cannot hold them: {error}.") from error


def _fill_train(
    rows: NDArray[np.float16],
    prefix: _Prefix,
    crops: Crops,
    backbone: Backbone,
    ctx: RunContext,
) -> None:
    """Run the prefix over every view; each image is read once."""
    n, views = rows.shape[:2]

    def draw(start: int) -> Pixels:
        chosen = range(start, min(start + _IMAGES, n))
        return np.stack([crops.crop(row, row, view) for row in chosen for view in range(views)])

    with ThreadPoolExecutor(ctx.n_workers) as pool:
        starts = list(range(0, n, _IMAGES))
        read_ahead = ctx.n_workers + 1
        waiting = [pool.submit(draw, start) for start in starts[:read_ahead]]
        begun, left_s = time.monotonic(), ctx.seconds_left()
        for number, start in enumerate(starts):
            if number and (time.monotonic() - begun) * len(starts) / number > TIME_SHARE * left_s:
                raise NotCached("there is no time to run them over every image first.")
            pixels = result_of(waiting.pop(0))
            if number + read_ahead < len(starts):
                waiting.append(pool.submit(draw, starts[number + read_ahead]))
            found = _half(prefix(to_input(pixels, backbone, ctx.device)))
            rows[start : start + _IMAGES] = found.reshape(-1, views, *found.shape[1:])
            ctx.on_progress("frozen stages", min(start + _IMAGES, n), n)


def _fill_val(
    rows: NDArray[np.float16],
    prefix: _Prefix,
    dataset: Dataset,
    backbone: Backbone,
    ctx: RunContext,
) -> None:
    done = 0
    for pixels in batches([p.path for p in dataset.val], backbone, ctx.n_workers):
        ctx.check_time()
        rows[done : done + len(pixels)] = _half(prefix(to_input(pixels, backbone, ctx.device)))
        done += len(pixels)


def _half(activations: Tensor) -> NDArray[np.float16]:
    """Round to half precision, refusing what does not fit into it."""
    if not float(activations.abs().max()) < _LARGEST_HALF:
        raise NotCached("their activations are too large for half precision.")
    return activations.half().cpu().numpy()


def make_inputs(
    network: Network,
    stage: Mapping[str, int],
    dataset: Dataset,
    backbone: Backbone,
    recipe: Recipe,
    ctx: RunContext,
) -> Inputs:
    """Run a frozen prefix once and feed on what it made; feed on images where that cannot be.

    The reason why not is told by ``ctx.on_note``.
    """
    try:
        return cached_prefix(network, stage, dataset, backbone, recipe, ctx)
    except NotCached as reason:
        if str(reason):
            ctx.on_note(f"The frozen stages run again for every image: {reason}")
        return ImageInputs(network, dataset, backbone, recipe, ctx)
