"""Record types of a dataset: image, image statistics, skipped file, duplicate pair, leak."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from strategies.core.metrics import Labels

THUMB_PX = 32
_JOINERS = "\u200c\u200d"
"""Zero-width joiners: they do not change the reading order; emoji and Persian words need them."""


@dataclass(frozen=True, slots=True)
class ImageStats:
    """Statistics of an image, measured when it is first decoded.

    Attributes
    ----------
    format
        Pillow's name of the file's actual format, whatever its suffix.
    is_grey
        Whether the image has no colour, however it is stored.
    contrast
        Brightest minus darkest grey level, 0 to 255.
    thumb
        Grey thumbnail of `THUMB_PX` x `THUMB_PX` pixels, one byte each, row by row.
    highlights
        Level that only 1% of a colour thumbnail exceeds, in its brightest channel: 0 to 255.
    shadows
        Grey level that 1% of the pixels do not exceed, 0 to 255.
    clipped_share
        Share of pixels of nearly white grey levels (`inspection.CLIPPED`), in [0, 1].
    sharpness
        Variance of the Laplacian of the grey image's middle half, reduced to a common scale
        (`inspection.SHARPNESS_PX`). Low for blurred images, and for smooth ones.
    """

    format: str
    n_bytes: int
    is_grey: bool
    contrast: int
    thumb: bytes = field(repr=False)
    highlights: int = 255
    shadows: int = 0
    clipped_share: float = 0.0
    sharpness: float = math.inf


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One readable image file with its label (an index into the dataset's classes).

    Attributes
    ----------
    group
        Images of one group (duplicates, frames of one track) are always in the same split; -1
        is a group of its own.
    stats
        None if the image was not read by `load_dataset`.
    """

    path: Path
    label: int
    digest: str
    width_px: int
    height_px: int
    group: int = -1
    stats: ImageStats | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was left out of the dataset, and the reason."""

    path: Path
    reason: str


Split = tuple[LabelledImage, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two duplicate images: identical byte by byte (exact), or near-duplicates.

    Attributes
    ----------
    similarity
        Correlation of their fine detail, of crops after alignment; 1 for exact copies.
    is_grouped
        Whether the user groups them: with ``--group-by``, or by a manifest's column.
    mirrored
        Whether one is the mirror image of the other, or of a part of it.
    """

    first: LabelledImage
    second: LabelledImage
    exact: bool
    similarity: float
    is_grouped: bool = False
    mirrored: bool = False


@dataclass(frozen=True, slots=True)
class Leak:
    """Images of one split given by the user that also occur in another split.

    Attributes
    ----------
    n
        Number of images of `split` that were compared.
    n_exact, n_near
        Number of them with an exact copy in `source`, and with only a near-duplicate there.
    pairs
        Each of them with one of its copies in `source`; exact copies first. Only paths: the
        labels of test images stay hidden.
    """

    split: str
    source: str
    n: int
    n_exact: int
    n_near: int
    pairs: tuple[tuple[Path, Path], ...]


def labels_of(split: Split) -> Labels:
    """Return the labels of a split, shape (n,)."""
    return np.array([p.label for p in split], dtype=np.int64)


def groups_of(split: Split) -> NDArray[np.int64]:
    """Return the group numbers of a split, shape (n,); a negative number is a group of one."""
    return np.array([p.group if p.group >= 0 else -1 - i for i, p in enumerate(split)], np.int64)


def shown(name: Path | str) -> str:
    """Return a path or name as one printable line that can be encoded as UTF-8."""
    return "".join(
        c
        if c.isprintable() or c in _JOINERS
        else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in str(name)
    )
