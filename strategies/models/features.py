"""Feature extraction: cached pooled activations of every depth, and BatchNorm input moments."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from strategies.core.cache import Rows, space_name
from strategies.core.context import RunContext
from strategies.core.prefetch import chunks, prefetch
from strategies.data.dataset import LabelledImage
from strategies.data.decoding import Pixels, read_image
from strategies.models.backbone import Backbone, source_classes
from strategies.models.body import Body, source_head

INFERENCE_BATCH = 32
"""Images of one forward pass without gradients."""
CHANNELS_PER_LAYER = 64
GRID = 14
"""Moments of larger maps are taken on a regular grid of about GRID x GRID positions."""
ROUNDING_TOLERANCE, N_ROUNDING_IMAGES = 0.25, 8
"""Largest relative error (Euclidean norm) of the pooled activations of any depth, against float32
on some images, at which a lower precision is used. EfficientNet-Lite has 0.05 to 0.17 in bfloat16.
With 0.09 (steel surfaces) the similarity changes from 0.239 to 0.244 and the linear probe from
99.3% to 99.5%. Larger errors mean that the network overflows or is numerically unstable."""
DEAD_VARIANCE = 1e-4
"""Channels whose running variance is below this share of their layer's median are skipped."""
_FORMAT = 3
_COUNTS, _DEPTHS, _HEAD = "channels measured by layer", "depth of layers", "old head"
_TIME, _ROUNDING = "milliseconds an image", "rounding error"
_NETWORK = (_COUNTS, _DEPTHS, _HEAD, _ROUNDING)
"""Cache rows about the network itself. With them, cached features are read without building it."""

CachedRows = tuple[str, Mapping[str, Rows]]
"""A space of the cache, and rows of it by digest: of images and of the network."""


@dataclass(frozen=True)
class Moments:
    """Moments of the inputs of every BatchNorm layer, standardised by its running statistics.

    With x an activation and (mu, var) the running statistics of its channel,
    z = (x - mu) / sqrt(var). The pretraining data have mean z = 0 and mean z**2 = 1.

    Attributes
    ----------
    mean, square
        Means of z and of z**2 over the positions of every image, shape (n, channels).
    layer
        Index of every channel's BatchNorm layer, shape (channels,).
    layer_share
        Relative position of every layer in the body (0 = input, 1 = output), shape (layers,).
    layer_depth
        First depth whose activations need the layer, counted from 1, shape (layers,).
    """

    mean: Rows
    square: Rows
    layer: NDArray[np.int64]
    layer_share: NDArray[np.float64]
    layer_depth: NDArray[np.int64]


@dataclass(frozen=True)
class SourceHead:
    """Pretrained linear head for the pretraining classes: weight (classes, d), bias (classes,)."""

    weight: Rows
    bias: Rows
    classes: tuple[str, ...]

    def logits(self, penultimate: Rows) -> Rows:
        """Return the logits, (n, classes), for penultimate activations (n, d)."""
        return penultimate @ self.weight.T + self.bias


@dataclass(frozen=True)
class Features:
    """Pooled activations of a frozen backbone for some images, one row per image, in their order.

    Attributes
    ----------
    pooled
        One array (n, channels) per depth of the backbone.
    moments
        None for a network without BatchNorm.
    source_head
        None for a network without a linear head of known classes, or with random weights. Its
        logits are computed from the penultimate activations and not stored.
    ms_per_image
        Milliseconds per image, reading included, of the last timed forward pass.
    """

    pooled: tuple[Rows, ...]
    moments: Moments | None
    source_head: SourceHead | None = None
    ms_per_image: float = 0.0

    def at(self, depths: Iterable[int]) -> Rows:
        """Return the concatenated activations of some depths (counted from 1), (n, d)."""
        return np.concatenate([self.pooled[d - 1] for d in depths], axis=1)


def extract_features(
    images: Sequence[LabelledImage], backbone: Backbone, ctx: RunContext
) -> Features:
    """Run the frozen backbone over every image whose features are not in the cache.

    Parameters
    ----------
    images
        Readable images. Images with equal content are computed once.

    Raises
    ------
    OutOfTime
        If the deadline passes first. Batches computed before it stay in the cache.
    """
    space = _space(backbone, ctx)
    digests = [image.digest for image in images]
    rows = ctx.cache.get(space, [*digests, *_NETWORK, _TIME])
    missing = list({image.digest: image for image in images if image.digest not in rows}.values())
    if _TIME not in rows:
        missing = missing or list(images[:INFERENCE_BATCH])
    if missing or not rows.keys() >= set(_NETWORK):
        body, layout = _prepare(backbone, ctx)
        head = _flat_head(body, backbone)
        network_rows = {_COUNTS: layout.counts, _DEPTHS: layout.depths, _HEAD: head}
        if _ROUNDING not in rows:
            network_rows[_ROUNDING] = _rounding_error(images, body, backbone, ctx)
        ctx.cache.put(space, network_rows)
        timed = len(missing) > INFERENCE_BATCH or _TIME not in rows
        rows |= network_rows
        is_precise = rows[_ROUNDING][0] <= ROUNDING_TOLERANCE
        pass_ctx = ctx if is_precise else replace(ctx, precision=torch.float32)
        rows |= _compute(missing, body, layout, backbone, pass_ctx, space, timed)
    return _assemble(np.stack([rows[d] for d in digests]), backbone, rows)


def not_cached(
    images: Sequence[LabelledImage], backbone: Backbone, ctx: RunContext
) -> tuple[LabelledImage, ...]:
    """Return the images whose features are not in the cache."""
    rows = ctx.cache.get(_space(backbone, ctx), [image.digest for image in images])
    return tuple(image for image in images if image.digest not in rows)


def cached_rows(
    images: Sequence[LabelledImage], backbone: Backbone, ctx: RunContext
) -> CachedRows:
    """Return what the cache holds of the features of some images, to be put into another cache."""
    space = _space(backbone, ctx)
    return space, ctx.cache.get(space, [*(image.digest for image in images), *_NETWORK])


def _space(backbone: Backbone, ctx: RunContext) -> str:
    weights = ctx.seed if backbone.weights == "random" else backbone.digest
    return space_name([_FORMAT, backbone.name, weights, *backbone.preprocessing, ctx.precision])


@dataclass(frozen=True)
class _Layout:
    """BatchNorm channels to measure.

    Attributes
    ----------
    channels
        Module name and channel numbers of every layer.
    depths
        First depth whose activations need the layer, counted from 1, for every layer.
    """

    channels: tuple[tuple[str, Tensor], ...]
    depths: Rows

    @property
    def counts(self) -> Rows:
        """Number of measured channels of every layer."""
        return np.array([len(c) for _, c in self.channels], dtype=np.float32)


def _prepare(backbone: Backbone, ctx: RunContext) -> tuple[Body, _Layout]:
    with ctx.seeded():
        net = backbone.build().to(ctx.device)
    norms = [
        (name, m)
        for name, m in net.named_modules()
        if isinstance(m, nn.BatchNorm2d) and m.running_var is not None
    ]
    body = Body(net, tuple(range(1, backbone.n_depths + 1)), backbone.n_depths)
    return body, _Layout(
        tuple((name, _live_channels(m)) for name, m in norms),
        _depths_of([name for name, _ in norms], net, backbone),
    )


def _depths_of(modules: Sequence[str], net: nn.Module, backbone: Backbone) -> Rows:
    """Return for each module the first depth that needs it: the next cut point after it.

    The order is that of ``named_modules``, so that no forward pass is needed.
    """
    position = {name: i for i, (name, _) in enumerate(net.named_modules())}
    ends = [
        max(i for name, i in position.items() if f"{name}.".startswith(f"{depth.name}."))
        for depth in backbone.depths[:-1]
    ]
    depths = [1 + sum(end < position[name] for end in ends) for name in modules]
    return np.array(depths, dtype=np.float32)


def _flat_head(body: Body, backbone: Backbone) -> Rows:
    """Return the source head's weight and bias in one row, or a single 0 without a head.

    A linear layer that predicts no known classes is none (`capabilities.n_known_classes`).
    """
    head = source_head(body.net, backbone.depths[-1].channels)
    is_classifier = backbone.capabilities.source_classes > 0
    if head is None or not is_classifier or backbone.weights == "random":
        return np.zeros(1, dtype=np.float32)
    bias = torch.zeros(len(head.weight)) if head.bias is None else head.bias
    flat = torch.cat([head.weight.flatten(), bias.to(head.weight.device)])
    return flat.detach().float().cpu().numpy()


def _live_channels(norm: nn.BatchNorm2d) -> Tensor:
    """Choose at most `CHANNELS_PER_LAYER` channels, evenly spaced among the live ones."""
    assert norm.running_var is not None
    variance = norm.running_var
    live = torch.nonzero(variance > DEAD_VARIANCE * variance.median()).flatten()
    count = min(len(live), CHANNELS_PER_LAYER)
    return live[torch.linspace(0, len(live) - 1, count, device=live.device).round().long()]


def _compute(
    images: Sequence[LabelledImage],
    body: Body,
    layout: _Layout,
    backbone: Backbone,
    ctx: RunContext,
    space: str,
    timed: bool,
) -> dict[str, Rows]:
    rows: dict[str, Rows] = {}
    batch_ms: list[float] = []
    done, start = 0, time.perf_counter()
    with torch.inference_mode(), _watch(body.net, layout) as moments, ctx.cache.keep_open():
        for pixels in batches([i.path for i in images], backbone, ctx.n_workers):
            ctx.check_time()
            batch = images[done : done + len(pixels)]
            with ctx.autocast():
                pooled = body.activations(to_input(pixels, backbone, ctx.device))
            measured = (moments[name] for name, _ in layout.channels)
            parts = [*pooled, *(_by_image(found, len(batch)) for found in measured)]
            matrix = torch.cat([p.float() for p in parts], dim=1).cpu().numpy()
            new_rows = {image.digest: row for image, row in zip(batch, matrix, strict=True)}
            batch_ms.append(1000 * (time.perf_counter() - start) / len(batch))
            start = time.perf_counter()
            if timed:  # the first batch is a warm-up, counted only if there is no other
                new_rows[_TIME] = np.array([np.median(batch_ms[1:] or batch_ms)], np.float32)
            ctx.cache.put(space, new_rows)
            rows |= new_rows
            done += len(batch)
            ctx.reporter.on_progress("features", done, len(images))
    return rows


@torch.inference_mode()
def _rounding_error(
    images: Sequence[LabelledImage], body: Body, backbone: Backbone, ctx: RunContext
) -> Rows:
    """Return the largest relative error over the depths in the context's precision, shape (1,).

    Activations of a few images are compared with float32. Infinite if not all are finite.
    """
    if ctx.precision == torch.float32:
        return np.zeros(1, dtype=np.float32)
    (pixels,) = batches([i.path for i in images[:N_ROUNDING_IMAGES]], backbone, ctx.n_workers)
    batch = to_input(pixels, backbone, ctx.device)
    with ctx.autocast():
        rounded = body.activations(batch)
    exact = body.activations(batch)
    errors = [float((r - e).norm() / e.norm()) for r, e in zip(rounded, exact, strict=True)]
    return np.array([max(errors) if np.isfinite(errors).all() else np.inf], dtype=np.float32)


def _by_image(moments: Tensor, n: int) -> Tensor:
    """Return the moments of every image, (n, d), given those of every window, (n * windows, d).

    EfficientViT-M normalises the windows of a map one by one; those of one image follow each
    other.
    """
    return moments if len(moments) == n else moments.reshape(n, -1, moments.shape[1]).mean(1)


@contextlib.contextmanager
def _watch(net: nn.Module, layout: _Layout) -> Iterator[dict[str, Tensor]]:
    """Record [mean z, mean z**2] of the channels of every layer, at every forward pass.

    The yielded dictionary holds one tensor (n, 2 * channels) per layer, by module name.
    """
    moments: dict[str, Tensor] = {}
    handles = []
    for name, channels in layout.channels:
        norm = net.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean = norm.running_mean[channels]
        scale = (norm.running_var[channels] + norm.eps).rsqrt()

        def record(
            _: nn.Module,
            inputs: tuple[Tensor],
            name: str = name,
            channels: Tensor = channels,
            mean: Tensor = mean,
            scale: Tensor = scale,
        ) -> None:
            x = inputs[0]
            stride = max(1, min(x.shape[2:]) // GRID)
            flat = x[:, :, ::stride, ::stride][:, channels].float().flatten(2)
            average = flat.mean(2)
            variance = (flat - average[:, :, None]).square_().mean(2)
            z = (average - mean) * scale
            moments[name] = torch.cat([z, variance * scale**2 + z**2], dim=1)

        handles.append(norm.register_forward_pre_hook(record))
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()


def batches(
    paths: Sequence[Path], backbone: Backbone, n_workers: int, size: int = INFERENCE_BATCH
) -> Iterator[Pixels]:
    """Yield batches of evaluation crops in order, uint8 (n, px, px, 3), prefetched in threads."""

    def read(chunk: Sequence[Path]) -> Pixels:
        return np.stack([eval_pixels(path, backbone) for path in chunk])

    return prefetch(read, chunks(paths, size), n_workers)


def eval_pixels(path: Path, backbone: Backbone) -> Pixels:
    """Read the crop of an image for evaluation, uint8 (px, px, 3)."""
    return backbone.evaluation_crop.pixels(read_image(path))


def to_input(pixels: Pixels, backbone: Backbone, device: torch.device) -> Tensor:
    """Move uint8 pixels (n, h, w, 3) to the device as normalised floats (n, 3, h, w)."""
    images = torch.from_numpy(pixels)
    if device.type == "cuda":  # only copies from pinned memory overlap with computation
        images = images.pin_memory()
    images = images.to(device, non_blocking=True)
    mean = torch.tensor(backbone.mean, device=device).view(1, 3, 1, 1)
    std = torch.tensor(backbone.std, device=device).view(1, 3, 1, 1)
    return images.permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)


def _read_head(flat: Rows, backbone: Backbone) -> SourceHead | None:
    if len(flat) == 1 or not backbone.capabilities.source_classes:
        return None
    n_classes = len(flat) // (backbone.depths[-1].channels + 1)
    weight, bias = np.split(flat, [len(flat) - n_classes])
    return SourceHead(weight.reshape(n_classes, -1), bias, source_classes(backbone, n_classes))


def _assemble(matrix: Rows, backbone: Backbone, network_rows: Mapping[str, Rows]) -> Features:
    head = _read_head(network_rows[_HEAD], backbone)
    ms_per_image = float(network_rows[_TIME][0])
    counts = network_rows[_COUNTS].astype(np.int64)
    widths = [d.channels for d in backbone.depths]
    *pooled, rest = np.split(matrix, np.cumsum(widths), axis=1)
    if not len(counts):
        return Features(tuple(pooled), None, head, ms_per_image)
    columns = np.split(rest, np.cumsum(np.repeat(counts, 2))[:-1], axis=1)
    share = (np.arange(len(counts)) + 0.5) / len(counts)
    layer = np.repeat(np.arange(len(counts)), counts)
    moments = Moments(
        np.concatenate(columns[::2], axis=1),
        np.concatenate(columns[1::2], axis=1),
        layer,
        share,
        network_rows[_DEPTHS].astype(np.int64),
    )
    return Features(tuple(pooled), moments, head, ms_per_image)
