"""Duplicate detection: exact copies by file digest, near-duplicates by correlated fine detail.

The fingerprint is a real vector: the grey thumbnail minus its blur, scaled to unit length (the
detail). Unrelated photographs may share a bright sky and a dark ground, but not the texture: their
details correlate only by chance (below 0.3). Re-encoded or rescaled copies correlate by 0.97 and
more, copies rotated by one degree by 0.6 to 0.9. A candidate pair is confirmed if the thumbnails
themselves also correlate and the aspect ratios agree.

Crops, mirror images and copies that were turned further are searched for in a second pass, which
aligns the thumbnails before it compares them (`strategies.data.thumbnails.crops`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from strategies.data.image import THUMB_PX, LabelledImage, Leak, Pair, Split
from strategies.data.thumbnails.crops import Crops, Thumbnails, find_crops
from strategies.data.thumbnails.inverted_file import similar_rows
from strategies.data.thumbnails.vectors import (
    Rows,
    Vectors,
    chunks,
    correlations,
    detail_of,
    grey_thumbnails,
    unit,
)

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
CERTAIN = 0.90
"""Minimum similarity of links in chains of near-duplicates larger than `LARGEST_SHARE` of the
data (and than `LARGEST_ANYWAY` images)."""
LARGEST_SHARE, LARGEST_ANYWAY = 0.05, 50
MAX_PARTNERS, MAX_PAIRS = 50, 50_000
MAX_EXHAUSTIVE = 10_000
_COARSE = 2
"""Pixels of a thumbnail that one pixel of the coarse thumbnail averages, along each side."""
_MAX_FOUND = 4_000_000


@dataclass(frozen=True, slots=True)
class Match:
    """A `Pair` by row numbers."""

    first: int
    second: int
    exact: bool
    similarity: float
    mirrored: bool = False


def find_matches(
    images: Sequence[LabelledImage],
    seed: int = 0,
    *,
    max_exhaustive: int = MAX_EXHAUSTIVE,
    crops: bool = True,
) -> tuple[Match, ...]:
    """Find exact copies and near-duplicates, crops and mirror images among them.

    An exact copy is matched with the first image of the same digest. Only this first image is
    compared with others, so a near-duplicate of several copies is matched once.

    Parameters
    ----------
    max_exhaustive
        Maximum number of images of which all pairs are compared. Of more, only those with similar
        coarse thumbnails.
    crops
        Whether to search for crops, mirror images and turned copies.
    """
    first: dict[str, int] = {}
    exact = []
    for row, image in enumerate(images):
        original = first.setdefault(image.digest, row)
        if original != row:
            exact.append(Match(original, row, True, 1.0))
    rows = list(first.values())
    distinct = [images[row] for row in rows]
    near = _near(distinct, seed, max_exhaustive)
    matches = [Match(rows[i], rows[j], False, similarity) for i, j, similarity in near]
    if crops:
        found = _crops(distinct, near, seed, len(distinct) <= max_exhaustive)
        columns = (values.tolist() for values in found)
        matches += [
            Match(rows[i], rows[j], False, similarity, mirrored)
            for i, j, similarity, mirrored in zip(*columns, strict=True)
        ]
    return (*exact, *matches)


def _crops(
    images: Sequence[LabelledImage],
    near: Sequence[tuple[int, int, float]],
    seed: int,
    exhaustive: bool,
) -> Crops:
    """Return the crops, mirror images and turned copies that are not near-duplicates already."""
    thumbnails = Thumbnails(
        grey=grey_thumbnails(images),
        aspects=np.array([p.width_px / p.height_px for p in images], dtype=np.float32),
        sides_px=np.array([min(p.width_px, p.height_px) for p in images], dtype=np.int64),
        known=np.sort(np.array([i * len(images) + j for i, j, _ in near], dtype=np.int64)),
    )
    return find_crops(thumbnails, seed, exhaustive=exhaustive)


def pairs_of(images: Sequence[LabelledImage], matches: Sequence[Match]) -> tuple[Pair, ...]:
    """Return matches as pairs of images."""
    return tuple(
        Pair(images[m.first], images[m.second], m.exact, m.similarity, mirrored=m.mirrored)
        for m in matches
    )


def _near(
    images: Sequence[LabelledImage], seed: int, max_exhaustive: int
) -> list[tuple[int, int, float]]:
    """Return the near-duplicates as (row, later row, similarity), most similar first."""
    if len(images) < 2:
        return []
    detail = detail_of(images)
    threshold = chance_threshold(detail, np.array([p.label for p in images]), seed)
    aspect = np.log([p.width_px / p.height_px for p in images])
    side = np.array([min(p.width_px, p.height_px) for p in images])
    grey = grey_thumbnails(images)
    many = len(images) > max_exhaustive
    blocks = similar_thumbnails(grey, seed) if many else _all_pairs(len(images))
    parts, n_found, limit = [_NONE], 0, _MAX_FOUND
    for rows, columns in blocks:
        block = detail[rows] @ detail[columns].T
        i, j = np.nonzero(block >= threshold)
        similarity, i, j = block[i, j], rows[i], columns[j]
        same_shape = np.abs(aspect[i] - aspect[j]) <= ASPECT_TOLERANCE
        minimum = _lowest_similarity(side[i], side[j], threshold)
        keep = (i != j) & same_shape & (similarity >= minimum)
        i, j, similarity = i[keep], j[keep], similarity[keep]
        keep = correlations(grey, i, j) >= PIXEL_CORRELATION
        pairs = np.minimum(i, j)[keep], np.maximum(i, j)[keep], similarity[keep]
        parts.append(_Found(*pairs))
        n_found += len(pairs[0])
        if n_found > limit:
            parts = [_best_partners(parts)]
            n_found = len(parts[0].first)
            limit = max(_MAX_FOUND, 2 * n_found)
    first, second, similarity = _best_partners(parts)
    ranked = np.lexsort((second, first, -similarity))[:MAX_PAIRS]
    return list(
        zip(
            first[ranked].tolist(),
            second[ranked].tolist(),
            similarity[ranked].tolist(),
            strict=True,
        )
    )


def _all_pairs(n: int) -> Iterator[tuple[Rows, Rows]]:
    """Yield blocks (rows, columns) that hold every pair of n rows."""
    every = np.arange(n)
    return ((every[part], every[part.start :]) for part in chunks(n))


def similar_thumbnails(grey: NDArray[np.uint8], seed: int) -> Iterator[tuple[Rows, Rows]]:
    """Yield blocks (rows, columns) that hold the pairs with similar coarse thumbnails.

    The coarse structure of a copy hardly changes where its detail does: by a rotation, for
    example.
    """
    px = THUMB_PX // _COARSE
    coarse = np.empty((len(grey), px**2), dtype=np.float32)
    for part in chunks(len(grey)):
        tiles = grey[part].reshape(-1, px, _COARSE, px, _COARSE)
        coarse[part] = unit(tiles.mean(axis=(2, 4), dtype=np.float32))
    return similar_rows(coarse, coarse, len(grey), seed)


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
    """Return the inner products of pairs of rows.

    All products of few rows are cheaper than reading the rows of many pairs. Otherwise the pairs
    are sorted, so that one row of each stays in the processor's cache.
    """
    if len(vectors) ** 2 <= 16 * len(left):
        product: Vectors = (vectors @ vectors.T)[left, right]
        return product
    order = np.argsort(left, kind="stable")
    result = np.empty(len(left), dtype=np.float32)
    for same in np.split(order, np.flatnonzero(np.diff(left[order])) + 1):
        result[same] = vectors[right[same]] @ vectors[left[same[0]]]
    return result


class _Found(NamedTuple):
    """Pairs of rows, ``first < second``, with the correlations of their details."""

    first: Rows
    second: Rows
    similarity: Vectors

    def at(self, kept: Rows) -> "_Found":
        """Return some of the pairs."""
        return _Found(self.first[kept], self.second[kept], self.similarity[kept])


_NONE = _Found(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))


def _best_partners(parts: Sequence[_Found]) -> _Found:
    """Keep pairs that are among the `MAX_PARTNERS` most similar of one of their rows, once."""
    found = _Found(
        np.concatenate([part.first for part in parts]),
        np.concatenate([part.second for part in parts]),
        np.concatenate([part.similarity for part in parts]),
    )
    n = int(found.second.max(initial=0)) + 1
    once = np.unique(found.first * n + found.second, return_index=True)[1]
    first, second, similarity = found.at(once)
    rows, partners = np.concatenate([first, second]), np.concatenate([second, first])
    order = np.lexsort((partners, -np.tile(similarity, 2), rows))
    rank = np.arange(len(rows)) - np.searchsorted(rows[order], rows[order])
    kept = np.unique(order[rank < MAX_PARTNERS] % max(1, len(first)))
    return _Found(first, second, similarity).at(kept)


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
            paths = tuple((a.path, b.path) for a, b in (*exact.values(), *only_near))
            n = len(splits[name])
            leaks.append(Leak(name, source, n, len(exact), len(only_near), paths))
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
