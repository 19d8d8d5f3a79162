"""Feature extraction: cached pooled activations of every depth, and BatchNorm input moments."""

import logging
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strategies.core.activation_store import EvalCrops
from strategies.core.allocator import PartsThatFit, inference_passes
from strategies.core.cache import Rows, as_stored, space_name
from strategies.core.context import RunContext
from strategies.core.devices import copy_to, device_name
from strategies.core.prefetch import TimedIterator, chunks, prefetch
from strategies.data.dataset import LabelledImage
from strategies.data.decoding import ImageSource, Pixels, read_image
from strategies.kernels.compiled import FeaturePass
from strategies.models.backbone import Backbone, source_classes
from strategies.models.body import Body, source_head
from strategies.models.moments import FeatureNetwork, Layout, Moments, layout_of, watch

logger = logging.getLogger(__name__)

INFERENCE_BATCH = 32
"""Images that are read together, and pass a CPU together, without gradients."""
ROUNDING_TOLERANCE, N_ROUNDING_IMAGES = 0.25, 8
"""Largest relative error (Euclidean norm) of the pooled activations of any depth, against float32
on some images, at which a lower precision is used. EfficientNet-Lite has 0.05 to 0.17 in bfloat16.
With 0.09 (steel surfaces) the similarity changes from 0.239 to 0.244 and the linear probe from
99.3% to 99.5%. Larger errors mean that the network overflows or is numerically unstable."""
_FORMAT = 3
_COUNTS, _DEPTHS, _HEAD = "channels measured by layer", "depth of layers", "old head"
_TIME, _ROUNDING = "milliseconds an image", "rounding error"
_NETWORK = (_COUNTS, _DEPTHS, _HEAD, _ROUNDING)
"""Cache rows about the network itself. With them, cached features are read without building it."""

CachedRows = tuple[str, Mapping[str, bytes]]
"""A space of the cache, and rows of it as they are stored, by digest: of images and network."""


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
    matrix, facts = _read(images, backbone, ctx)
    return _assemble(matrix, backbone, facts)


def pooled_features(
    images: Sequence[LabelledImage], backbone: Backbone, ctx: RunContext, depths: Sequence[int]
) -> Rows:
    """Return the concatenated activations of some depths (counted from 1), (n, d).

    As ``extract_features(...).at(depths)``, but nothing else is held in memory.

    Raises
    ------
    OutOfTime
        If the deadline passes first. Batches computed before it stay in the cache.
    """
    ends = np.cumsum([0, *(d.channels for d in backbone.depths)])
    columns = np.concatenate([np.arange(ends[d - 1], ends[d]) for d in depths])
    return _read(images, backbone, ctx, columns)[0]


def time_features(images: Sequence[LabelledImage], backbone: Backbone, ctx: RunContext) -> float:
    """Run the frozen backbone over the images, cached or not; return milliseconds per image.

    The time in the cache is replaced by it. That one may be of a day when the machine was busy.

    Raises
    ------
    OutOfTime
        If the deadline passes first.
    """
    _, facts = _read(images, backbone, ctx, slice(0), recompute=True)
    return float(facts[_TIME][0])


def not_cached(
    images: Sequence[LabelledImage], backbone: Backbone, ctx: RunContext
) -> tuple[LabelledImage, ...]:
    """Return the images whose features are not in the cache."""
    missing = ctx.cache.missing(_space(backbone, ctx), [image.digest for image in images])
    return tuple(image for image in images if image.digest in missing)


def _read(
    images: Sequence[LabelledImage],
    backbone: Backbone,
    ctx: RunContext,
    columns: slice | NDArray[np.int64] = slice(None),
    *,
    recompute: bool = False,
) -> tuple[Rows, Mapping[str, Rows]]:
    """Return columns of the images' rows, (n, columns), and the rows about the network.

    What is not in the cache is computed, and added to it.

    Parameters
    ----------
    recompute
        Whether to compute all images, whatever the cache holds of them.
    """
    space, prepared = _space(backbone, ctx), None
    digests = [image.digest for image in images]
    time_key = _time_key(ctx)
    facts = ctx.cache.get(space, [*_NETWORK, time_key])
    if not facts.keys() >= set(_NETWORK):
        prepared = body, layout = _prepare(backbone, ctx)
        head = _flat_head(body, backbone)
        network_rows = {_COUNTS: layout.counts, _DEPTHS: layout.depths, _HEAD: head}
        if _ROUNDING not in facts:
            network_rows[_ROUNDING] = _rounding_error(images, body, backbone, ctx)
        ctx.cache.put(space, network_rows)
        facts |= network_rows
    width = sum(d.channels for d in backbone.depths) + 2 * int(facts[_COUNTS].sum())
    matrix, found = ctx.cache.read_features(space, digests, width, columns)
    places: dict[str, list[int]] = {}
    for place in np.flatnonzero(~found | recompute).tolist():
        places.setdefault(digests[place], []).append(place)
    missing = [images[rows[0]] for rows in places.values()]
    logger.info(
        "features of %d images by %s at %d px: %d images to compute, the others are cached",
        *(len(images), backbone.name, backbone.input_px, len(missing)),
    )
    if time_key not in facts:
        missing = missing or list(images[:INFERENCE_BATCH])
    if missing:
        body, layout = prepared or _prepare(backbone, ctx)
        is_precise = facts[_ROUNDING][0] <= ROUNDING_TOLERANCE
        pass_ctx = ctx if is_precise else replace(ctx, precision=torch.float32)

        timed = recompute or len(missing) > INFERENCE_BATCH or time_key not in facts

        def store(batch: Sequence[LabelledImage], rows: Rows, ms_per_image: float) -> None:
            ctx.cache.put_features(space, {p.digest: r for p, r in zip(batch, rows, strict=True)})
            for image, row in zip(batch, rows, strict=True):
                matrix[places.get(image.digest, [])] = row[columns]
            if timed:
                facts[time_key] = np.array([ms_per_image], dtype=np.float32)
                ctx.cache.put(space, {time_key: facts[time_key]})

        _compute(missing, body, layout, backbone, pass_ctx, store)
    return matrix, {**facts, _TIME: facts[time_key]}


def _time_key(ctx: RunContext) -> str:
    """Return the key of the time per image on this device; for a CPU it is `_TIME`."""
    return _TIME if ctx.device.type == "cpu" else f"{_TIME}, {device_name(ctx.device)}"


def cached_rows(
    images: Sequence[LabelledImage], backbone: Backbone, ctx: RunContext
) -> CachedRows:
    """Return what the cache holds of the features of some images, to be put into another cache."""
    space = _space(backbone, ctx)
    return space, ctx.cache.get_bytes(space, [*(image.digest for image in images), *_NETWORK])


def _space(backbone: Backbone, ctx: RunContext) -> str:
    weights = ctx.seed if backbone.weights == "random" else backbone.digest
    return space_name([_FORMAT, backbone.name, weights, *backbone.preprocessing, ctx.precision])


def _prepare(backbone: Backbone, ctx: RunContext) -> tuple[Body, Layout]:
    with ctx.seeded():
        net = backbone.build().to(ctx.device)
    body = Body(net, tuple(range(1, backbone.n_depths + 1)), backbone.n_depths)
    return body, layout_of(net, backbone)


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


def _compute(
    images: Sequence[LabelledImage],
    body: Body,
    layout: Layout,
    backbone: Backbone,
    ctx: RunContext,
    store: Callable[[Sequence[LabelledImage], Rows, float], None],
) -> None:
    """Run the network over the images.

    Parameters
    ----------
    store
        Called with every batch, its rows, and the median of the milliseconds per image so far.
        The first batch is a warm-up, counted only if there is no other. Batches of more than
        `INFERENCE_BATCH` images do not count.
    """
    batch_ms: list[float] = []
    done, start = 0, time.perf_counter()
    chunks = TimedIterator(batches([i.path for i in images], backbone, ctx.n_workers))
    kind = ["features", backbone.name, backbone.input_px]
    with watch(body.net, layout) as moments, ctx.cache.keep_open():
        network = FeatureNetwork(body, layout, moments)
        with FeaturePass(network, kind, len(images), ctx) as feature_pass:

            def forward(pixels: Pixels) -> Tensor:
                ctx.check_time()
                return feature_pass(to_input(pixels, backbone, ctx.device))

            for computed in inference_passes(forward, chunks, ctx.device):
                batch, rows = images[done : done + len(computed)], as_stored(computed.numpy())
                if len(batch) <= INFERENCE_BATCH:
                    batch_ms.append(1000 * (time.perf_counter() - start) / len(batch))
                start = time.perf_counter()
                store(batch, rows, float(np.median(batch_ms[1:] or batch_ms)))
                done += len(batch)
                ctx.reporter.on_progress("features", done, len(images))
                feature_pass.after_batch(done, chunks.waited_s)


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

    def both(part: Pixels) -> Tensor:
        """Return the activations of all depths, rounded and exact, (n, 2 * d)."""
        batch = to_input(part, backbone, ctx.device)
        with ctx.autocast():
            rounded = body.activations(batch)
        return torch.cat([x.float() for x in (*rounded, *body.activations(batch))], dim=1)

    found = PartsThatFit(ctx.device)(both, pixels)
    columns = torch.split(found, 2 * [d.channels for d in backbone.depths], dim=1)
    by_depth = [x.contiguous() for x in columns]
    pairs = zip(by_depth[: backbone.n_depths], by_depth[backbone.n_depths :], strict=True)
    errors = [float((r - e).norm() / e.norm()) for r, e in pairs]
    return np.array([max(errors) if np.isfinite(errors).all() else np.inf], dtype=np.float32)


def batches(
    images: Sequence[ImageSource],
    backbone: Backbone,
    n_workers: int,
    size: int = INFERENCE_BATCH,
    eval_crops: EvalCrops | None = None,
) -> Generator[Pixels]:
    """Yield batches of evaluation crops in order, uint8 (n, px, px, 3), prefetched in threads.

    Parameters
    ----------
    images
        Paths, or images in memory: see `read_image`.
    eval_crops
        Crops of files in memory, which are not read again; None keeps none.
    """
    kind = backbone.evaluation_crop

    def crop(image: ImageSource) -> Pixels:
        return eval_pixels(image, backbone)

    def kept_crop(image: ImageSource) -> Pixels:
        if eval_crops is None or not isinstance(image, Path):
            return crop(image)
        return eval_crops.get(kind, image, crop)

    def read(chunk: Sequence[ImageSource]) -> Pixels:
        return np.stack([kept_crop(image) for image in chunk])

    return prefetch(read, chunks(images, size), n_workers)


def eval_pixels(image: ImageSource, backbone: Backbone) -> Pixels:
    """Read the crop of an image for evaluation, uint8 (px, px, 3)."""
    return backbone.evaluation_crop.pixels(read_image(image))


def to_input(pixels: Pixels, backbone: Backbone, device: torch.device) -> Tensor:
    """Move uint8 pixels (n, h, w, 3) to the device as normalised floats (n, 3, h, w)."""
    return normalised(copy_to(torch.from_numpy(pixels), device), backbone)


def normalised(images: Tensor, backbone: Backbone) -> Tensor:
    """Return uint8 images (n, h, w, 3) as normalised floats (n, 3, h, w), on the same device."""
    mean, std = (
        copy_to(torch.tensor(values), images.device).view(1, 3, 1, 1)
        for values in (backbone.mean, backbone.std)
    )
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
    layer = np.repeat(np.arange(len(counts)), counts)
    moments = Moments(
        np.concatenate(columns[::2], axis=1),
        np.concatenate(columns[1::2], axis=1),
        layer,
        network_rows[_DEPTHS].astype(np.int64),
    )
    return Features(tuple(pooled), moments, head, ms_per_image)
