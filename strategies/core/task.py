"""A folder of labelled pictures as a task: listed, checked, split; what was left out and why."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from strategies.core.errors import DataError
from strategies.core.images import UnreadableImage, decode_image, known_suffixes
from strategies.core.metrics import Labels

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
TEST_SHARE, VAL_SHARE = 0.2, 0.2
"""Shares cut off where the folder brings no split: test of all, then val of what is left."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One readable picture file with its label (an index into the task's classes)."""

    path: Path
    label: int
    digest: str
    width_px: int
    height_px: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was left out, and why."""

    path: Path
    reason: str


Split = tuple[Picture, ...]


def labels_of(split: Split) -> Labels:
    """Return the labels of a split, shape (n,)."""
    return np.array([p.label for p in split], dtype=np.int64)


@dataclass(frozen=True)
class ImageTask:
    """Labelled pictures with a split: train fits, val selects, test judges once.

    Attributes
    ----------
    split_source
        Where each split comes from and how many pictures it has, for people.
    skipped
        Files that were left out. No file is ever changed or deleted.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split | None
    split_source: str
    skipped: tuple[Skipped, ...] = ()

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def fit_split(self) -> Split:
        """Train and val together: all that may be learnt from once nothing is selected."""
        return self.train + self.val

    @property
    def n_per_class(self) -> float:
        """Mean number of pictures a class in train and val."""
        return len(self.fit_split) / self.n_classes

    def hide_test(self) -> "ImageTask":
        """Return the task without the test pictures and labels."""
        return replace(self, test=None)

    def with_val_in_train(self) -> "ImageTask":
        """Return the task with val moved into train, for a last fit that selects nothing."""
        return replace(self, train=self.fit_split, val=())


def load_task(
    data: Path,
    *,
    val: Path | None = None,
    test: Path | None = None,
    seed: int = 0,
    n_workers: int = 2,
) -> ImageTask:
    """Read a folder of class folders, or one of ``train/ [val/] [test/]``, as a task.

    Splits that the folder brings (or that `val` and `test` give apart) are kept. Otherwise test
    and val are cut off class by class at random: a class of one picture stays in train, one of two
    gives its second to test, a larger one gives at least one to each.

    Parameters
    ----------
    data
        The folder. It is only read.
    val, test
        Folders of class folders, kept apart from `data`.
    seed
        Seed of the cut.

    Raises
    ------
    DataError
        If the layout is not one of these, or fewer than two classes have a readable picture.
    """
    folders, split_source = _split_folders(data)
    for name, folder in (("val", val), ("test", test)):
        if folder is None:
            continue
        if name in folders:
            raise DataError(
                f"--{name} {folder} was given, but {data} has a {name} folder of its own "
                f"({folders[name].name}). Leave one of the two out."
            )
        _require_folder(folder)
        folders[name] = folder
        split_source += f", {name} from --{name}"
    classes, found, skipped = _list_classes(folders)
    read = {name: _read_pictures(files, n_workers) for name, files in found.items()}
    skipped += [s for _, bad in read.values() for s in bad]
    splits = {name: good for name, (good, _) in read.items()}
    classes, splits = _drop_empty_classes(data, classes, splits, skipped)
    splits, made = _cut_missing_splits(splits, len(classes), seed)
    if made:
        split_source += f"; {' and '.join(made)} cut at random by class (seed {seed})"
    split_source += ": " + ", ".join(f"{len(splits[k])} {k}" for k in SPLIT_NAMES)
    return ImageTask(
        name=data.resolve().name,
        root=data,
        classes=classes,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        split_source=split_source,
        skipped=tuple(skipped),
    )


def _require_folder(folder: Path) -> None:
    if not folder.exists():
        raise DataError(f"{folder} does not exist. Give a folder with one subfolder per class.")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file. Give a folder with one subfolder per class.")


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _split_folders(data: Path) -> tuple[dict[str, Path], str]:
    """Find which folder holds which split: {"train": ...} alone where there is no split."""
    _require_folder(data)
    subfolders = _subfolders(data)
    spelled = {word: split for split, words in SPLIT_NAMES.items() for word in words}
    named = [(spelled[p.name.lower()], p) for p in subfolders if p.name.lower() in spelled]
    if not named:
        return {"train": data}, "one folder per class"
    folders = dict(named)
    others = [p.name for p in subfolders if p.name.lower() not in spelled]
    if "train" not in folders or len(folders) < len(named) or others:
        seen = ", ".join(f"{p.name}/" for p in subfolders)
        raise DataError(
            f"The layout of {data} is ambiguous: it holds {seen}. Give either one folder per "
            "class, or train/ with optional val/ and test/ and nothing beside them."
        )
    return folders, "as given: " + ", ".join(f"{p.name}/" for p in folders.values())


def _list_classes(
    folders: dict[str, Path],
) -> tuple[tuple[str, ...], dict[str, list[tuple[Path, int]]], list[Skipped]]:
    classes = tuple(p.name for p in _subfolders(folders["train"]))
    if not classes:
        raise DataError(
            f"{folders['train']} has no subfolders. Give a folder with one subfolder per class."
        )
    index = {name: i for i, name in enumerate(classes)}
    suffixes = known_suffixes()
    found: dict[str, list[tuple[Path, int]]] = {}
    skipped: list[Skipped] = []
    for split, folder in folders.items():
        found[split] = []
        for class_folder in _subfolders(folder):
            if class_folder.name not in index:
                raise DataError(
                    f"{class_folder} is a class that {folders['train']} does not have. Every "
                    f"class of {split} must occur in train; known: {', '.join(classes)}."
                )
            for path in _walk(class_folder):
                if path.suffix.lower() in suffixes:
                    found[split].append((path, index[class_folder.name]))
                else:
                    reason = f"not a picture by its name ({path.suffix or 'no suffix'})"
                    skipped.append(Skipped(path, reason))
    return classes, found, skipped


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the visible files below a folder, in a stable order."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        yield from (Path(parent) / f for f in sorted(files) if not f.startswith("."))


def _read_pictures(
    files: Sequence[tuple[Path, int]], n_workers: int
) -> tuple[Split, list[Skipped]]:
    """Decode every file once, in full: only this tells whether it can be read."""

    def read(file: tuple[Path, int]) -> Picture | Skipped:
        path, label = file
        try:
            data = path.read_bytes()
            image = decode_image(data)
        except OSError as error:
            return Skipped(path, error.strerror or str(error))
        except UnreadableImage as error:
            return Skipped(path, str(error))
        return Picture(path, label, hashlib.sha256(data).hexdigest(), image.width, image.height)

    with ThreadPoolExecutor(n_workers) as pool:
        results = list(pool.map(read, files))
    good = tuple(r for r in results if isinstance(r, Picture))
    return good, [r for r in results if isinstance(r, Skipped)]


def _drop_empty_classes(
    data: Path, classes: tuple[str, ...], splits: dict[str, Split], skipped: list[Skipped]
) -> tuple[tuple[str, ...], dict[str, Split]]:
    used = sorted({p.label for p in splits["train"]})
    if len(used) < 2:
        raise DataError(
            f"{data} has readable pictures of {len(used)} class(es); at least two are needed. "
            f"Subfolders seen: {', '.join(classes)}; files left out: {len(skipped)}"
            + "".join(f"\n  {s.path}: {s.reason}" for s in skipped[:5])
        )
    for label, name in enumerate(classes):
        if label not in used:
            skipped.append(Skipped(data / name, "a class without a readable picture in train"))
    index = {old: new for new, old in enumerate(used)}
    kept = {
        name: tuple(replace(p, label=index[p.label]) for p in split if p.label in index)
        for name, split in splits.items()
    }
    return tuple(classes[label] for label in used), kept


def _cut_missing_splits(
    splits: dict[str, Split], n_classes: int, seed: int
) -> tuple[dict[str, Split], list[str]]:
    made = []
    train, result = splits["train"], dict(splits)
    for name, share in (("test", TEST_SHARE), ("val", VAL_SHARE)):
        if name in result:
            continue
        train, result[name] = _cut(train, n_classes, share, seed, 2 if name == "test" else 3)
        made.append(name)
    return result | {"train": train}, made


def _cut(
    split: Split, n_classes: int, share: float, seed: int, smallest: int
) -> tuple[Split, Split]:
    """Cut a share of every class with at least `smallest` pictures off, at least one each."""
    rng = np.random.default_rng(seed)
    labels = labels_of(split)
    cut: set[int] = set()
    for label in range(n_classes):
        rows = np.flatnonzero(labels == label)
        n_cut = max(1, round(share * len(rows))) if len(rows) >= smallest else 0
        cut.update(rng.permutation(rows)[:n_cut].tolist())
    return (
        tuple(p for i, p in enumerate(split) if i not in cut),
        tuple(p for i, p in enumerate(split) if i in cut),
    )
