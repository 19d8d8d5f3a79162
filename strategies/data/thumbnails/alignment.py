"""Alignment of thumbnails, to tell whether one is a part of the other, turned a little.

The Gauss-Newton method improves a first guess of shift, scale and rotation until the correlation
is greatest. Then the fine detail is compared. Two photographs of the same thing agree in their
coarse structure, but hardly in their detail; parts of one photograph agree in both.

References
----------
G. Evangelidis, E. Psarakis, Parametric image alignment using enhanced correlation coefficient
maximization, IEEE TPAMI 30 (2008). The update is that of S. Baker, I. Matthews, Lucas-Kanade 20
years on, IJCV 56 (2004): the derivatives of the template are computed once.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from strategies.data.image import THUMB_PX
from strategies.data.thumbnails.vectors import Floats, Vectors, minus_blur, unit

STEPS = 4
DETAIL_PX = 24
"""Side of the aligned thumbnails of which the detail is compared. At `THUMB_PX`, a crop's detail
is finer than that of the image it was cut from, whose thumbnail shows the same part with fewer
pixels."""
MARGIN_PX = 2
"""Pixels along each side that are not compared: a rotated copy has other corners."""
_ALIGNED_MARGIN_PX, _BLUR_PX = 3, 2
_MAX_STEP = 0.1
_SCALES, _MAX_TURN = (0.6, 1.1), 0.12


class Placement(NamedTuple):
    """Where thumbnails lie in others, (n,) each.

    Lengths are shares of half the height of the image that the thumbnail lies in.

    Attributes
    ----------
    y, x
        Centre of the thumbnail, from the centre of the image.
    log_scale
        Logarithm of the thumbnail's height as a share of the image's.
    turn
        Angle in radians.
    """

    y: Vectors
    x: Vectors
    log_scale: Vectors
    turn: Vectors


def aligned_similarity(
    thumbs: Vectors, others: Vectors, aspects: Vectors, other_aspects: Vectors, guess: Placement
) -> tuple[Vectors, Vectors]:
    """Align thumbnails with others; return the correlations of their details, (n,) each.

    Parameters
    ----------
    thumbs, others
        Grey thumbnails, (n, `THUMB_PX`, `THUMB_PX`); a thumb may show a part of the other.
    aspects, other_aspects
        Width divided by height of the images.
    guess
        About where the thumbs lie in the others.

    Returns
    -------
    coarse, fine
        Correlations of the details at `DETAIL_PX` and at `THUMB_PX` pixels. The first one tells
        whether both show the same photograph. The second one is comparable to that of copies.
    """
    placement = _align(thumbs, others, aspects, other_aspects, guess)
    grid = _Grid.of(aspects, slice(0, THUMB_PX))
    shown = _sample(others, grid, other_aspects, placement).reshape(thumbs.shape)
    area = area_average(0, THUMB_PX, DETAIL_PX)
    coarse = _detail_correlation(area @ thumbs @ area.T, area @ shown @ area.T)
    return coarse, _detail_correlation(thumbs, shown)


def area_average(start: float, length: float, n: int) -> Vectors:
    """Return the matrix (n, `THUMB_PX`) that averages a part of a row of pixels to n pixels."""
    edges = start + length * np.arange(n + 1) / n
    pixels = np.arange(THUMB_PX)
    low = np.maximum(edges[:-1, None], pixels)
    high = np.minimum(edges[1:, None], pixels + 1)
    covered = np.clip(high - low, 0, None)
    return np.asarray(covered / covered.sum(axis=1, keepdims=True), dtype=np.float32)


def _detail_correlation(one: Floats, other: Floats) -> Vectors:
    inner = slice(MARGIN_PX, -MARGIN_PX)
    vectors = [unit(minus_blur(images)[:, inner, inner]) for images in (one, other)]
    return np.asarray(np.einsum("ij,ij->i", *vectors), dtype=np.float32)


class _Grid(NamedTuple):
    """Positions of a thumbnail's pixels in units of half its height, (n, pixels) each."""

    y: Floats
    x: Floats

    @classmethod
    def of(cls, aspects: Vectors, inner: slice) -> "_Grid":
        centres = ((np.arange(THUMB_PX, dtype=np.float32) + 0.5) * 2 / THUMB_PX - 1)[inner]
        y, x = np.meshgrid(centres, centres, indexing="ij")
        return cls(y.reshape(1, -1), x.reshape(1, -1) * aspects[:, None])


def _sample(images: Vectors, grid: _Grid, aspects: Vectors, placement: Placement) -> Vectors:
    """Return the values of images at placed grids (bilinear), (n, pixels)."""
    y0, x0, log_scale, turn = (values[:, None] for values in placement)
    along, across = np.exp(log_scale) * np.cos(turn), np.exp(log_scale) * np.sin(turn)
    y = along * grid.y + across * grid.x + y0
    x = (along * grid.x - across * grid.y + x0) / aspects[:, None]
    return _bilinear(images, (y + 1) * (THUMB_PX / 2) - 0.5, (x + 1) * (THUMB_PX / 2) - 0.5)


def _bilinear(images: Vectors, y: Floats, x: Floats) -> Vectors:
    """Interpolate images (n, px, px) at positions (n, m) in pixels; outside, repeat the edge."""
    px = images.shape[1]
    y, x = np.clip(y, 0, px - 1), np.clip(x, 0, px - 1)
    top = np.minimum(y.astype(np.intp), px - 2)
    left = np.minimum(x.astype(np.intp), px - 2)
    down, right = (y - top).astype(np.float32), (x - left).astype(np.float32)
    flat = images.reshape(-1)
    corner = (np.arange(len(images))[:, None] * px + top) * px + left
    values = [flat.take(corner + step) for step in (0, 1, px, px + 1)]
    upper = values[0] + (values[1] - values[0]) * right
    lower = values[2] + (values[3] - values[2]) * right
    return np.asarray(upper + (lower - upper) * down, dtype=np.float32)


def _align(
    thumbs: Vectors, others: Vectors, aspects: Vectors, other_aspects: Vectors, guess: Placement
) -> Placement:
    """Return the placements of greatest correlation near a guess."""
    inner = slice(_ALIGNED_MARGIN_PX, THUMB_PX - _ALIGNED_MARGIN_PX)
    grid = _Grid.of(aspects, inner)
    template, derivatives = _template(minus_blur(thumbs, _BLUR_PX), grid, aspects, inner)
    images = minus_blur(others, _BLUR_PX)
    normal = derivatives @ derivatives.transpose(0, 2, 1) + 1e-3 * np.eye(4, dtype=np.float32)
    inverse = np.linalg.inv(normal)
    now = np.stack(guess, axis=1)
    best, best_score = now.copy(), np.full(len(now), -2, dtype=np.float32)
    for step in range(STEPS + 1):
        shown = unit(_sample(images, grid, other_aspects, Placement(*now.T)))
        score = np.einsum("ij,ij->i", shown, template)
        better = score > best_score
        best[better], best_score[better] = now[better], score[better]
        if step < STEPS:
            change = inverse @ (derivatives @ (shown - template)[:, :, None])
            now = _moved(now, np.clip(change[:, :, 0], -_MAX_STEP, _MAX_STEP))
    return Placement(*best.T)


def _template(
    images: Vectors, grid: _Grid, aspects: Vectors, inner: slice
) -> tuple[Vectors, Vectors]:
    """Return unit vectors (n, pixels), and their derivatives by the placement, (n, 4, pixels)."""
    n = len(images)
    by_y, by_x = (
        np.gradient(images, axis=axis)[:, inner, inner].reshape(n, -1) for axis in (1, 2)
    )
    by_y, by_x = by_y * (THUMB_PX / 2), by_x * (THUMB_PX / 2) / aspects[:, None]
    flat = images[:, inner, inner].reshape(n, -1)
    template = unit(flat)
    derivatives = np.stack(
        [by_y, by_x, by_y * grid.y + by_x * grid.x, by_y * grid.x - by_x * grid.y], axis=1
    )
    # Those of the unit vector: mean and length do not change with the placement.
    length = np.maximum(flat.std(axis=1) * np.sqrt(flat.shape[1]), 1e-3)
    derivatives /= length[:, None, None]
    derivatives -= derivatives.mean(axis=2, keepdims=True)
    along = derivatives @ template[:, :, None]
    return template, np.asarray(derivatives - along * template[:, None], dtype=np.float32)


def _moved(placement: NDArray[np.float32], change: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the placements, (n, 4), after the inverse of a small change of the template."""
    scale, turn = np.exp(placement[:, 2]), placement[:, 3]
    along, across = scale * np.cos(turn), scale * np.sin(turn)
    moved = placement - change
    moved[:, 0] = placement[:, 0] - along * change[:, 0] - across * change[:, 1]
    moved[:, 1] = placement[:, 1] - along * change[:, 1] + across * change[:, 0]
    moved[:, 2] = np.clip(moved[:, 2], *np.log(_SCALES))
    moved[:, 3] = np.clip(moved[:, 3], -_MAX_TURN, _MAX_TURN)
    return moved.astype(np.float32)
