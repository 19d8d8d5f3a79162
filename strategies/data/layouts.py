"""Folder layouts: find the split and class folders of a folder or archive, or refuse it."""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from strategies.core.errors import DataError
from strategies.data.image import Skipped, shown

SPLIT_WORDS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "eval"),
    "test": ("test", "testing", "tst"),
}
_SPLIT_OF = {word: split for split, words in SPLIT_WORDS.items() for word in words}
_TREE_LINES = 12

Prefix = tuple[str, ...]


def split_of(name: str) -> str | None:
    """Return the split that a folder name or manifest value denotes, or None.

    Case, punctuation, numbers and words such as "set" or "images" are ignored.
    """
    words = [w for w in re.split(r"[^a-z]+", name.lower()) if w]
    words = [re.sub(r"(set|data|split)$", "", w) or w for w in words]
    words = [w for w in words if w not in ("set", "data", "dataset", "images", "imgs", "split")]
    return _SPLIT_OF.get(words[0]) if len(words) == 1 else None


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key for natural order (``"2" < "10"``), ignoring case."""
    parts = re.split(r"([0-9]+)", name.casefold())
    key = [(0, int(p), "") if i % 2 else (1, 0, p) for i, p in enumerate(parts) if p]
    return [*key, (2, 0, name)]


def same_spelling(name: str) -> str:
    """Return a normalised name: equal for names that differ only in case or Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", name).casefold()).strip()


class FolderTree:
    """The folders of a folder on disk, listed on demand; links to folders count as folders."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[Prefix, tuple[list[str], int]] = {}

    def _list(self, prefix: Prefix) -> tuple[list[str], int]:
        if prefix in self._listed:
            return self._listed[prefix]
        folders, n_files = [], 0
        try:
            with os.scandir(self.root.joinpath(*prefix)) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if is_folder(entry):
                        folders.append(entry.name)
                    else:
                        n_files += 1
        except OSError as error:
            where = shown(self.root.joinpath(*prefix))
            raise DataError(f"{where} cannot be listed: {error.strerror}.") from error
        self._listed[prefix] = sorted(folders, key=natural_key), n_files
        return self._listed[prefix]

    def folders(self, prefix: Prefix) -> list[str]:
        """Return the names of the visible subfolders, in natural order."""
        return self._list(prefix)[0]

    def n_files(self, prefix: Prefix) -> int:
        """Return the number of files that lie directly in a folder."""
        return self._list(prefix)[1]


class NameTree:
    """The folders of slash-separated member names, as in an archive."""

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        self.root = root
        self._folders: dict[Prefix, set[str]] = {}
        self._n_files: dict[Prefix, int] = {}
        for name in names:
            parts = PurePosixPath(name).parts[:-1]
            if any(part.startswith(".") for part in parts):
                continue
            self._n_files[parts] = self._n_files.get(parts, 0) + 1
            for depth, part in enumerate(parts):
                self._folders.setdefault(parts[:depth], set()).add(part)

    def folders(self, prefix: Prefix) -> list[str]:
        """Return the names of the visible subfolders, in natural order."""
        return sorted(self._folders.get(prefix, ()), key=natural_key)

    def n_files(self, prefix: Prefix) -> int:
        """Return the number of files that lie directly in a folder."""
        return self._n_files.get(prefix, 0)


Tree = FolderTree | NameTree
"""Read access to the folder structure of a folder or archive."""


def find_splits(tree: Tree, prefix: Prefix = ()) -> dict[str, Prefix]:
    """Return the folder of each split; ``{"train": ()}`` if the root contains class folders.

    Raises
    ------
    DataError
        If there are no subfolders, or both split folders and other folders.
    """
    names = tree.folders(prefix)
    if not names:
        raise DataError(
            f"{shown(tree.root.joinpath(*prefix))} has no subfolders. Give a folder with one "
            f"subfolder per class.{format_tree(tree)}"
        )
    found = {name: split_of(name) for name in names}
    splits = {split: (*prefix, name) for name, split in found.items() if split}
    if splits:
        if len(splits) < len(names) or "train" not in splits:
            raise ambiguous_layout(tree)
        return splits
    if len(names) == 1 and tree.folders((*prefix, names[0])) and not tree.n_files(prefix):
        # A single outer folder, as unpacking an archive creates.
        return find_splits(tree, (*prefix, names[0]))
    return {"train": prefix}


def ambiguous_layout(tree: Tree) -> DataError:
    """Return the error for an ambiguous layout; the message shows the folder tree."""
    return DataError(
        f"The layout of {shown(tree.root)} is ambiguous. Give either one folder per class, or "
        "train/ with optional val/ and test/ and no other folder, or a CSV manifest "
        f"(path,label,split).{format_tree(tree)}"
    )


def format_tree(tree: Tree) -> str:
    """Return the first lines of a tree, for error messages."""
    lines = [f"{shown(tree.root.name)}/  ({tree.n_files(())} files)"]
    for name in tree.folders(()):
        inner = tree.folders((name,))
        lines.append(f"  {shown(name)}/  ({len(inner)} folders, {tree.n_files((name,))} files)")
        lines += [f"    {shown(below)}/" for below in inner[:3]]
        if len(inner) > 3:
            lines.append("    ...")
    if len(lines) > _TREE_LINES:
        lines = [*lines[:_TREE_LINES], f"  ... {len(tree.folders(()))} folders"]
    return " It contains:\n  " + "\n  ".join(lines)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one; a broken link counts as a file."""
    try:
        return entry.is_dir()
    except OSError:
        return False  # reading it as a file will report the reason


def walk(folder: Path, skipped: list[Skipped]) -> Iterator[os.DirEntry[str]]:
    """Yield the visible files below a folder; follow links, but visit every real folder once.

    Folders that cannot be listed are added to `skipped`. Files are not collected in memory.
    """
    seen: set[tuple[int, int]] = set()
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            status = current.stat()
            if (status.st_dev, status.st_ino) in seen:
                skipped.append(Skipped(current, "a link to a folder that was already listed"))
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(current) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if is_folder(entry):
                        pending.append(Path(entry.path))
                    else:
                        yield entry
        except OSError as error:
            skipped.append(Skipped(current, f"cannot be listed: {error.strerror or error}"))
