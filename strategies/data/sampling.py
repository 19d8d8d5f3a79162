"""What is kept of a listing of any length: exact counts, and a bounded sample of every class."""

import hashlib
import heapq
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from strategies.core.errors import DataError
from strategies.data.decoding import known_suffixes
from strategies.data.image import Skipped, shown
from strategies.data.layouts import natural_key

MAX_IMAGES, MAX_QUARANTINE = 5_000, 0.10
"""At most so many images of a split are read, and so large a share of them may be unreadable."""

MIN_PER_CLASS = 10
"""A sample keeps at least this many images of every class that has them."""

MAX_NOTES = 1000
"""Files that are no images by their names are named up to this many, then counted."""

_Ranked = tuple[int, str, str]


@dataclass
class Reservoir:
    """A sample of `limit` files, in proportion to the classes, but `MIN_PER_CLASS` of each.

    A file's rank is a hash of its name and the seed: the sample depends neither on the order of
    the listing nor on what else is listed, only on which ranks are lowest. With very many classes
    the floor is kept and the limit is not.

    Attributes
    ----------
    limit
        None keeps everything.
    counts
        Files offered, by class.
    """

    limit: int | None
    seed: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    _overall: list[_Ranked] = field(default_factory=list)
    _floors: dict[str, list[_Ranked]] = field(default_factory=dict)

    def offer(self, name: str, label: str, path: str) -> None:
        """Take note of a file; `name` is what it is ranked by."""
        self.counts[label] = self.counts.get(label, 0) + 1
        if self.limit is None:
            self._overall.append((0, path, label))
            return
        text = os.fsencode(f"{self.seed}/{name}")
        rank = -int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
        floor = self._floors.setdefault(label, [])
        _push(floor, (rank, path, label), MIN_PER_CLASS)
        _push(self._overall, (rank, path, label), self.limit)

    @property
    def is_full(self) -> bool:
        """Whether some files offered are not in the sample."""
        return sum(self.counts.values()) > len(self.chosen())

    def chosen(self) -> list[tuple[str, str]]:
        """Return the sample as (path, class), sorted by path."""
        if self.limit is None:
            return sorted((path, label) for _, path, label in self._overall)
        kept = {entry for floor in self._floors.values() for entry in floor}
        for entry in sorted(self._overall, reverse=True):
            if len(kept) >= self.limit:
                break
            kept.add(entry)
        return sorted((path, label) for _, path, label in kept)


def _push(heap: list[_Ranked], entry: _Ranked, limit: int) -> None:
    """Keep the `limit` entries of lowest hash: ranks are negative, so the heap's top is worst."""
    if len(heap) < limit:
        heapq.heappush(heap, entry)
    elif entry > heap[0]:
        heapq.heapreplace(heap, entry)


@dataclass
class Listing:
    """Files by split and class, as they were found: exact counts and a bounded sample.

    Attributes
    ----------
    origin
        Where the splits come from, for people.
    merged
        Pairs of names (as in train, as elsewhere) that were taken for one class.
    unpacked
        Where the images of a dataset that is not made of files were put, by their names.
    """

    origin: str
    limit: int | None
    seed: int
    splits: dict[str, Reservoir] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    merged: list[tuple[str, str]] = field(default_factory=list)
    n_not_images: int = 0
    unpacked: dict[str, str] = field(default_factory=dict)

    def reservoir(self, split: str) -> Reservoir:
        """Return the sample of a split."""
        return self.splits.setdefault(split, Reservoir(self.limit, self.seed))

    def files(self, split: str) -> list[tuple[Path, str]]:
        """Return the sample of a split as (file, class)."""
        chosen = self.splits[split].chosen()
        return [(Path(self.unpacked.get(path, path)), label) for path, label in chosen]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in natural order: those that train holds."""
        return tuple(sorted(self.splits["train"].counts, key=natural_key))

    def take(self, split: str, label: str, path: str, name: str) -> None:
        """Note a file: an image by its name, or one with no suffix at all, is to be read."""
        last = name.rpartition("/")[2]
        stem, dot, suffix = last.rpartition(".")
        if not dot or not stem or f".{suffix.lower()}" in known_suffixes():
            self.reservoir(split).offer(name, label, path)
            return
        self.n_not_images += 1
        if self.n_not_images <= MAX_NOTES:
            self.skipped.append(Skipped(Path(path), f"not an image by its name (.{suffix})"))

    def finish(self, root: Path) -> "Listing":
        """Check that train knows every class; say what was not listed one by one."""
        known = self.splits["train"].counts if "train" in self.splits else {}
        for split, reservoir in self.splits.items():
            for label in sorted(reservoir.counts.keys() - known.keys()):
                if not reservoir.counts[label]:
                    del reservoir.counts[label]
                    continue
                raise DataError(
                    f"{shown(label)} is a class of {split} that train does not have. Every class "
                    f"of {split} must occur in train; known: {_some(known)}."
                )
        if self.n_not_images > MAX_NOTES:
            more = self.n_not_images - MAX_NOTES
            self.skipped.append(Skipped(root, f"{more:,} more files that are no images by name"))
        return self


def _some(names: Iterable[str]) -> str:
    listed = [shown(n) for n in sorted(names, key=natural_key)]
    return ", ".join(listed[:20]) + (f", ... ({len(listed)})" if len(listed) > 20 else "")


def content_order(digests: Iterable[str], seed: int) -> list[int]:
    """Return an order of images that looks random and follows from each one's own content.

    What is drawn from its beginning hardly changes when images are added, so that what was
    computed for them is not computed for others again.
    """
    copies: Counter[str] = Counter()
    keys = []
    for digest in digests:
        copies[digest] += 1
        text = f"{seed} {digest} {copies[digest]}"
        keys.append(hashlib.blake2b(text.encode(), digest_size=8).digest())
    return sorted(range(len(keys)), key=keys.__getitem__)
