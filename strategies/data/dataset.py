"""The dataset: load labelled images, find duplicates, and split into train, val and test."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np

from strategies.core.cache import ArrayCache
from strategies.core.limits import MAX_IMAGES, MAX_QUARANTINE
from strategies.core.progress import OnProgress, ignore
from strategies.data.image import (
    LabelledImage,
    Leak,
    Pair,
    Skipped,
    Split,
    groups_of,
    labels_of,
    shown,
)
from strategies.data.inspection import (
    check_max_quarantine,
    check_quarantine,
    drop_empty_classes,
    read_images,
)
from strategies.data.layouts import same_spelling
from strategies.data.listing import list_dataset
from strategies.data.near_duplicates import duplicate_groups, find_leaks, find_matches, pairs_of
from strategies.data.sampling import Listing, Remainder
from strategies.data.splitting import (
    NO_GROUPS,
    add_missing_splits,
    assign_groups,
    follow_groups,
    is_grouped,
    user_groups,
)

logger = logging.getLogger(__name__)

__all__ = ["Dataset", "LabelledImage", "Split", "groups_of", "labels_of", "load_dataset"]

_SPLIT_TITLES = {"test": "test", "val": "validation"}
_READ_AT_ONCE = 1024


@dataclass(frozen=True)
class Dataset:
    """Labelled images, split: train to fit, validation to select, test to evaluate once.

    Attributes
    ----------
    test
        None: there are no test images, neither in the data nor held out.
    split_source
        Where each split comes from and how many images it has, as text.
    skipped
        Files that were left out. No file is ever changed or deleted.
    listed
        Exact number of files per class before sampling and reading, for every split that the
        data contain ("train" alone if they are not split).
    pairs
        Exact and near-duplicates among all images.
    leaks
        How many images of a given split occur in another; kept by `hide_test`.
    similar_class_names
        Pairs of class names that differ only in case or Unicode form.
    is_sampled
        Whether only a sample of the images was read.
    n_hidden
        Number of test images that `hide_test` removed.
    remainder
        The images that the sample leaves out, if `load_dataset` was asked to keep them.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split | None
    split_source: str
    skipped: tuple[Skipped, ...] = ()
    listed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    pairs: tuple[Pair, ...] = ()
    leaks: tuple[Leak, ...] = ()
    similar_class_names: tuple[tuple[str, str], ...] = ()
    is_sampled: bool = False
    n_hidden: int = 0
    remainder: Remainder = field(default_factory=Remainder, compare=False, repr=False)

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def fit_split(self) -> Split:
        """Train and validation together, for a fit that needs no validation images."""
        return self.train + self.val

    @property
    def n_per_class(self) -> float:
        """Mean number of images per class in train and validation together."""
        return len(self.fit_split) / self.n_classes

    @property
    def n_by_class(self) -> tuple[int, ...]:
        """Number of files per class over all splits, exact even if only a sample was read."""
        if not self.listed:
            labels = labels_of(self.fit_split + (self.test or ()))
            return tuple(np.bincount(labels, minlength=self.n_classes).tolist())
        return tuple(map(sum, zip(*self.listed.values(), strict=True)))

    def hide_test(self) -> "Dataset":
        """Return the dataset without the test images and labels, and without unread images."""
        hidden = {p.path for p in self.test or ()}
        pairs = tuple(p for p in self.pairs if not {p.first.path, p.second.path} & hidden)
        n_hidden = self.n_hidden + len(self.test or ())
        return replace(self, test=None, pairs=pairs, n_hidden=n_hidden, remainder=Remainder())

    def with_val_in_train(self) -> "Dataset":
        """Return the dataset with validation moved into train, for a final fit."""
        return replace(self, train=self.fit_split, val=())


def load_dataset(
    data: Path | str,
    *,
    val: Path | None = None,
    test: Path | None = None,
    hold_out_test: bool = True,
    root: Path | None = None,
    group_by: str | None = None,
    max_images: int | None = MAX_IMAGES,
    keep_rest: bool = False,
    max_quarantine: float = MAX_QUARANTINE,
    seed: int = 0,
    n_workers: int = 2,
    cache: ArrayCache | None = None,
    on_progress: OnProgress = ignore,
) -> Dataset:
    """Load a folder, archive, manifest or Hugging Face dataset as a `Dataset`.

    Splits that the data contain, or that `val` and `test` give separately, are kept. Missing test
    (with `hold_out_test`) and validation splits are drawn at random, stratified by class, in whole
    groups. A group is a set of exact and near-duplicates, a series that the file names suggest and
    the images confirm, or the images that `group_by` or a manifest's column groups.

    Parameters
    ----------
    data
        A folder of class folders or of ``train/ [val/] [test/]``, a CSV, TSV or Parquet manifest,
        an uncompressed tar archive, or ``hfds/NAME``. It is never changed.
    val, test
        Folders of class folders outside `data`, used as these splits.
    root
        Base folder of a manifest's relative paths; by default the manifest's folder.
    group_by
        A regular expression searched in the path below the data folder. Images with the same
        first capturing group (or the same match) form a group. ``"none"`` groups only duplicates.
    max_images
        Most images read of a given split, but `sampling.MIN_PER_CLASS` of a class; None: all.
    keep_rest
        Whether the other images can be added later (`read_rest`, `extend`).
    max_quarantine
        Maximum share of unreadable images.
    cache
        Saves decoding images that were read before and have not changed.

    Raises
    ------
    DataError
        If the layout is none of these, or too few images, or fewer than two classes, can be read.
    """
    check_max_quarantine(max_quarantine)
    data = Path(data)
    listing = list_dataset(
        data, val=val, test=test, root=root, max_images=max_images, seed=seed, keep_rest=keep_rest
    )
    splits, bad = _read_splits(listing, n_workers, cache, on_progress)
    n_read = sum(map(len, splits.values()))
    check_quarantine(data, bad, n_read, max_quarantine)
    dataset = _assemble(data, listing, splits, bad, group_by, seed, hold_out_test=hold_out_test)
    on_progress("duplicates", n_read, n_read)
    return _logged(dataset)


def _logged(dataset: Dataset) -> Dataset:
    """Return a dataset, and log its size."""
    logger.info(
        "%s: %d train, %d validation, %d test images of %d classes, %d not readable; splits: %s",
        *(dataset.root, len(dataset.train), len(dataset.val), len(dataset.test or ())),
        *(dataset.n_classes, len(dataset.skipped), dataset.split_source),
    )
    return dataset


def _read_splits(
    listing: Listing, n_workers: int, cache: ArrayCache | None, on_progress: OnProgress
) -> tuple[dict[str, Split], list[Skipped]]:
    """Read the listed files; return the images of every split and the unreadable files."""
    index = {name: i for i, name in enumerate(listing.classes)}
    splits: dict[str, Split] = {}
    bad: list[Skipped] = []
    for name in ("train", "val", "test"):
        if name in listing.splits:
            files = [(path, index[label]) for path, label in listing.files(name)]
            splits[name], unreadable = read_images(files, n_workers, cache, on_progress)
            bad += unreadable
    return splits, bad


def _assemble(
    data: Path,
    listing: Listing,
    splits: dict[str, Split],
    bad: list[Skipped],
    group_by: str | None,
    seed: int,
    *,
    hold_out_test: bool,
) -> Dataset:
    """Find duplicates over all splits, group the images, and draw the missing splits."""
    skipped = listing.skipped + bad
    names, splits = drop_empty_classes(data, listing.classes, splits, skipped)
    everything = tuple(p for split in splits.values() for p in split)
    matches = find_matches(everything, seed)
    groups = duplicate_groups(len(everything), matches)
    n_train = len(splits["train"])
    given = user_groups(everything, group_by, listing.groups, data)
    grouped, grouped_by = assign_groups(everything, groups, given, data, seed, n_train)
    pairs = tuple(
        replace(pair, is_grouped=is_grouped(given, match.first, match.second))
        for pair, match in zip(pairs_of(grouped, matches), matches, strict=True)
    )
    start = 0
    for name, split in splits.items():
        splits[name] = grouped[start : start + len(split)]
        start += len(split)
    leaks = find_leaks(splits, pairs)
    source = listing.origin
    has_test = hold_out_test or "test" in splits
    missing = [name for name in ("test", "val") if name not in splits]
    if not has_test:
        missing.remove("test")
        splits["test"] = ()
    if missing:
        splits = add_missing_splits(splits, len(names), seed)
        drawn = " and ".join(_SPLIT_TITLES[name] for name in missing)
        source += f"; {drawn} split off at random, stratified by class, "
        source += f"grouped by {grouped_by} (seed {seed})"
    counts = ", ".join(f"{len(splits[name])} {name}" for name in ("train", "val", "test"))
    return Dataset(
        name=shown(data.resolve().name),
        root=data,
        classes=tuple(shown(name) for name in names),
        train=splits["train"],
        val=splits["val"],
        test=splits["test"] if has_test else None,
        split_source=f"{source}: {counts}",
        skipped=tuple(skipped),
        listed={
            name: tuple(reservoir.counts.get(label, 0) for label in names)
            for name, reservoir in listing.splits.items()
        },
        pairs=pairs,
        leaks=leaks,
        similar_class_names=_similar_names(names, listing.merged),
        is_sampled=any(r.is_full for r in listing.splits.values()),
        remainder=_remainder(listing, names, group_by, seed),
    )


def _remainder(
    listing: Listing, names: tuple[str, ...], group_by: str | None, seed: int
) -> Remainder:
    """Return the images that were not read, of the classes that the dataset has."""
    index = {name: label for label, name in enumerate(names)}
    files = {
        split: tuple((path, index[name]) for path, name in reservoir.rest() if name in index)
        for split, reservoir in listing.splits.items()
    }
    return Remainder(files, listing.locate, group_by, seed, listing.groups)


def read_rest(
    dataset: Dataset,
    wanted: Mapping[str, int],
    n_workers: int,
    cache: ArrayCache | None = None,
    on_progress: OnProgress = ignore,
    must_stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, Split], dict[str, int]]:
    """Read images that the sample left out.

    Parameters
    ----------
    wanted
        How many images to read of every listed split.
    must_stop
        Asked after every `_READ_AT_ONCE` images.

    Returns
    -------
    images, tried
        The readable images, and how many files were tried, by listed split.
    """
    images: dict[str, Split] = {}
    tried: dict[str, int] = {}
    rest, total, done = dataset.remainder, sum(wanted.values()), 0
    for name in [n for n in ("test", "val", "train") if n in wanted]:  # train is cut, if any
        found: list[LabelledImage] = []
        files, start = rest.files[name][: wanted[name]], 0
        while start < len(files) and not must_stop():
            block = files[start : start + _READ_AT_ONCE]
            located = [(rest.locate(path), label) for path, label in block]
            found += read_images(located, n_workers, cache)[0]
            start, done = start + len(block), done + len(block)
            on_progress("images", done, total)
        images[name], tried[name] = tuple(found), start
    return images, tried


def extend(dataset: Dataset, more: Mapping[str, Split]) -> Dataset:
    """Add images that the sample left out to its splits; return the dataset of all of them.

    Splits that the data contain keep their own images. Missing ones are drawn from the new images
    as they were from the sample, whose images keep their splits: see `follow_groups`. The images
    have no thumbnails any more: these take the most memory.

    Parameters
    ----------
    more
        Images by listed split (`read_rest`).
    """
    rest = dataset.remainder
    known = {"train": dataset.train, "val": dataset.val, "test": dataset.test or ()}
    fixed = {*dataset.listed, *(["test"] if dataset.test is None else [])}
    given = {n: known[n] + more.get(n, ()) for n in ("val", "test") if n in fixed}
    drawn = {name: split for name, split in known.items() if name not in given}
    homes = [name for name, split in drawn.items() for _ in split]
    pool = (*chain.from_iterable(drawn.values()), *more.get("train", ()))
    everything = (*pool, *chain.from_iterable(given.values()))
    duplicates = duplicate_groups(len(everything), find_matches(everything, rest.seed))
    for group_by in (rest.group_by, NO_GROUPS):
        named = user_groups(everything, group_by, rest.groups, dataset.root)
        grouped, _ = assign_groups(
            everything, duplicates, named, dataset.root, rest.seed, len(pool)
        )
        splits, new = follow_groups(grouped[: len(pool)], homes)
        # Series found only now might leave hardly any image to a split of the sample.
        are_given = named is not None
        if are_given or all(2 * len(splits[n]) >= len(split) for n, split in drawn.items()):
            break
    new_splits: dict[str, Split] = {"train": new, **dict.fromkeys(given, ())}
    added = add_missing_splits(new_splits, dataset.n_classes, rest.seed)
    splits = {name: (*splits[name], *added[name]) for name in drawn}
    start = len(pool)
    for name, split in given.items():
        splits[name] = grouped[start : start + len(split)]
        start += len(split)
    train, val, test = (
        tuple(replace(image, stats=None) for image in splits[name]) for name in known
    )
    counts = f"{len(train)} train, {len(val)} val, {len(test)} test"
    source = f"{dataset.split_source}; with the rest of the images: {counts}"
    dataset = replace(dataset, train=train, val=val, split_source=source, remainder=Remainder())
    return dataset if dataset.test is None else replace(dataset, test=test)


def _similar_names(
    names: tuple[str, ...], merged: list[tuple[str, str]]
) -> tuple[tuple[str, str], ...]:
    """Return the pairs of class names that differ only in case or Unicode form."""
    first: dict[str, str] = {}
    pairs = [(first.setdefault(same_spelling(name), name), name) for name in names]
    return tuple((shown(a), shown(b)) for a, b in [*pairs, *merged] if a != b)
