"""Reproducible samples: of the files of a listing with exact class counts, and of images."""

import hashlib
import heapq
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from strategies.core.errors import DataError
from strategies.core.metrics import Labels
from strategies.data.decoding import known_suffixes
from strategies.data.image import LabelledImage, Skipped, shown
from strategies.data.layouts import natural_key

MIN_PER_CLASS = 10
"""A sample contains at least this many images of every class that has as many."""

MAX_LISTED = 1000
"""Files whose suffix is not an image format: at most this many are listed, the rest counted."""

_Ranked = tuple[int, str, str]


@dataclass
class Reservoir:
    """A random sample of at most `limit` files, with at least `MIN_PER_CLASS` of every class.

    The files of the lowest ranks are selected. A file's rank is a hash of its name and the seed,
    so the sample depends neither on the order of the listing nor on the other files, except that
    only the lowest ranks are selected. Classes are sampled in proportion to their sizes. With very
    many classes, the minimum per class takes precedence over the limit.

    Attributes
    ----------
    limit
        Maximum size of the sample; None keeps all files.
    keep_rest
        Whether the files that are not in the sample are kept too, for `rest`.
    counts
        Number of files added, by class.
    """

    limit: int | None
    seed: int = 0
    keep_rest: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    _added: list[_Ranked] = field(default_factory=list)
    _overall: list[_Ranked] = field(default_factory=list)
    _floors: dict[str, list[_Ranked]] = field(default_factory=dict)

    def add(self, name: str, label: str, path: str) -> None:
        """Count a file, and keep it if its rank is low enough; `name` determines the rank."""
        self.counts[label] = self.counts.get(label, 0) + 1
        if self.limit is None:
            self._overall.append((0, path, label))
            return
        text = os.fsencode(f"{self.seed}/{name}")
        rank = -int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
        floor = self._floors.setdefault(label, [])
        _push(floor, (rank, path, label), MIN_PER_CLASS)
        _push(self._overall, (rank, path, label), self.limit)
        if self.keep_rest:
            self._added.append((rank, path, label))

    @property
    def is_full(self) -> bool:
        """Whether the sample leaves out some of the files."""
        return sum(self.counts.values()) > len(self._sample())

    def chosen(self) -> list[tuple[str, str]]:
        """Return the sample as (path, class) pairs, sorted by path."""
        return sorted((path, label) for _, path, label in self._sample())

    def rest(self) -> list[tuple[str, str]]:
        """Return the files that are not in the sample as (path, class) pairs, by rank.

        Any number of them from the first are a random sample of them. Empty without `keep_rest`.
        """
        left_out = set(self._added).difference(self._sample())
        return [(path, label) for _, path, label in sorted(left_out, reverse=True)]

    def _sample(self) -> Collection[_Ranked]:
        if self.limit is None:
            return self._overall
        sample = {entry for floor in self._floors.values() for entry in floor}
        for entry in sorted(self._overall, reverse=True):
            if len(sample) >= self.limit:
                break
            sample.add(entry)
        return sample


def _push(heap: list[_Ranked], entry: _Ranked, limit: int) -> None:
    """Keep the `limit` entries of lowest hash; hashes are negated, so the worst is at the top."""
    if len(heap) < limit:
        heapq.heappush(heap, entry)
    elif entry > heap[0]:
        heapq.heapreplace(heap, entry)


@dataclass
class Listing:
    """The listed files by split and class: exact counts and a bounded sample.

    Attributes
    ----------
    origin
        Where the splits come from, as text.
    limit, seed
        Maximum size of each split's sample (None: no limit), and its seed.
    skipped
        Files that were left out.
    merged
        Pairs of class names (in train, in another split) that were treated as one class.
    n_not_images
        Number of files left out because their suffix is not an image format.
    keep_rest
        Whether the files that are not in the samples are kept too.
    locate
        Returns the path of a listed image. Datasets that are not made of files write the image to
        a file first.
    groups
        Groups that a manifest's column names, by path.
    """

    origin: str
    limit: int | None
    seed: int
    splits: dict[str, Reservoir] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    merged: list[tuple[str, str]] = field(default_factory=list)
    n_not_images: int = 0
    keep_rest: bool = False
    locate: Callable[[str], Path] = Path
    groups: dict[str, str] = field(default_factory=dict)

    def reservoir(self, split: str) -> Reservoir:
        """Return the reservoir of a split; it is created on first use."""
        return self.splits.setdefault(split, Reservoir(self.limit, self.seed, self.keep_rest))

    def files(self, split: str) -> list[tuple[Path, str]]:
        """Return the sample of a split as (file, class) pairs."""
        return [(self.locate(path), label) for path, label in self.splits[split].chosen()]

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names of train, in natural order."""
        return tuple(sorted(self.splits["train"].counts, key=natural_key))

    def add_file(self, split: str, label: str, path: str, name: str) -> None:
        """Add a file whose suffix is an image format, or that has none; skip any other."""
        file_name = name.rpartition("/")[2]
        stem, dot, suffix = file_name.rpartition(".")
        if not dot or not stem or f".{suffix.lower()}" in known_suffixes():
            self.reservoir(split).add(name, label, path)
            return
        self.n_not_images += 1
        if self.n_not_images <= MAX_LISTED:
            reason = f"the suffix .{suffix} is not an image format"
            self.skipped.append(Skipped(Path(path), reason))

    def finish(self, root: Path) -> "Listing":
        """Check that every class occurs in train; report skipped files that were only counted.

        A manifest of images that are only evaluated has no train split.
        """
        everywhere = dict(chain.from_iterable(r.counts.items() for r in self.splits.values()))
        known = self.splits["train"].counts if "train" in self.splits else everywhere
        for split, reservoir in self.splits.items():
            for label in sorted(reservoir.counts.keys() - known.keys()):
                if not reservoir.counts[label]:
                    del reservoir.counts[label]
                    continue
                raise DataError(
                    f"{shown(label)} is a class of {split} that train does not have. Every class "
                    f"of {split} must occur in train. Classes of train: {_some(known)}."
                )
        if self.n_not_images > MAX_LISTED:
            more = self.n_not_images - MAX_LISTED
            reason = f"{more:,} more files whose suffix is not an image format"
            self.skipped.append(Skipped(root, reason))
        return self


@dataclass(frozen=True)
class Remainder:
    """Images of a dataset that were listed and not read, because they are not in the sample.

    Attributes
    ----------
    files
        Names with labels, by listed split. Any number of them from the first are a random sample.
    locate
        Returns the path of a name, see `Listing.locate`.
    group_by, seed
        As given to `load_dataset`.
    groups
        See `Listing.groups`.
    """

    files: Mapping[str, Sequence[tuple[str, int]]] = field(default_factory=dict)
    locate: Callable[[str], Path] = Path
    group_by: str | None = None
    seed: int = 0
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Number of images by split; splits without any are left out."""
        return {name: len(files) for name, files in self.files.items() if files}


def _some(names: Iterable[str]) -> str:
    listed = [shown(n) for n in sorted(names, key=natural_key)]
    return ", ".join(listed[:20]) + (f", ... ({len(listed)})" if len(listed) > 20 else "")


def stratified_rows(
    images: Sequence[LabelledImage], most: int, min_per_class: int, seed: int
) -> NDArray[np.int64]:
    """Draw about `most` images, in proportion to the classes but at least a few of each.

    Returns
    -------
    Their positions in `images`, in ascending order.
    """
    if len(images) <= most:
        return np.arange(len(images))
    labels = np.array([image.label for image in images])
    order = np.array(content_order((image.digest for image in images), seed))
    chosen: list[int] = []
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        quota = max(min_per_class, round(most * len(rows) / len(images)))
        chosen += rows[:quota].tolist()
    return np.array(sorted(chosen), dtype=np.int64)


def balanced_rows(
    labels: Labels, most: int, order: Sequence[int] | NDArray[np.int64]
) -> NDArray[np.int64]:
    """Draw at most `most` rows, as evenly over the classes as their sizes allow.

    Every class is drawn from once before any is drawn from again. With more classes than `most`,
    some classes are not drawn from.

    Parameters
    ----------
    labels
        Class of every row, (n,).
    order
        All rows in the order in which they are drawn, (n,).

    Returns
    -------
    The drawn rows, in ascending order.
    """
    if len(labels) <= most:
        return np.arange(len(labels))
    drawn = np.asarray(order)
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = drawn[labels[drawn] == label]
        turn[rows] = np.arange(len(rows))
    return np.sort(drawn[np.argsort(turn[drawn], kind="stable")][:most])


def content_order(digests: Iterable[str], seed: int) -> list[int]:
    """Return a pseudo-random order of images that is determined by each image's content.

    The first images in this order hardly change when images are added to the dataset, so results
    cached for them stay useful.
    """
    copies: Counter[str] = Counter()
    keys = []
    for digest in digests:
        copies[digest] += 1
        text = f"{seed} {digest} {copies[digest]}"
        keys.append(hashlib.blake2b(text.encode(), digest_size=8).digest())
    return sorted(range(len(keys)), key=keys.__getitem__)
