"""Multi-view features: pooled activations of several crops of every image, for linear heads.

The features of one view with mean pooling are those of `features`. The advice uses these too.

References
----------
A. Sharif Razavian et al., CNN features off-the-shelf (CNNaug-SVM), CVPR workshops 2014.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from strategies.core.allocator import inference_passes
from strategies.core.cache import Rows, as_stored, space_name
from strategies.core.context import RunContext
from strategies.core.prefetch import TimedIterator, chunks, prefetch
from strategies.data.dataset import LabelledImage
from strategies.data.decoding import Box, Pixels, read_image
from strategies.data.transforms import resize_box
from strategies.kernels.compiled import FeaturePass
from strategies.models.backbone import Backbone
from strategies.models.body import Body, Pooling, pool, widths
from strategies.models.features import INFERENCE_BATCH, pooled_features, to_input

VIEWS = (1, 6)
"""Numbers of views that linear heads may be fitted to. 1: the centre crop. 6: also its horizontal
flip and the four corner crops. `extract_views` takes 2 as well: the first two of these."""
CORNER_SHARE = 0.75
"""Side of a corner crop as a share of the image's short side. The right corners are flipped."""
_FORMAT = 1


@dataclass(frozen=True)
class Views:
    """Pooled activations of several views of some images.

    Attributes
    ----------
    mean, grid
        One array (n, views, width) per depth, with mean and with grid pooling.
    """

    mean: tuple[Rows, ...]
    grid: tuple[Rows, ...]

    def at(self, depths: Iterable[int], pooling: Pooling) -> Rows:
        """Return the concatenated activations of some depths (from 1), (n, views, d)."""
        by_depth = self.mean if pooling == "mean" else self.grid
        return np.concatenate([by_depth[d - 1] for d in depths], axis=2)


def features_at(
    images: Sequence[LabelledImage],
    backbone: Backbone,
    ctx: RunContext,
    depths: Iterable[int],
    pooling: Pooling,
    views: int,
) -> Rows:
    """Return the features of some depths, (n, views, d).

    One view with mean pooling is read from the cache of `features`.
    """
    if views == 1 and pooling == "mean":
        return pooled_features(images, backbone, ctx, tuple(depths))[:, None]
    n, ends = backbone.n_depths, _layout(backbone)
    parts = [d - 1 if pooling == "mean" or d == n else n + d - 1 for d in depths]
    columns = np.concatenate([np.arange(ends[part], ends[part + 1]) for part in parts])
    return _read(images, backbone, ctx, views, columns)


def extract_views(
    images: Sequence[LabelledImage], backbone: Backbone, ctx: RunContext, views: int
) -> Views:
    """Run the frozen backbone over the views of every image that is not in the cache.

    Raises
    ------
    OutOfTime
        If the deadline passes first. Batches computed before it stay in the cache.
    """
    n, ends = backbone.n_depths, _layout(backbone)
    parts = np.split(_read(images, backbone, ctx, views, np.arange(ends[-1])), ends[1:-1], axis=2)
    mean, grid = tuple(parts[:n]), tuple(parts[n:])
    return Views(mean, (*grid, mean[-1]))


def _layout(backbone: Backbone) -> NDArray[np.int64]:
    """Return where the parts of a view's row start and end: all means, then grids but the last."""
    parts = [*widths(backbone.depths, "mean"), *widths(backbone.depths, "grid")[:-1]]
    return np.cumsum([0, *parts])


def _read(
    images: Sequence[LabelledImage],
    backbone: Backbone,
    ctx: RunContext,
    views: int,
    columns: NDArray[np.int64],
) -> Rows:
    """Return columns of the views' rows, (n, views, columns); compute what is not in the cache."""
    space, width = _space(backbone, ctx, views), int(_layout(backbone)[-1])
    digests = [image.digest for image in images]
    every_column = (width * np.arange(views)[:, None] + columns).ravel()
    rows, found = ctx.cache.read_features(space, digests, views * width, every_column)
    places: dict[str, list[int]] = {}
    for place in np.flatnonzero(~found).tolist():
        places.setdefault(digests[place], []).append(place)

    def store(batch: Sequence[LabelledImage], computed: Rows) -> None:
        new_rows = {image.digest: row for image, row in zip(batch, computed, strict=True)}
        ctx.cache.put_features(space, new_rows)
        for digest, row in new_rows.items():
            rows[places[digest]] = row[every_column]

    if places:
        _compute([images[same[0]] for same in places.values()], backbone, ctx, views, store)
    return rows.reshape(len(digests), views, -1)


def _compute(
    images: Sequence[LabelledImage],
    backbone: Backbone,
    ctx: RunContext,
    views: int,
    store: Callable[[Sequence[LabelledImage], Rows], None],
) -> None:
    """Run the network over the views of the images; call `store` with each batch and its rows."""
    with ctx.seeded():
        net = backbone.build().to(ctx.device)
    body = Body(net, tuple(range(1, backbone.n_depths + 1)), backbone.n_depths)
    done, size = 0, max(1, INFERENCE_BATCH // views)

    def read(paths: Sequence[Path]) -> Pixels:
        return np.concatenate([view_pixels(path, backbone, views) for path in paths])

    def forward(pixels: Pixels) -> Tensor:
        ctx.check_time()
        return feature_pass(to_input(pixels, backbone, ctx.device))

    drawn = TimedIterator(prefetch(read, chunks([i.path for i in images], size), ctx.n_workers))
    kind = ["views", backbone.name, backbone.input_px, views]
    with (
        ctx.cache.keep_open(),
        FeaturePass(ViewNetwork(body), kind, len(images), ctx) as feature_pass,
    ):
        for rows in inference_passes(forward, drawn, ctx.device):
            batch = images[done : done + len(rows) // views]
            store(batch, as_stored(rows.numpy().reshape(len(batch), -1)))
            done += len(batch)
            ctx.reporter.on_progress("views", done, len(images))
            feature_pass.after_batch(done, drawn.waited_s)


class ViewNetwork(nn.Module):
    """A body whose output row holds all that is stored of a view (`_layout`)."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> Tensor:
        """Return one row per view, float32 (n, width)."""
        levels, last = self.body.levels_of(images)
        assert last is not None
        mean, grid = ([pool(level, p) for level in levels] for p in get_args(Pooling))
        return torch.cat([part.float() for part in (*mean, last, *grid)], dim=1)


def view_pixels(path: Path, backbone: Backbone, views: int) -> Pixels:
    """Read the views of an image, (views, px, px, 3). The first is the crop used in prediction."""
    image = read_image(path)
    px = backbone.input_px

    def crop(box: Box) -> Pixels:
        return resize_box(image, box, px, backbone.interpolation)

    centre = backbone.evaluation_crop.pixels(image)
    if views < VIEWS[-1]:
        return np.stack([centre, centre[:, ::-1]])[:views]
    width, height = image.width, image.height
    side = CORNER_SHARE * min(width, height)
    corners = [
        crop((0, 0, side, side)),
        crop((width - side, 0, width, side))[:, ::-1],
        crop((0, height - side, side, height)),
        crop((width - side, height - side, width, height))[:, ::-1],
    ]
    return np.stack([centre, centre[:, ::-1], *corners])


def _space(backbone: Backbone, ctx: RunContext, views: int) -> str:
    weights = ctx.seed if backbone.weights == "random" else backbone.digest
    kind = ("views", _FORMAT, views, CORNER_SHARE)
    return space_name([*kind, backbone.name, weights, *backbone.preprocessing, ctx.precision])
