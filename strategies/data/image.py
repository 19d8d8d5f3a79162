"""The nouns below a dataset: an image, what it looks like, and a file that was left out."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from strategies.core.metrics import Labels

THUMB_PX = 32
_JOINERS = "\u200c\u200d"
"""They change no order of reading and hold emoji and Persian words together."""


@dataclass(frozen=True, slots=True)
class ImageStats:
    """What is known of an image from decoding it once.

    Attributes
    ----------
    format
        Pillow's name of the file's true format, whatever its suffix says.
    is_grey
        Whether it has no colour, however it is stored.
    contrast
        Brightest minus darkest grey level, 0 to 255.
    thumb
        The image in grey, `THUMB_PX` squared, row by row.
    """

    format: str
    n_bytes: int
    is_grey: bool
    contrast: int
    thumb: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One readable image file with its label (an index into the dataset's classes).

    Attributes
    ----------
    group
        Images of one group (duplicates, frames of one track) never straddle a split; -1 is a
        group of its own.
    look
        None where an image was not made by `load_dataset`.
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
    """A file that was left out, and why."""

    path: Path
    reason: str


Split = tuple[LabelledImage, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images that show the same: byte by byte, or nearly.

    Attributes
    ----------
    similarity
        Correlation of their fine detail, 1 for exact copies.
    """

    first: LabelledImage
    second: LabelledImage
    exact: bool
    similarity: float


@dataclass(frozen=True, slots=True)
class Leak:
    """Images of one given split that occur in another one.

    Attributes
    ----------
    n
        Images of `split` that were compared.
    n_exact, n_near
        Those with an exact copy in `source`, and those with only a near-duplicate there.
    examples
        ``"path = path"`` for some of them.
    """

    split: str
    source: str
    n: int
    n_exact: int
    n_near: int
    examples: tuple[str, ...]


def labels_of(split: Split) -> Labels:
    """Return the labels of a split, shape (n,)."""
    return np.array([p.label for p in split], dtype=np.int64)


def groups_of(split: Split) -> NDArray[np.int64]:
    """Return group numbers, shape (n,): equal where images must stay together."""
    return np.array([p.group if p.group >= 0 else -1 - i for i, p in enumerate(split)], np.int64)


def shown(name: Path | str) -> str:
    """Return a path or name as one printable line that any UTF-8 stream takes."""
    return "".join(
        c
        if c.isprintable() or c in _JOINERS
        else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in str(name)
    )
