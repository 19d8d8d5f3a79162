"""Grouped, stratified train/test splitting, and the detection of image series by file name."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from strategies.core.errors import DataError
from strategies.core.metrics import LEVEL, Labels, proportion
from strategies.data.image import LabelledImage, Split, groups_of, labels_of
from strategies.data.near_duplicates import connected
from strategies.data.sampling import content_order
from strategies.data.thumbnails.vectors import correlations, grey_thumbnails

NO_GROUPS = "none"
"""Value of ``--group-by`` that groups only duplicates."""
MIN_SERIES, MIN_IN_SERIES = 10, 0.1
"""File names are accepted as series only if the median class has this many series, and this share
of all images is in a series of two or more."""
SERIES_RESEMBLANCE = 0.6
"""How often an image must be more similar to one of its series than to another of its class
(chance: 0.5)."""
TEST_SHARE, VAL_SHARE = 0.2, 0.2
"""Shares of splits that are missing: test of all images, then validation of the rest."""
_DRAWS = 600
_LAST_NUMBER = re.compile(r"^(.*?)[^0-9A-Za-z]*[0-9]+[^0-9]*$")

Rows = NDArray[np.int64]
Names = list[str | None]
GroupOrder = Callable[[Split, Rows, int], Sequence[int]]
"""Takes a split, the group of every image and a seed; returns the groups in an order."""


def user_groups(
    images: Sequence[LabelledImage],
    group_by: str | None,
    column: Mapping[str, str],
    root: PurePath,
) -> dict[str, Names] | None:
    """Return the groups that the user gives, by their source; None: the user gives none.

    Parameters
    ----------
    group_by
        A regular expression searched in the path below `root`; images with the same first
        capturing group (or the same match) form a group. ``"none"``: no groups.
    column
        Groups that a manifest's column names, by path.

    Raises
    ------
    DataError
        If `group_by` is not a regular expression, or matches no path.
    """
    if group_by == NO_GROUPS:
        return {}
    names: dict[str, Names] = {}
    if column:
        names["the manifest's group column"] = [column.get(str(p.path)) for p in images]
    if group_by is not None:
        names[f"--group-by {group_by}"] = _matches(images, group_by, root)
    return names or None


def is_grouped(names_by_source: Mapping[str, Names] | None, one: int, other: int) -> bool:
    """Return whether a source of groups puts two images into one, by their positions."""
    pairs = ((names[one], names[other]) for names in (names_by_source or {}).values())
    return any(a is not None and a == b for a, b in pairs)


def assign_groups(
    images: Sequence[LabelledImage],
    duplicates: Rows,
    given: Mapping[str, Names] | None,
    root: PurePath,
    seed: int,
    n_train: int,
) -> tuple[Split, str]:
    """Assign a group to every image: by duplicates, and by `given` groups or series in the names.

    Parameters
    ----------
    duplicates
        Group numbers of duplicates, (n,).
    given
        The groups of the user (`user_groups`). None searches the names for series.
    n_train
        Number of images, from the first, that are searched for series: those that may be split.

    Returns
    -------
    split, source
        The same images with groups, and what they were grouped by, as text.
    """
    if given is None:
        given = _series(images[:n_train], root, seed)
    links: list[tuple[int, int]] = []
    by_duplicates: Names = [str(d) for d in duplicates]
    for names in (by_duplicates, *given.values()):
        first: dict[str, int] = {}
        links += [(first.setdefault(n, row), row) for row, n in enumerate(names) if n is not None]
    component = connected(len(images), links)
    grouped = (replace(p, group=int(number)) for p, number in zip(images, component, strict=True))
    return tuple(grouped), " and ".join(["duplicates", *given])


def _matches(images: Sequence[LabelledImage], group_by: str, root: PurePath) -> Names:
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise DataError(
            f"--group-by {group_by!r} is not a valid regular expression: {error}."
        ) from error
    found = [pattern.search(_below(p, root)) for p in images]
    if not any(found):
        examples = ", ".join(_below(p, root) for p in images[:3])
        raise DataError(
            f"--group-by {group_by!r} matches none of the {len(images)} paths, for example "
            f"{examples}. It is searched in the path below the data folder."
        )
    return [
        None if m is None else (m.group(1) if pattern.groups and m.group(1) else m.group())
        for m in found
    ]


def _below(image: LabelledImage, root: PurePath) -> str:
    if image.path.is_relative_to(root):
        return image.path.relative_to(root).as_posix()
    return image.path.as_posix()


def _series(images: Sequence[LabelledImage], root: PurePath, seed: int) -> dict[str, Names]:
    """Return the series in the names if images of one series are more similar than others."""
    sources: dict[str, Callable[[LabelledImage], str | None]] = {
        "file names up to the last number": _before_last_number,
        "folders below the class": _folder_below_class(root),
    }
    labels = labels_of(tuple(images))
    found = {}
    for source, name_of in sources.items():
        names = [name_of(p) for p in images]
        if _names_form_series(images, labels, names, seed):
            pairs = zip(labels, names, strict=True)
            found[source] = [None if n is None else f"{label}/{n}" for label, n in pairs]
    return found


def _before_last_number(image: LabelledImage) -> str | None:
    match = _LAST_NUMBER.match(image.path.stem)
    if match is None or not match.group(1):
        return None
    return f"{image.path.parent}/{match.group(1)}"


def _folder_below_class(root: PurePath) -> Callable[[LabelledImage], str | None]:
    def name_of(image: LabelledImage) -> str | None:
        parts = PurePath(_below(image, root)).parts
        return "/".join(parts[:-1]) if len(parts) > 2 else None

    return name_of


def _names_form_series(
    images: Sequence[LabelledImage], labels: Labels, names: Names, seed: int
) -> bool:
    """Return whether names form many series of similar images (rank test on thumbnails)."""
    rng = np.random.default_rng(seed)
    known = np.unique([n or "" for n in names], return_inverse=True)[1]
    n_series, n_in_series = [], 0
    drawn: list[tuple[int, int, int]] = []
    rows_by_class = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    for rows in rows_by_class:
        rows = rows[[names[r] is not None for r in rows]]
        series, counts = np.unique(known[rows], return_counts=True)
        n_series.append(len(series))
        several = series[counts > 1]
        n_in_series += int(counts[counts > 1].sum())
        if len(series) < 2 or not len(several):
            continue
        for _ in range(max(1, _DRAWS // len(rows_by_class))):
            same_series = rows[known[rows] == rng.choice(several)]
            others = rows[known[rows] != known[same_series[0]]]
            one, two = rng.choice(same_series, 2, replace=False)
            other = rng.choice(others)
            drawn.append((one, two, other))
    too_few = n_in_series < MIN_IN_SERIES * len(images) or np.median(n_series) < MIN_SERIES
    if too_few or len(drawn) < 30:
        return False
    one, two, other = np.array(drawn).T
    grey = grey_thumbnails(images)
    is_closer = correlations(grey, one, two) > correlations(grey, one, other)
    return proportion(float(np.mean(is_closer)), len(is_closer), LEVEL).low > SERIES_RESEMBLANCE


def order_by_content(split: Split, group: Rows, seed: int) -> Sequence[int]:
    """Return the groups of a split in a pseudo-random order that their images' content determines.

    The order is not that of samples (`sampling.stratified_rows`), which would otherwise consist
    of the images of the split that is drawn last.

    Parameters
    ----------
    group
        Group of every image, numbered from 0, (n,).
    """
    first: dict[int, str] = {}
    for image, number in zip(split, group.tolist(), strict=True):
        first[number] = min(first.get(number, image.digest), image.digest)
    return content_order((f"split {first[number]}" for number in range(len(first))), seed)


def add_missing_splits(
    splits: Mapping[str, Split],
    n_classes: int,
    seed: int,
    order: GroupOrder = order_by_content,
) -> dict[str, Split]:
    """Draw the splits that are missing (test, then validation) from train, stratified by class.

    A class of one group stays in train, one of two or three groups gives one group to test, and a
    larger one gives at least one group to each split. Images that are added to the dataset leave
    nearly all others in their splits, so their features stay useful and results comparable.

    Parameters
    ----------
    order
        Returns the order in which the groups of a split are drawn.
    """
    result = dict(splits)
    # A class gives to test if it has two groups, and to validation if three remain after that.
    for name, share, smallest in (("test", TEST_SHARE, 2), ("val", VAL_SHARE, 3)):
        if name not in splits:
            result["train"], result[name] = split_off(
                result["train"], n_classes, share, seed, smallest, order
            )
    return result


def follow_groups(images: Split, homes: Sequence[str]) -> tuple[dict[str, Split], Split]:
    """Put images into the splits in which others of their groups are, so that none is divided.

    If images of a group are in several splits, all go into train if one of them is there, else
    into validation.

    Parameters
    ----------
    homes
        The split of each of the first images; the others have none yet.

    Returns
    -------
    splits, new
        The splits, and the images of groups that are in no split.
    """
    home_of: dict[int, str] = {}
    settled = tuple(zip(images, homes, strict=False))
    for name in ("test", "val", "train"):  # the last one wins
        home_of |= {image.group: name for image, home in settled if home == name}
    splits = {
        name: tuple(image for image in images if home_of.get(image.group) == name)
        for name in ("train", "val", "test")
    }
    return splits, tuple(image for image in images if image.group not in home_of)


def split_off(
    split: Split,
    n_classes: int,
    share: float,
    seed: int,
    smallest: int,
    order: GroupOrder = order_by_content,
) -> tuple[Split, Split]:
    """Split off a share of every class in whole groups: return (remaining, split off).

    A class with fewer than `smallest` groups is not split. Any other class gives at least one
    group and keeps at least one. A group is taken only if that brings its classes closer to the
    share.
    """
    if not split:
        return (), ()
    labels = labels_of(split)
    group = np.unique(groups_of(split), return_inverse=True)[1]
    members = _members(group, labels, n_classes)
    n_groups = np.bincount(members.classes, minlength=n_classes)
    per_class = np.bincount(labels, minlength=n_classes)
    share_of_class = np.maximum(1, np.round(share * per_class)).astype(np.int64)
    targets = np.where(n_groups >= smallest, share_of_class, 0)
    taken = _choose_groups(members, n_groups, targets, order(split, group, seed))
    is_taken = taken[group]
    return (
        tuple(p for p, taken_off in zip(split, is_taken, strict=True) if not taken_off),
        tuple(p for p, taken_off in zip(split, is_taken, strict=True) if taken_off),
    )


class _Members(NamedTuple):
    """The classes of every group with their numbers of images, one group after the other.

    Those of group g are at ``starts[g]:starts[g + 1]``. A table of all groups and classes would
    not fit into memory for many of both.
    """

    classes: Rows
    counts: Rows
    starts: Rows

    def of(self, group: int) -> tuple[Rows, Rows]:
        """Return the classes of a group, and its number of images of each."""
        where = slice(self.starts[group], self.starts[group + 1])
        return self.classes[where], self.counts[where]


def _members(group: Rows, labels: Labels, n_classes: int) -> _Members:
    keys, counts = np.unique(group * n_classes + labels, return_counts=True)
    starts = np.searchsorted(keys // n_classes, np.arange(int(group.max()) + 2))
    return _Members(keys % n_classes, counts, starts)


def _choose_groups(
    members: _Members, n_groups: Rows, targets: Rows, order: Sequence[int]
) -> NDArray[np.bool_]:
    """Choose groups in an order until every class reaches its target, as closely as possible.

    Parameters
    ----------
    n_groups, targets
        Number of groups, and of images to choose, of every class, (classes,).
    """
    taken = np.zeros(len(order), dtype=bool)
    left, missing = n_groups.copy(), targets.copy()

    def take(g: int, classes: Rows, counts: Rows) -> None:
        taken[g] = True
        left[classes] -= 1
        missing[classes] -= counts

    for g in order:
        classes, counts = members.of(g)
        gain = np.minimum(counts, np.maximum(missing[classes], 0)).sum()
        if 2 * gain > counts.sum() and (left[classes] > 1).all():
            take(g, classes, counts)
    # A class whose groups are all too large still gives its smallest one.
    untouched = (targets > 0) & (missing == targets)
    for g in sorted(order, key=lambda g: int(members.of(g)[1].sum())) if untouched.any() else ():
        classes, counts = members.of(g)
        aimed = targets[classes]
        needed = ((aimed > 0) & (missing[classes] == aimed)).any()
        if needed and not taken[g] and (left[classes] > 1).all():
            take(g, classes, counts)
    return taken
