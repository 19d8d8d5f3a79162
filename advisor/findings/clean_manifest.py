"""A manifest of the images that the findings leave: without copies, leaks and contradictions."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from advisor.findings.exports import write_table
from advisor.findings.rule import count
from advisor.types.advice import Finding
from advisor.types.options import SuspiciousLabels
from strategies.core.errors import DataError, StorageError, unknown_name
from strategies.data.dataset import Dataset
from strategies.data.image import LabelledImage, Pair, Split, shown
from strategies.data.near_duplicates import CERTAIN

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_ORDER = ("train", "val", "test")
_SPLIT_TITLES = {"val": "validation"}


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """An image of a manifest; `split` and `group` are empty where it has none."""

    path: Path
    label: str
    split: str
    group: str


@dataclass(frozen=True)
class CleanManifest:
    """What `clean_manifest` leaves of a dataset.

    Attributes
    ----------
    n
        Number of readable images of the dataset.
    rows
        The images that are left, by split.
    changes
        What was left out, grouped or relabelled, and why: a sentence by code.
    """

    n: int
    rows: tuple[ManifestRow, ...]
    changes: Mapping[str, str]


@dataclass(frozen=True)
class _Left:
    """The images that are left so far, with the given split of each by its id, and all pairs."""

    images: Split
    split_of: Mapping[int, str]
    pairs: Sequence[Pair]

    def of(self, split: str) -> Iterator[LabelledImage]:
        """Yield the images of a given split."""
        return (p for p in self.images if self.split_of[id(p)] == split)

    def not_of_test(self) -> Iterator[LabelledImage]:
        """Yield the images that may be changed: a test split that was given stays as it is."""
        return (p for p in self.images if self.split_of[id(p)] != "test")


def clean_manifest(
    dataset: Dataset, findings: Sequence[Finding], suspicious: SuspiciousLabels = "keep"
) -> CleanManifest:
    """Leave out what the findings name, and group near-duplicates; no file is changed.

    Left out are unreadable files (TL001), images of train that also occur in validation or test
    and images of validation that also occur in test (TL004), identical images under two labels
    (TL003), and all but one of exact copies (TL002). Near-duplicates (TL005) get one group, as do
    the series and groups that the dataset was loaded with. A test split that was given keeps all
    its readable images.

    Parameters
    ----------
    dataset
        The dataset that the findings are about, with its test split and all its images.
    suspicious
        Whether suspicious labels (TL009) are kept, left out, or replaced by the predicted class.

    Raises
    ------
    DataError
        If `dataset` is a sample, or a class would lose all its images.
    """
    if suspicious not in get_args(SuspiciousLabels):
        raise DataError(unknown_name("suspicious", suspicious, get_args(SuspiciousLabels)))
    refuse_sample(dataset)
    left, changes = _all_images(dataset), {}
    n = len(left.images)
    if dataset.skipped:
        changes["TL001"] = f"{count(len(dataset.skipped), 'file')} left out: unreadable."
    for code, rule, why in _RULES:
        out = rule(left)
        if out:
            changes[code] = f"{count(len(out), 'image')} left out{_where(out, left)}: {why}."
        left = _without(left, {id(p) for p in out})
    suspects = {s.path: s for f in findings if f.code == "TL009" for s in f.affected}
    doubtful = [p for p in left.images if p.path in suspects]
    if doubtful:
        changes["TL009"] = _about_labels(len(doubtful), suspicious)
    if suspicious == "drop":
        left = _without(left, {id(p) for p in doubtful})
    n_near = len({id(i) for p in _near_pairs(left) for i in (p.first, p.second)})
    if n_near:
        changes["TL005"] = (
            f"{count(n_near, 'near-duplicate')} grouped: those of one group stay in one split."
        )
    labels = {p: str(s.suggested_label) for p, s in suspects.items() if suspicious == "relabel"}
    rows = tuple(_rows(dataset, left, labels))
    _refuse_lost_classes(dataset, rows)
    return CleanManifest(n, rows, dict(sorted(changes.items())))


def refuse_sample(dataset: Dataset) -> None:
    """Raise `DataError` for a sample: the images outside it would be missing in a manifest."""
    if dataset.is_sampled:
        raise DataError(
            f"--write-manifest needs all images of {shown(dataset.root)}, and only a sample was "
            "read. Give --max-images 0 to read them all."
        )


def check_manifest_path(path: Path) -> None:
    """Check that a manifest can be written to this path.

    Raises
    ------
    StorageError
        If it exists, has another suffix than .csv or .tsv, or its folder does not exist.
    """
    given = f"--write-manifest {shown(path)}"
    if path.suffix.lower() not in _DELIMITERS:
        raise StorageError(f"{given} is no .csv or .tsv file. Give such a name.")
    if path.exists():
        raise StorageError(f"{given} already exists. Give another path.")
    if not path.absolute().parent.is_dir():
        raise StorageError(f"{given}: there is no folder {shown(path.parent)}. Create it first.")


def write_manifest(manifest: CleanManifest, path: Path) -> None:
    """Write a manifest that `load_dataset` reads, as CSV or TSV by the suffix.

    Its paths are relative to its folder where the images are in that folder, else absolute.
    Columns without any value (split, group) are left out.

    Raises
    ------
    StorageError
        If the path cannot be used (`check_manifest_path`), or the file cannot be written.
    """
    check_manifest_path(path)
    folder = path.absolute().parent
    optional = [n for n in ("split", "group") if any(getattr(r, n) for r in manifest.rows)]
    columns = ("path", "label", *optional)
    rows = ({n: getattr(r, n) for n in columns[1:]} | _path(r, folder) for r in manifest.rows)
    write_table(path, columns, rows, _DELIMITERS[path.suffix.lower()])


def _path(row: ManifestRow, folder: Path) -> dict[str, object]:
    path = row.path.absolute()
    return {"path": path.relative_to(folder) if path.is_relative_to(folder) else path}


def _all_images(dataset: Dataset) -> _Left:
    """Return all images with their given splits: a split that was drawn counts as train."""
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test or ()}
    split_of = {
        id(p): name if name in dataset.listed else "train"
        for name, split in splits.items()
        for p in split
    }
    images = tuple(p for split in splits.values() for p in split)
    in_order = sorted(images, key=lambda p: (_ORDER.index(split_of[id(p)]), p.path))
    return _Left(tuple(in_order), split_of, dataset.pairs)


def _without(left: _Left, ids: set[int]) -> _Left:
    images = tuple(p for p in left.images if id(p) not in ids)
    return _Left(images, left.split_of, left.pairs)


def _leaks(left: _Left) -> list[LabelledImage]:
    """Return the images of train that occur in validation or test, and of validation in test."""
    similar: dict[str, set[str]] = {}
    for pair in left.pairs:
        similar.setdefault(pair.first.digest, set()).add(pair.second.digest)
        similar.setdefault(pair.second.digest, set()).add(pair.first.digest)
    out: dict[int, LabelledImage] = {}
    for split, source in (("test", "train"), ("test", "val"), ("val", "train")):
        exposed: set[str] = set()
        for image in left.of(split):
            if id(image) not in out:
                exposed |= {image.digest} | similar.get(image.digest, set())
        out |= {id(p): p for p in left.of(source) if p.digest in exposed}
    return list(out.values())


def _contradictions(left: _Left) -> list[LabelledImage]:
    """Return the images that have another label than an identical or nearly identical image."""
    by_digest: dict[str, list[LabelledImage]] = {}
    for image in left.not_of_test():
        by_digest.setdefault(image.digest, []).append(image)
    alike = [same for same in by_digest.values() if len(same) > 1]
    for pair in left.pairs:
        first, second = pair.first.digest, pair.second.digest
        if not pair.exact and pair.similarity >= CERTAIN:
            alike.append(by_digest.get(first, []) + by_digest.get(second, []))
    wrong = [same for same in alike if len({p.label for p in same}) > 1]
    return list({id(p): p for same in wrong for p in same}.values())


def _copies(left: _Left) -> list[LabelledImage]:
    """Return all but the first of identical images; after `_leaks`, they are in one split."""
    first: dict[str, LabelledImage] = {}
    return [p for p in left.not_of_test() if first.setdefault(p.digest, p) is not p]


_RULES: tuple[tuple[str, Callable[[_Left], list[LabelledImage]], str], ...] = (
    ("TL004", _leaks, "they also occur in another split"),
    ("TL003", _contradictions, "the same image has another label elsewhere"),
    ("TL002", _copies, "exact copies, of which one is kept"),
)
"""In this order: what a rule leaves out does not count for the next one."""


def _near_pairs(left: _Left) -> list[Pair]:
    ids = {id(p) for p in left.images}
    near = [p for p in left.pairs if not p.exact and {id(p.first), id(p.second)} <= ids]
    return [p for p in near if p.first.group == p.second.group]


def _rows(dataset: Dataset, left: _Left, labels: Mapping[Path, str]) -> Iterator[ManifestRow]:
    has_splits = bool({"val", "test"} & dataset.listed.keys())
    sizes = Counter(p.group for p in left.images)
    for image in left.images:
        yield ManifestRow(
            image.path,
            labels.get(image.path, dataset.classes[image.label]),
            left.split_of[id(image)] if has_splits else "",
            str(image.group) if image.group >= 0 and sizes[image.group] > 1 else "",
        )


def _refuse_lost_classes(dataset: Dataset, rows: Sequence[ManifestRow]) -> None:
    known = {row.label for row in rows if row.split in ("", "train")}
    lost = [name for name in dataset.classes if name not in known]
    if lost:
        raise DataError(
            f"Without what the findings name, no image of {shown(lost[0])} would be left in "
            "train. Mend the labels (TL003, TL009) or the splits (TL004) first."
        )


def _where(images: Sequence[LabelledImage], left: _Left) -> str:
    """Return the numbers by split, if there are several given splits."""
    if len(set(left.split_of.values())) < 2:
        return ""
    counts = Counter(_SPLIT_TITLES.get(s, s) for s in (left.split_of[id(p)] for p in images))
    return " (" + ", ".join(f"{name} {n:,}" for name, n in counts.items()) + ")"


def _about_labels(n: int, suspicious: SuspiciousLabels) -> str:
    labels = count(n, "suspicious label")
    if suspicious == "drop":
        return f"{count(n, 'image')} left out: suspicious labels."
    if suspicious == "relabel":
        return f"{labels} replaced by the predicted class."
    return (
        f"{labels} kept. --suspicious-labels drop leaves them out, relabel takes the predicted "
        "class."
    )
