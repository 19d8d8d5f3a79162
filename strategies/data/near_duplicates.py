"""Duplicate detection: exact copies by file digest, near-duplicates by correlated fine detail.

The fingerprint is a real vector: the grey thumbnail minus its blur, scaled to unit length (the
detail). Unrelated photographs may share a bright sky and a dark ground, but not the texture: their
details correlate only by chance (below 0.3). Re-encoded or rescaled copies correlate by 0.97 and
more, copies rotated by one degree by 0.6 to 0.9. A candidate pair is confirmed if the thumbnails
themselves also correlate and the aspect ratios agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from strategies.data.image import THUMB_PX, LabelledImage, Leak, Pair, Split, shown

THRESHOLD = (0.60, 0.75)
"""Range of the minimum detail correlation of near-duplicates. Within it, the threshold is set so
that less than one false pair is expected in the data: the upper tail of pairs of different classes
is extrapolated. Where all images are similar (X-rays, digits), the threshold is higher."""
TAIL, TAIL_PAIRS = (0.999, 0.9999), 400_000
SMALL_PX = 2 * THUMB_PX
"""Images with a shorter side lack detail: the highest threshold applies to them."""
ENLARGED_PX, ENLARGED_THRESHOLD = THUMB_PX, 0.95
"""Images with a shorter side below the thumbnail's were enlarged for it: part of their detail is
interpolation, which is alike in two such images. 28 px digits of different writers correlate up
to 0.93, re-encoded copies of one by 0.98 (95% of them above 0.984); so only such copies are found.
From 32 px on, near-duplicates can be told (B. Barz, J. Denzler, Do we train on test data?, 2020,
on CIFAR)."""
TINY_PX = 16
"""Images with a shorter side below this cannot be told apart by their detail: only exact copies
are found. The 8 px digits' correlations by chance have a standard deviation of 0.18, as those of
1 / 0.18**2 = 31 independent numbers; those of photographs have 0.05. Different digits of one class
correlate up to 0.98, as much as a re-encoded copy does (0.975 to 0.985)."""
PIXEL_CORRELATION = 0.70
ASPECT_TOLERANCE = 0.06
MIN_CONTRAST = 8
"""Images of less contrast (brightest minus darkest grey level) are blank and not compared."""
CERTAIN = 0.90
"""Minimum similarity of links in chains of near-duplicates larger than `LARGEST_SHARE` of the
data (and than `LARGEST_ANYWAY` images)."""
LARGEST_SHARE, LARGEST_ANYWAY = 0.05, 50
MAX_PARTNERS, MAX_PAIRS, MAX_EXAMPLES = 50, 50_000, 5
_BLOCK = 512

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Match:
    """A `Pair` by row numbers."""

    first: int
    second: int
    exact: bool
    similarity: float


def find_matches(images: Sequence[LabelledImage], seed: int = 0) -> tuple[Match, ...]:
    """Find exact copies and near-duplicates.

    An exact copy is matched with the first image of the same digest. Only this first image is
    compared with others, so a near-duplicate of several copies is matched once.
    """
    first: dict[str, int] = {}
    exact = []
    for row, image in enumerate(images):
        original = first.setdefault(image.digest, row)
        if original != row:
            exact.append(Match(original, row, True, 1.0))
    rows = list(first.values())
    near = [
        Match(rows[i], rows[j], False, similarity)
        for i, j, similarity in _near([images[row] for row in rows], seed)
    ]
    return (*exact, *near)


def pairs_of(images: Sequence[LabelledImage], matches: Sequence[Match]) -> tuple[Pair, ...]:
    """Return matches as pairs of images."""
    return tuple(Pair(images[m.first], images[m.second], m.exact, m.similarity) for m in matches)


def fingerprints(images: Sequence[LabelledImage]) -> tuple[Vectors, Vectors]:
    """Return the details and thumbnails of images as unit vectors (zero vectors if blank)."""
    thumbs = np.zeros((len(images), THUMB_PX, THUMB_PX), dtype=np.float32)
    for row, image in enumerate(images):
        if image.stats and image.stats.contrast >= MIN_CONTRAST:
            flat = np.frombuffer(image.stats.thumb, dtype=np.uint8)
            thumbs[row] = flat.reshape(THUMB_PX, THUMB_PX)
    padded = np.pad(thumbs, ((0, 0), (1, 1), (1, 1)), mode="edge")
    views = [padded[:, i : i + THUMB_PX, j : j + THUMB_PX] for i in range(3) for j in range(3)]
    blurred = np.add.reduce(views) / 9
    return _unit(thumbs - blurred), _unit(thumbs)


def _unit(images: Vectors) -> Vectors:
    flat = images.reshape(len(images), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.where(length > 1e-3, flat / np.maximum(length, 1e-3), 0).astype(np.float32)


def _near(images: Sequence[LabelledImage], seed: int) -> list[tuple[int, int, float]]:
    """Return the near-duplicates as (row, later row, similarity), most similar first."""
    if len(images) < 2:
        return []
    detail, thumbs = fingerprints(images)
    threshold = chance_threshold(detail, np.array([p.label for p in images]), seed)
    aspect = np.log([p.width_px / p.height_px for p in images])
    side = np.array([min(p.width_px, p.height_px) for p in images])
    found: list[tuple[int, int, float]] = []
    for start in range(0, len(images), _BLOCK):
        block = detail[start : start + _BLOCK] @ detail.T
        rows, columns = np.nonzero(block >= threshold)
        similarity = block[rows, columns]
        rows += start
        same_shape = np.abs(aspect[rows] - aspect[columns]) <= ASPECT_TOLERANCE
        minimum = _lowest_similarity(side[rows], side[columns], threshold)
        keep = (rows != columns) & same_shape & (similarity >= minimum)
        rows, columns, similarity = rows[keep], columns[keep], similarity[keep]
        keep = _products(thumbs, rows, columns) >= PIXEL_CORRELATION
        rows, columns, similarity = rows[keep], columns[keep], similarity[keep]
        found += _best_partners(rows, columns, similarity)
    once = {(min(i, j), max(i, j)): s for i, j, s in found}
    ranked = sorted(((i, j, s) for (i, j), s in once.items()), key=lambda p: (-p[2], p[:2]))
    return ranked[:MAX_PAIRS]


def _lowest_similarity(one: Rows, other: Rows, threshold: float) -> NDArray[np.float64]:
    """Return the minimum detail correlation of near-duplicates with these shorter sides."""
    smaller, larger = np.minimum(one, other), np.maximum(one, other)
    sizes = (smaller < TINY_PX, larger < ENLARGED_PX, smaller < SMALL_PX)
    return np.select(sizes, (np.inf, ENLARGED_THRESHOLD, THRESHOLD[1]), threshold)


def chance_threshold(detail: Vectors, labels: Rows, seed: int) -> float:
    """Return the detail correlation above which less than one chance pair is expected."""
    rng = np.random.default_rng(seed)
    left, right = rng.integers(0, len(detail), size=(2, TAIL_PAIRS))
    keep = labels[left] != labels[right]
    left, right = left[keep], right[keep]
    if len(left) < 1 / (1 - TAIL[1]):
        return THRESHOLD[1]
    chance = _products(detail, left, right)
    low, high = np.quantile(chance, TAIL)
    # Extrapolate from 1 pair in 10**4 to less than 1 (by half a decade) in all n (n - 1) / 2.
    decades = max(0.0, np.log10(len(detail) * (len(detail) - 1) / 2) - 3.5)
    return float(np.clip(high + decades * (high - low), *THRESHOLD))


def _products(vectors: Vectors, left: Rows, right: Rows) -> Vectors:
    """Return the inner products of pairs of rows, computed in chunks."""
    result = np.empty(len(left), dtype=np.float32)
    for start in range(0, len(left), 8192):
        part = slice(start, start + 8192)
        result[part] = np.einsum("ij,ij->i", vectors[left[part]], vectors[right[part]])
    return result


def _best_partners(
    rows: Rows, columns: Rows, similarity: NDArray[np.float32]
) -> list[tuple[int, int, float]]:
    """Keep the `MAX_PARTNERS` most similar of every row, so that the pairs grow linearly."""
    order = np.lexsort((-similarity, rows))
    rows, columns, similarity = rows[order], columns[order], similarity[order]
    starts = np.searchsorted(rows, rows)
    keep = np.arange(len(rows)) - starts < MAX_PARTNERS
    return list(
        zip(rows[keep].tolist(), columns[keep].tolist(), similarity[keep].tolist(), strict=True)
    )


def connected(n: int, links: Sequence[tuple[int, int]]) -> Rows:
    """Return the number of the connected component of each of n nodes, (n,)."""
    ends = np.array(links, dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), dtype=np.int8), (ends[:, 0], ends[:, 1])), shape=(n, n))
    _, component = connected_components(graph, directed=False)
    return np.asarray(component, dtype=np.int64)


def duplicate_groups(n: int, matches: Sequence[Match]) -> Rows:
    """Return group numbers, (n,): linked duplicates share a number.

    Near-duplicates may form long chains. In a chain of more than a twentieth of the data (and
    more than `LARGEST_ANYWAY` images), links below `CERTAIN` are removed.
    """
    component = connected(n, [(m.first, m.second) for m in matches])
    sizes = np.bincount(component)
    limit = max(LARGEST_ANYWAY, LARGEST_SHARE * n)
    keep = [
        (m.first, m.second)
        for m in matches
        if m.similarity >= CERTAIN or sizes[component[m.first]] <= limit
    ]
    return component if len(keep) == len(matches) else connected(n, keep)


def find_leaks(splits: dict[str, Split], pairs: Sequence[Pair]) -> tuple[Leak, ...]:
    """Count the images of test that occur in train or validation, and of validation in train."""
    split_of = {id(p): name for name, split in splits.items() for p in split}
    copies: dict[str, list[LabelledImage]] = {}
    for image in chain.from_iterable(splits.values()):
        copies.setdefault(image.digest, []).append(image)
    leaks = []
    for name, source in (("test", "train"), ("test", "val"), ("val", "train")):
        if name not in splits or source not in splits:
            continue
        exact: dict[int, tuple[LabelledImage, LabelledImage]] = {}
        near: dict[int, tuple[LabelledImage, LabelledImage]] = {}
        for same in copies.values():
            _add_leaks(exact, same, same, split_of, name, source)
        for pair in pairs:
            if not pair.exact:
                first, second = copies[pair.first.digest], copies[pair.second.digest]
                _add_leaks(near, first, second, split_of, name, source)
                _add_leaks(near, second, first, split_of, name, source)
        only_near = [images for key, images in near.items() if key not in exact]
        if exact or only_near:
            shown_pairs = [*exact.values(), *only_near][:MAX_EXAMPLES]
            examples = tuple(f"{shown(a.path)} = {shown(b.path)}" for a, b in shown_pairs)
            n = len(splits[name])
            leaks.append(Leak(name, source, n, len(exact), len(only_near), examples))
    return tuple(leaks)


def _add_leaks(
    found: dict[int, tuple[LabelledImage, LabelledImage]],
    ours: Sequence[LabelledImage],
    theirs: Sequence[LabelledImage],
    split_of: dict[int, str],
    name: str,
    source: str,
) -> None:
    """Add every image of `ours` in split `name` to `found` if one of `theirs` is in `source`."""
    twin = next((p for p in theirs if split_of[id(p)] == source), None)
    if twin is not None:
        found |= {id(p): (p, twin) for p in ours if split_of[id(p)] == name and id(p) not in found}
