"""Cache of frozen-stage activations: run the frozen stages once, train the rest on their outputs.

The activations of a few random crops of every train image, and of the centre crop of every
validation image, are stored in a file. The file is unnamed, so it disappears however the training
run ends. Training runs that freeze the same stages of the same network and use the same crops
share it (`TrainingResources.activation_store`).
"""

import contextlib
import copy
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from strategies.core.allocator import PartsThatFit
from strategies.core.context import RunContext
from strategies.core.prefetch import chunks, prefetch
from strategies.data.dataset import Dataset
from strategies.data.decoding import Pixels
from strategies.models.backbone import Backbone
from strategies.models.features import batches, to_input
from strategies.models.network import Network
from strategies.training.dataloader import CachedPrefix, Crops, ImageInputs, Inputs
from strategies.training.recipe import Recipe

VIEWS_PER_EPOCH, MAX_VIEWS = 0.3, 16
"""Random crops per train image: as a share of the number of epochs, and at most. With as many
crops as epochs nothing would be saved."""
MOST_BYTES = 8 << 30
"""Maximum size of a file, and of all files of an activation store."""
DISK_SHARE = 0.5
"""Maximum size of the file as a share of the free disk space."""
_BATCH = 8
"""Train images whose crops are one forward pass."""
TIME_SHARE = 0.5
"""Maximum time to fill the file, as a share of the time left. The training steps need the rest."""
_MAX_HALF = 6e4
"""Largest magnitude that is stored; float16 ends at 65,504."""


class NotCached(Exception):
    """Activations are not cached. The message says why; it is empty if caching would not pay."""


class _CutReached(Exception):
    """Stops a forward pass at the cut point, and carries the activations there."""

    def __init__(self, activations: Tensor) -> None:
        super().__init__("cut point reached")
        self.activations = activations


def cached_prefix(
    network: Network,
    stage: Mapping[str, int],
    dataset: Dataset,
    backbone: Backbone,
    recipe: Recipe,
    ctx: RunContext,
) -> CachedPrefix:
    """Compute the activations of the frozen stages, or reuse those of another training run.

    Raises
    ------
    NotCached
        If nothing is frozen, there are too few epochs for caching to pay, the network cannot be
        split at the cut point, or the file would be too large.
    """
    views = _views(dataset, recipe)
    prefix = _Prefix(network, backbone.depths[recipe.frozen_stages - 1].name, ctx)
    crops = Crops(dataset.train, backbone, recipe, ctx.seed)
    images = to_input(crops.batch([(0, 0, 0)]), backbone, ctx.device)
    suffix = _suffix(network, stage, prefix, recipe.frozen_stages, images)
    shape = prefix(images).shape[1:]
    n = len(dataset.train) * views

    def split_rows(rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        return rows[:n].reshape(len(dataset.train), views, *shape), rows[n:]

    def compute(pixels: Pixels) -> Tensor:
        return _half(prefix(to_input(pixels, backbone, ctx.device)))

    def fill() -> NDArray[Any]:
        rows = _file(n + len(dataset.val), shape, ctx)
        train, val = split_rows(rows)
        _fill_train(train, compute, crops, ctx)
        _fill_val(val, compute, dataset, backbone, ctx)
        return rows

    store = ctx.training.activation_store
    if store is None:
        rows = fill()
    else:
        rows = store.get(_key(network, stage, dataset, backbone, recipe, views, ctx), fill)
    return CachedPrefix(suffix, *split_rows(rows), recipe, ctx)


def _key(
    network: Network,
    stage: Mapping[str, int],
    dataset: Dataset,
    backbone: Backbone,
    recipe: Recipe,
    views: int,
    ctx: RunContext,
) -> Hashable:
    """Return the key of the activations: frozen weights, images, crops, device and precision."""
    weights = hashlib.sha256()
    for name, value in network.body.net.state_dict().items():
        if stage.get(name.rpartition(".")[0], 0) <= recipe.frozen_stages:
            weights.update(f"{name}\n".encode())
            weights.update(value.cpu().numpy().tobytes())
    images = tuple(tuple(p.path for p in split) for split in (dataset.train, dataset.val))
    crops = (backbone, views, recipe.min_area, recipe.hflip, ctx.seed)
    return recipe.frozen_stages, weights.digest(), images, crops, ctx.device, ctx.precision


def _views(dataset: Dataset, recipe: Recipe) -> int:
    """Return the number of crops per train image."""
    epochs = recipe.steps * recipe.batch_size / len(dataset.train)
    if not recipe.frozen_stages or epochs <= 1:
        raise NotCached
    if recipe.mixes:
        raise NotCached("mixup and cutmix need images, not activations.")
    return min(MAX_VIEWS, int(np.ceil(VIEWS_PER_EPOCH * epochs)))


class _Prefix:
    """The network up to and including the cut point, in eval mode."""

    def __init__(self, network: Network, cut: str, ctx: RunContext) -> None:
        self.body, self.ctx, self.name = network.body, ctx, cut
        self.cut = network.body.net.get_submodule(cut)

    @torch.no_grad()
    def __call__(self, images: Tensor, precision: torch.dtype | None = None) -> Tensor:
        def stop(_: nn.Module, __: object, output: Tensor) -> None:
            raise _CutReached(output)

        self.body.eval()
        autocast = self.ctx.autocast() if precision is None else contextlib.nullcontext()
        try:
            with self.cut.register_forward_hook(stop), autocast:
                self.body(images.to(memory_format=torch.channels_last))
        except _CutReached as reached:
            return reached.activations.float()
        raise NotCached("the forward pass does not reach the cut point.")


def _suffix(
    network: Network, stage: Mapping[str, int], prefix: _Prefix, frozen: int, images: Tensor
) -> Network:
    """Return a copy of the network that computes its scores from the activations at the cut.

    In most networks the forward pass itself does, once the frozen modules are identities. A plain
    transformer adds its class token and position embeddings between them. There, the modules
    after the cut are called one after the other (`_Sequence`).

    Raises
    ------
    NotCached
        If neither computes what the network does.
    """
    suffix = _without_frozen_modules(network, stage, frozen)
    if not _is_split(network, prefix, suffix, images):
        net: Any = suffix.body.net  # timm's networks share no type
        calls = _calls_after(network, prefix.name, torch.zeros_like(images))
        net.forward_features = _Sequence([(net.get_submodule(n), a, k) for n, a, k in calls])
        if not _is_split(network, prefix, suffix, images):
            raise NotCached("this network cannot be split after its frozen stages.")
    return suffix


@dataclass(frozen=True)
class _Sequence:
    """Modules that are called one after the other, with further arguments that never change."""

    calls: Sequence[tuple[nn.Module, Sequence[Any], Mapping[str, Any]]]

    def __call__(self, activations: Tensor) -> Tensor:
        for module, args, kwargs in self.calls:
            activations = module(activations, *args, **kwargs)
        return activations


@torch.no_grad()
def _calls_after(
    network: Network, cut: str, images: Tensor
) -> list[tuple[str, Sequence[Any], Mapping[str, Any]]]:
    """Return what the feature extraction calls after a module: names and further arguments.

    These are the later members of the sequences that hold the module, at all levels.
    """
    net: Any = network.body.net
    parts = cut.split(".")
    around = [".".join(parts[:end]) for end in range(len(parts) + 1)]
    found: list[tuple[str, Sequence[Any], Mapping[str, Any]]] = []
    reached: list[bool] = []

    def recorder(name: str) -> Any:
        def record(_: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
            if reached:
                found.append((name, args[1:], kwargs))

        return record

    with contextlib.ExitStack() as stack:
        cut_module = net.get_submodule(cut)
        stack.enter_context(cut_module.register_forward_hook(lambda *_: reached.append(True)))
        for parent in around[:-1]:
            for child, module in net.get_submodule(parent).named_children():
                name = f"{parent}.{child}" if parent else child
                if name not in around:
                    hook = module.register_forward_pre_hook(recorder(name), with_kwargs=True)
                    stack.enter_context(hook)
        net.eval().forward_features(images)
    return found


def _without_frozen_modules(network: Network, stage: Mapping[str, int], frozen: int) -> Network:
    """Return a copy of the network with its frozen modules replaced by identities."""
    suffix = copy.deepcopy(network)
    net = suffix.body.net
    for name in [n for n, _ in net.named_modules() if n]:
        parent_name, _, child = name.rpartition(".")
        inside = [s for n, s in stage.items() if f"{n}.".startswith(f"{name}.")]
        # A parent of it may have been replaced already.
        if inside and max(inside) <= frozen and name in dict(net.named_modules()):
            setattr(net.get_submodule(parent_name), child, nn.Identity())
    return suffix


@torch.no_grad()
def _is_split(network: Network, prefix: _Prefix, suffix: Network, images: Tensor) -> bool:
    """Return whether prefix and suffix together compute what the network does."""
    network.eval(), suffix.eval()
    try:
        found = suffix(prefix(images, torch.float32))
        expected = network(images)
    except (RuntimeError, AttributeError, TypeError, ValueError, AssertionError):
        return False  # its forward pass needs what the prefix computes
    return torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def _file(n: int, shape: Sequence[int], ctx: RunContext) -> NDArray[np.float16]:
    """Map an unnamed file of `n` rows of half precision, in the cache folder.

    It disappears from the disk once nothing reads it any more.
    """
    size = 2 * n * int(np.prod(shape))
    folder = ctx.cache.path.parent
    store = ctx.training.activation_store
    if store is not None:
        store.evict(size, MOST_BYTES)
        if size > DISK_SHARE * shutil.disk_usage(folder).free:
            store.evict(size, 0)
    free = shutil.disk_usage(folder).free
    if size > min(MOST_BYTES, DISK_SHARE * free):
        raise NotCached(
            f"their activations for all images take {size / 1e9:.1f} GB; at most "
            f"{MOST_BYTES / 1e9:.1f} GB and half of the {free / 1e9:.1f} GB free are used."
        )
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk fails here, not by a signal later
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            return np.memmap(file, dtype=np.float16, shape=(n, *shape))
    except OSError as error:
        raise NotCached(f"their activations cannot be stored in {folder}: {error}.") from error


def _fill_train(
    rows: NDArray[np.float16],
    compute: Callable[[Pixels], Tensor],
    crops: Crops,
    ctx: RunContext,
) -> None:
    """Compute the activations of all views of all train images. Each image is read once."""
    n, views = rows.shape[:2]

    def draw(images: Sequence[int]) -> Pixels:
        return crops.batch((row, row, view) for row in images for view in range(views))

    parts = PartsThatFit(ctx.device)
    start_s, left_s, done = time.monotonic(), ctx.seconds_left(), 0
    with contextlib.closing(prefetch(draw, chunks(range(n), _BATCH), ctx.n_workers)) as drawn:
        for pixels in drawn:
            values = parts(compute, pixels).numpy()
            values = values.reshape(-1, views, *values.shape[1:])
            rows[done : done + len(values)] = values
            done += len(values)
            ctx.reporter.on_progress("frozen stages", done, n)
            used_s = time.monotonic() - start_s
            if done < n and used_s * n / done > TIME_SHARE * left_s:
                raise NotCached("there is no time to compute their activations for all images.")


def _fill_val(
    rows: NDArray[np.float16],
    compute: Callable[[Pixels], Tensor],
    dataset: Dataset,
    backbone: Backbone,
    ctx: RunContext,
) -> None:
    """Compute the activations of all validation images."""
    parts, done, store = PartsThatFit(ctx.device), 0, ctx.training.activation_store
    crops, paths = store.eval_crops if store else None, [p.path for p in dataset.val]
    for pixels in batches(paths, backbone, ctx.n_workers, eval_crops=crops):
        ctx.check_time()
        rows[done : done + len(pixels)] = parts(compute, pixels).numpy()
        done += len(pixels)


def _half(activations: Tensor) -> Tensor:
    """Convert to half precision on the CPU; raise NotCached if a value does not fit."""
    if not float(activations.abs().max()) < _MAX_HALF:
        raise NotCached("their activations exceed the range of half precision.")
    return activations.half().cpu()


def make_inputs(
    network: Network,
    stage: Mapping[str, int],
    dataset: Dataset,
    backbone: Backbone,
    recipe: Recipe,
    ctx: RunContext,
) -> Inputs:
    """Return cached activations of the frozen stages, or images where they cannot be cached.

    The reason for not caching is reported to ``ctx.reporter.on_note``.
    """
    try:
        return cached_prefix(network, stage, dataset, backbone, recipe, ctx)
    except NotCached as reason:
        if str(reason):
            ctx.reporter.on_note(f"The frozen stages run in every training step: {reason}")
        return ImageInputs(network, dataset, backbone, recipe, ctx)
