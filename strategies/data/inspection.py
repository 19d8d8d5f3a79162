"""Listed files to images: each one decoded once, in full; what cannot be read is set aside."""

import base64
import hashlib
import os
import stat
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from strategies.core.cache import ArrayCache, space_name
from strategies.core.errors import DataError
from strategies.core.progress import OnProgress, ignore_progress
from strategies.data.decoding import Decoded, UnreadableImage, decode, read_bytes, silence_pillow
from strategies.data.image import THUMB_PX, ImageStats, LabelledImage, Skipped, Split, shown

GREY_SPREAD = 2.0
"""An image is grey if its channels differ by less than this on average (of 255)."""
SETTLED_S = 2.0
"""A file is known again if it was left alone for so long: no file system's clock is coarser."""
_CHUNK, _FORMAT = 256, 1
_SPACE = space_name(["images", _FORMAT, PIL.__version__, THUMB_PX, GREY_SPREAD])


def read_images(
    files: Sequence[tuple[Path, int]],
    n_workers: int,
    cache: ArrayCache | None = None,
    on_progress: OnProgress = ignore_progress,
) -> tuple[Split, list[Skipped]]:
    """Decode every file: only this tells whether it can be read. Nothing is kept but a thumbnail.

    Parameters
    ----------
    files
        Paths with labels.
    cache
        Remembers what readable files showed, for as long as they are not changed; None: nothing is
        remembered. What could not be read is always tried again.
    """
    silence_pillow()  # here, so that no two threads do it at once
    results: list[LabelledImage | Skipped] = []
    with ThreadPoolExecutor(n_workers) as pool:
        for start in range(0, len(files), _CHUNK):
            chunk = files[start : start + _CHUNK]
            if cache is None:
                results += pool.map(_read, chunk)
            else:
                results += _read_new(chunk, cache, pool)
            on_progress("images", start + len(chunk), len(files))
    good = tuple(r for r in results if isinstance(r, LabelledImage))
    return good, [r for r in results if isinstance(r, Skipped)]


def _read_new(
    files: Sequence[tuple[Path, int]], cache: ArrayCache, pool: ThreadPoolExecutor
) -> list[LabelledImage | Skipped]:
    """Decode the files that the cache does not know, and let it know them."""
    signs = [signature(path) for path, _ in files]
    known = cache.get_json(_SPACE, [sign for sign in signs if sign])
    new = [i for i, sign in enumerate(signs) if sign not in known]
    fresh = dict(zip(new, pool.map(_read, [files[i] for i in new]), strict=True))
    records = {signs[i]: _record(p) for i, p in fresh.items() if isinstance(p, LabelledImage)}
    cache.put_json(_SPACE, {sign: record for sign, record in records.items() if sign})
    return [
        fresh[i] if i in fresh else _image(path, label, known[signs[i] or ""])
        for i, (path, label) in enumerate(files)
    ]


def signature(path: Path) -> str | None:
    """Name a file and its present content by what the file system says of it, unread.

    Size, number, and the times of the last change of content and of anything at all, the latter of
    which no program can set back. None for what is no regular file of its own (the member of an
    archive), or was changed within the last `SETTLED_S`: a second change might not show.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode) or time.time() - status.st_ctime < SETTLED_S:
        return None
    facts = (status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    named = os.fsencode(path.absolute()) + repr(facts).encode()
    return hashlib.blake2b(named, digest_size=16).hexdigest()


def _record(image: LabelledImage) -> list[Any]:
    """Return what was seen of an image as JSON values."""
    assert image.stats is not None
    stats = image.stats
    thumb = base64.b85encode(stats.thumb).decode()
    size = [image.digest, image.width_px, image.height_px]
    return [*size, stats.format, stats.n_bytes, stats.is_grey, stats.contrast, thumb]


def _image(path: Path, label: int, record: list[Any]) -> LabelledImage:
    digest, width, height, form, n_bytes, is_grey, contrast, thumb = record
    stats = ImageStats(form, n_bytes, is_grey, contrast, base64.b85decode(thumb))
    return LabelledImage(path, label, digest, width, height, stats=stats)


def _read(file: tuple[Path, int]) -> LabelledImage | Skipped:
    path, label = file
    try:
        data = read_bytes(path)
        decoded = decode(data)
    except UnreadableImage as error:
        return Skipped(path, str(error))
    digest = hashlib.sha256(data).hexdigest()
    return LabelledImage(
        path,
        label,
        digest,
        decoded.width_px,
        decoded.height_px,
        stats=look_at(decoded, len(data)),
    )


def look_at(decoded: Decoded, n_bytes: int) -> ImageStats:
    """Measure a decoded image."""
    size = (THUMB_PX, THUMB_PX)
    small = decoded.image.resize(size, Image.Resampling.BOX)
    colours = np.asarray(small, dtype=np.int16)
    spread = float((colours.max(axis=2) - colours.min(axis=2)).mean())
    low, high = decoded.image.convert("L").getextrema()
    return ImageStats(
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
        f"{len(skipped)} of the {n} images of {shown(data)} that were tried cannot be read: "
        f"more than {max_share:.0%}. Mend or remove them, or allow more with --max-quarantine.\n"
        f"Reasons:{listed}\nFor example:{examples}"
    )
