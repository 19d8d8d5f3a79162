"""Read the listed files: decode every image once, measure it, and quarantine unreadable files."""

import base64
import hashlib
import math
import os
import stat
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from strategies.core.cache import ArrayCache, space_name
from strategies.core.errors import DataError
from strategies.core.progress import OnProgress, ignore
from strategies.data.decoding import Decoded, UnreadableImage, decode, read_bytes, silence_pillow
from strategies.data.image import THUMB_PX, ImageStats, LabelledImage, Skipped, Split, shown

GREY_SPREAD = 2.0
"""An image is grey if its channels differ by less than this on average (scale 0 to 255)."""
CLIPPED = 250
"""Grey level from which on a pixel counts as clipped, 0 to 255."""
SHARPNESS_PX = 128
"""Sharpness is measured where an image has about the area of a square of this side: it is reduced
by the whole number that comes closest. Smaller images keep their size."""
MIN_LAPLACIAN_PX = 8
"""Images with a shorter side than this, once reduced, have no sharpness."""
SETTLED_S = 2.0
"""Minimum age of a change for a file to be cached; no file system's timestamps are coarser."""
_CHUNK, _FORMAT = 256, 3
_HIGHLIGHT = THUMB_PX**2 * 99 // 100
_SPACE = space_name(
    ["images", _FORMAT, PIL.__version__, THUMB_PX, GREY_SPREAD, CLIPPED, SHARPNESS_PX]
)


def read_images(
    files: Sequence[tuple[Path, int]],
    n_workers: int,
    cache: ArrayCache | None = None,
    on_progress: OnProgress = ignore,
) -> tuple[Split, list[Skipped]]:
    """Decode every file, the only reliable check that it is readable; keep only a thumbnail.

    Parameters
    ----------
    files
        Paths with labels.
    cache
        Stores the measurements of readable files until they change; None stores nothing.
        Unreadable files are always tried again.

    Returns
    -------
    images, unreadable
        The readable images, and the unreadable files with reasons.
    """
    silence_pillow()  # before the threads start, so that they do not do it concurrently
    results: list[LabelledImage | Skipped] = []
    with ThreadPoolExecutor(n_workers) as pool:
        for start in range(0, len(files), _CHUNK):
            chunk = files[start : start + _CHUNK]
            if cache is None:
                results += pool.map(_read, chunk)
            else:
                results += _read_cached(chunk, cache, pool)
            on_progress("images", start + len(chunk), len(files))
    good = tuple(r for r in results if isinstance(r, LabelledImage))
    return good, [r for r in results if isinstance(r, Skipped)]


def _read_cached(
    files: Sequence[tuple[Path, int]], cache: ArrayCache, pool: ThreadPoolExecutor
) -> list[LabelledImage | Skipped]:
    """Decode the files that are not in the cache, and add them to it."""
    signatures = [signature(path) for path, _ in files]
    cached = cache.get_json(_SPACE, [key for key in signatures if key])
    new = [i for i, key in enumerate(signatures) if key not in cached]
    fresh = dict(zip(new, pool.map(_read, [files[i] for i in new]), strict=True))
    readable = {i: p for i, p in fresh.items() if isinstance(p, LabelledImage)}
    records = {signatures[i]: _to_record(p) for i, p in readable.items()}
    cache.put_json(_SPACE, {key: record for key, record in records.items() if key})
    return [
        fresh[i] if i in fresh else _from_record(path, label, cached[signatures[i] or ""])
        for i, (path, label) in enumerate(files)
    ]


def signature(path: Path) -> str | None:
    """Return a hash that identifies a file and its current content, without reading it.

    It covers path, size, inode, mtime and ctime; no program can set the ctime back. None for
    anything that is not a regular file (an archive member), and for a file that changed within the
    last `SETTLED_S` seconds, because a second change might not alter the timestamps.
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


def _to_record(image: LabelledImage) -> list[Any]:
    """Return the measurements of an image as JSON values, for the cache."""
    assert image.stats is not None
    stats = image.stats
    thumb = base64.b64encode(stats.thumb).decode()
    size = [image.digest, image.width_px, image.height_px]
    levels = [stats.highlights, stats.shadows, stats.clipped_share, stats.sharpness]
    return [*size, stats.format, stats.n_bytes, stats.is_grey, stats.contrast, thumb, *levels]


def _from_record(path: Path, label: int, record: list[Any]) -> LabelledImage:
    digest, width, height, form, n_bytes, is_grey, contrast, thumb, *levels = record
    stats = ImageStats(form, n_bytes, is_grey, contrast, base64.b64decode(thumb), *levels)
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
        stats=measure_image(decoded, len(data)),
    )


def measure_image(decoded: Decoded, n_bytes: int) -> ImageStats:
    """Measure a decoded image; `n_bytes` is the size of its file."""
    small = decoded.image.resize((THUMB_PX, THUMB_PX), Image.Resampling.BOX)
    colours = np.asarray(small)
    red, green, blue = colours[:, :, 0], colours[:, :, 1], colours[:, :, 2]
    brightest = np.maximum(np.maximum(red, green), blue)
    spread = float((brightest - np.minimum(np.minimum(red, green), blue)).mean())
    grey = decoded.image.convert("L")
    counts = np.array(grey.histogram())
    levels, n_pixels = np.flatnonzero(counts), int(counts.sum())
    return ImageStats(
        decoded.format,
        n_bytes,
        spread < GREY_SPREAD,
        int(levels[-1] - levels[0]),
        small.convert("L").tobytes(),
        highlights=int(np.partition(brightest.ravel(), _HIGHLIGHT)[_HIGHLIGHT]),
        shadows=int(np.searchsorted(counts.cumsum(), n_pixels / 100)),
        clipped_share=round(int(counts[CLIPPED:].sum()) / n_pixels, 4),
        sharpness=_laplacian_variance(grey),
    )


def _laplacian_variance(grey: Image.Image) -> float:
    """Return the variance of the Laplacian of the middle half, reduced to a common scale.

    Infinite for images that are too small for it.

    References
    ----------
    J. L. Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy: a comparative study,
    ICPR 2000.
    """
    factor = round(math.sqrt(grey.width * grey.height) / SHARPNESS_PX)
    quarter = grey.height // 4
    grey = grey.reduce(max(factor, 1), (0, quarter, grey.width, grey.height - quarter))
    if min(grey.size) < MIN_LAPLACIAN_PX:
        return math.inf
    x = np.frombuffer(grey.tobytes(), dtype=np.uint8).astype(np.int16)
    row = grey.width
    laplacian = 4 * x[row:-row]
    laplacian -= x[: -2 * row]
    laplacian -= x[2 * row :]
    laplacian -= x[row - 1 : -row - 1]
    laplacian -= x[row + 1 : len(x) - row + 1]
    inside = laplacian.reshape(-1, row)[:, 1:-1]  # neighbours at the ends are of other rows
    # Whole numbers below 2**53: their sums are exact in any order.
    values = inside.astype(np.float64).ravel()
    mean = float(values.sum()) / len(values)
    return round(float(values @ values) / len(values) - mean**2, 2)


def check_max_quarantine(max_share: float) -> None:
    """Raise DataError if the largest share of unreadable images is no share."""
    if not 0 <= max_share <= 1:
        raise DataError(f"--max-quarantine must be between 0 and 1, got {max_share}.")


def check_quarantine(
    data: Path, skipped: Sequence[Skipped], n_read: int, max_share: float
) -> None:
    """Raise if too large a share of the files cannot be read.

    Raises
    ------
    DataError
        If the share is over `max_share`.
    """
    n = len(skipped) + n_read
    if not skipped or len(skipped) <= max_share * n:
        return
    reasons = Counter(s.reason for s in skipped).most_common(5)
    listed = "".join(f"\n  {count} x {reason}" for reason, count in reasons)
    examples = "".join(f"\n  {shown(s.path)}: {s.reason}" for s in skipped[:5])
    raise DataError(
        f"{len(skipped)} of the {n} images tried in {shown(data)} cannot be read: "
        f"more than {max_share:.0%}. Repair or remove them, or raise --max-quarantine.\n"
        f"Reasons:{listed}\nExamples:{examples}"
    )


def drop_empty_classes(
    data: Path, classes: tuple[str, ...], splits: dict[str, Split], skipped: list[Skipped]
) -> tuple[tuple[str, ...], dict[str, Split]]:
    """Return the classes with a readable image in train, and the splits labelled by them.

    The others are added to `skipped`.

    Raises
    ------
    DataError
        If fewer than two classes are left.
    """
    used = sorted({p.label for p in splits["train"]})
    if len(used) < 2:
        listed = ", ".join(map(shown, classes[:20])) or "none"
        raise DataError(
            f"{shown(data)} has readable images of {len(used)} class(es); at least two are "
            f"needed. Classes found: {listed}. Files left out: {len(skipped)}"
            + "".join(f"\n  {shown(s.path)}: {s.reason}" for s in skipped[:5])
        )
    for label, name in enumerate(classes):
        if label not in used:
            skipped.append(Skipped(data / name, "a class without a readable image in train"))
    index = {old: new for new, old in enumerate(used)}
    relabelled = {
        name: tuple(replace(p, label=index[p.label]) for p in split if p.label in index)
        for name, split in splits.items()
    }
    return tuple(classes[label] for label in used), relabelled
