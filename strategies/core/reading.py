"""Listed files to pictures: each one decoded once, in full; what cannot be read is set aside."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from strategies.core.errors import DataError
from strategies.core.images import Decoded, UnreadableImage, decode, hush_pillow, read_bytes
from strategies.core.pictures import THUMB_PX, Look, Picture, Skipped, Split, shown

GREY_SPREAD = 2.0
"""A picture is grey if its channels differ by less than this on average (of 255)."""


def read_pictures(
    files: Sequence[tuple[Path, int]], n_workers: int
) -> tuple[Split, list[Skipped]]:
    """Decode every file: only this tells whether it can be read. Nothing is kept but a thumbnail.

    Parameters
    ----------
    files
        Paths with labels.
    """
    hush_pillow()  # here, so that no two threads do it at once
    with ThreadPoolExecutor(n_workers) as pool:
        results = list(pool.map(_read, files))
    good = tuple(r for r in results if isinstance(r, Picture))
    return good, [r for r in results if isinstance(r, Skipped)]


def _read(file: tuple[Path, int]) -> Picture | Skipped:
    path, label = file
    try:
        data = read_bytes(path)
        decoded = decode(data)
    except UnreadableImage as error:
        return Skipped(path, str(error))
    digest = hashlib.sha256(data).hexdigest()
    return Picture(
        path,
        label,
        digest,
        decoded.width_px,
        decoded.height_px,
        look=look_at(decoded, len(data)),
    )


def look_at(decoded: Decoded, n_bytes: int) -> Look:
    """Measure a decoded picture."""
    size = (THUMB_PX, THUMB_PX)
    small = decoded.image.resize(size, Image.Resampling.BOX)
    colours = np.asarray(small, dtype=np.int16)
    spread = float((colours.max(axis=2) - colours.min(axis=2)).mean())
    low, high = decoded.image.convert("L").getextrema()
    return Look(
        decoded.format,
        n_bytes,
        spread < GREY_SPREAD,
        int(np.subtract(high, low)),
        small.convert("L").tobytes(),
    )


def check_quarantine(
    data: Path, skipped: Sequence[Skipped], n_read: int, max_share: float
) -> None:
    """Refuse to go on where too large a share of the files cannot be read.

    Raises
    ------
    DataError
        If it is over `max_share`.
    """
    n = len(skipped) + n_read
    if not skipped or len(skipped) <= max_share * n:
        return
    reasons = Counter(s.reason for s in skipped).most_common(5)
    listed = "".join(f"\n  {count} x {reason}" for reason, count in reasons)
    examples = "".join(f"\n  {shown(s.path)}: {s.reason}" for s in skipped[:5])
    raise DataError(
        f"{len(skipped)} of the {n} pictures of {shown(data)} that were tried cannot be read: "
        f"more than {max_share:.0%}. Mend or remove them, or allow more with --max-quarantine.\n"
        f"Reasons:{listed}\nFor example:{examples}"
    )
