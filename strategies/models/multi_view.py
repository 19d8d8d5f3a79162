"""Several views of every image, pooled in several ways: what linear heads may learn from.

The plain features (one view, means) are those of `features`, which the advice rests on too.

References
----------
A. Sharif Razavian et al., CNN features off-the-shelf (CNNaug-SVM), CVPR workshops 2014.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from strategies.core.cache import Rows, space_name
from strategies.core.context import RunContext
from strategies.data.dataset import LabelledImage
from strategies.data.decoding import Box, Pixels, read_image
from strategies.data.transforms import centre_box, resize_box
from strategies.models.backbone import Backbone
from strategies.models.body import Body, Pooling, pool, widths
from strategies.models.features import BATCH, extract_features, read_ahead, to_input

VIEWS = (1, 6)
"""Numbers of views that linear heads learn from: the centre crop; its mirror image and the four
corners too. With 2 there are the first two of them."""
CORNER = 0.75
"""Side of a corner's square as a share of the image's short side; two corners are mirrored."""
_FORMAT = 1


@dataclass(frozen=True)
class Views:
    """Pooled activations of the views of some images.

    Attributes
    ----------
    mean, grid
        One array (n, views, width) for every depth, by pooling.
    """

    mean: tuple[Rows, ...]
    grid: tuple[Rows, ...]

    def at(self, depths: Iterable[int], pooling: Pooling) -> Rows:
        """Return the activations of some depths (counted from 1) side by side, (n, views, d)."""
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
    """Return activations, (n, views, d), from the plain features where these suffice."""
    if views == 1 and pooling == "mean":
        return extract_features(images, backbone, ctx).at(depths)[:, None]
    return extract_views(images, backbone, ctx, views).at(depths, pooling)


def extract_views(
    images: Sequence[LabelledImage], backbone: Backbone, ctx: RunContext, views: int
) -> Views:
    """Run the frozen network over every view that the cache does not hold.

    Raises
    ------
    OutOfTime
        If the deadline passes first; what was computed until then stays in the cache.
    """
    space = _space(backbone, ctx, views)
    digests = [p.digest for p in images]
    rows = ctx.cache.get(space, digests)
    missing = list({p.digest: p for p in images if p.digest not in rows}.values())
    if missing:
        rows |= _compute(missing, backbone, ctx, space, views)
    table = np.stack([rows[d] for d in digests]).reshape(len(digests), views, -1)
    channels = [d.channels for d in backbone.depths]
    both = [*widths(channels, "mean"), *widths(channels, "grid")[:-1]]
    parts = np.split(table, np.cumsum(both)[:-1], axis=2)
    mean, grid = tuple(parts[: len(channels)]), tuple(parts[len(channels) :])
    return Views(mean, (*grid, mean[-1]))


def _compute(
    images: Sequence[LabelledImage], backbone: Backbone, ctx: RunContext, space: str, views: int
) -> dict[str, Rows]:
    with ctx.seeded():
        net = backbone.build().to(ctx.device)
    body = Body(net, tuple(range(1, backbone.n_depths + 1)), backbone.n_depths)
    found: dict[str, Rows] = {}
    size = max(1, BATCH // views)

    def read(paths: Sequence[Path]) -> Pixels:
        return np.concatenate([view_pixels(path, backbone, views) for path in paths])

    with torch.inference_mode(), ctx.cache.kept_open():
        for pixels in read_ahead([p.path for p in images], read, ctx.n_workers, size):
            ctx.check_time()
            batch = images[len(found) : len(found) + size]
            with ctx.autocast():
                maps, last = body.maps(to_input(pixels, backbone, ctx.device))
                assert last is not None
                parts = [pool(m, "mean") for m in maps] + [last] + [pool(m, "grid") for m in maps]
            matrix = torch.cat([p.float() for p in parts], dim=1).cpu().numpy()
            by_image = matrix.reshape(len(batch), -1)
            fresh = {p.digest: row for p, row in zip(batch, by_image, strict=True)}
            ctx.cache.put(space, fresh)
            found |= fresh
            ctx.on_progress("views", len(found), len(images))
    return found


def view_pixels(path: Path, backbone: Backbone, views: int) -> Pixels:
    """Read an image's views, (views, px, px, 3); the first is what prediction sees."""
    image = read_image(path)
    px = backbone.input_px

    def cut(box: Box) -> Pixels:
        return resize_box(image, box, px, backbone.interpolation)

    centre = cut(centre_box(image.width, image.height, px, backbone.crop_pct))
    if views < VIEWS[-1]:
        return np.stack([centre, centre[:, ::-1]])[:views]
    right, low = image.width, image.height
    side = CORNER * min(right, low)
    corners = [
        cut((0, 0, side, side)),
        cut((right - side, 0, right, side))[:, ::-1],
        cut((0, low - side, side, low)),
        cut((right - side, low - side, right, low))[:, ::-1],
    ]
    return np.stack([centre, centre[:, ::-1], *corners])


def _space(backbone: Backbone, ctx: RunContext, views: int) -> str:
    weights = ctx.seed if backbone.weights == "random" else backbone.digest
    how = (backbone.input_px, backbone.interpolation, backbone.crop_pct, backbone.mean)
    where = ("views", _FORMAT, views, CORNER)
    return space_name([*where, backbone.name, weights, *how, backbone.std, ctx.precision])
