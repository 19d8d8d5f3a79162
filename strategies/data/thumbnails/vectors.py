"""Thumbnails as vectors: grey values, their detail (the values minus their blur), correlations."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.data.image import THUMB_PX, LabelledImage

MIN_CONTRAST = 8
"""Images of less contrast (brightest minus darkest grey level) are blank and not compared."""
BLOCK = 512

Vectors = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]
Rows = NDArray[np.int64]


def grey_thumbnails(images: Sequence[LabelledImage]) -> NDArray[np.uint8]:
    """Return the grey thumbnails, (n, `THUMB_PX`**2); 0 for blank and for unread images."""
    grey = np.zeros((len(images), THUMB_PX**2), dtype=np.uint8)
    for row, image in enumerate(images):
        if image.stats and image.stats.contrast >= MIN_CONTRAST:
            grey[row] = np.frombuffer(image.stats.thumb, dtype=np.uint8)
    return grey


def detail_of(images: Sequence[LabelledImage]) -> Vectors:
    """Return the details of images as unit vectors, (n, `THUMB_PX`**2); zero vectors if blank."""
    detail = np.empty((len(images), THUMB_PX**2), dtype=np.float32)
    for part in chunks(len(images)):
        thumbs = grey_thumbnails(images[part]).astype(np.float32).reshape(-1, THUMB_PX, THUMB_PX)
        detail[part] = unit(minus_blur(thumbs))
    return detail


def minus_blur(images: Floats, radius: int = 1) -> Vectors:
    """Return images (n, px, px) minus their mean over squares of ``2 * radius + 1`` pixels."""
    px, width = images.shape[1], 2 * radius + 1
    padded = np.pad(images, ((0, 0), (radius, radius), (radius, radius)), mode="edge")
    along_y = padded[:, :px].copy()
    for i in range(1, width):
        along_y += padded[:, i : i + px]
    total = along_y[:, :, :px].copy()
    for j in range(1, width):
        total += along_y[:, :, j : j + px]
    return np.asarray(images - total / width**2, dtype=np.float32)


def unit(images: NDArray[np.generic]) -> Vectors:
    """Return images as unit vectors of mean 0, (n, pixels); zero vectors if they are constant."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.where(length > 1e-3, flat / np.maximum(length, 1e-3), 0).astype(np.float32)


def correlations(grey: NDArray[np.uint8], left: Rows, right: Rows) -> Vectors:
    """Return the correlations of pairs of thumbnails."""
    result = np.empty(len(left), dtype=np.float32)
    for part in chunks(len(left)):
        one, other = unit(grey[left[part]]), unit(grey[right[part]])
        result[part] = np.einsum("ij,ij->i", one, other)
    return result


def chunks(n: int, size: int = BLOCK) -> Iterator[slice]:
    """Yield slices that cover n rows, `size` rows each."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
