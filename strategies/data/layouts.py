"""Where a folder's or archive's classes and splits are: found, or refused with what was seen."""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Protocol

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
    """Return the split that a folder's name or a manifest's value spells, if it does.

    Case, punctuation, numbers and a word like "set" or "images" do not matter.
    """
    words = [w for w in re.split(r"[^a-z]+", name.lower()) if w]
    words = [re.sub(r"(set|data|split)$", "", w) or w for w in words]
    words = [w for w in words if w not in ("set", "data", "dataset", "images", "imgs", "split")]
    return _SPLIT_OF.get(words[0]) if len(words) == 1 else None


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key by which ``"2" < "10"``; capital letters do not matter."""
    parts = re.split(r"([0-9]+)", name.casefold())
    key = [(0, int(p), "") if i % 2 else (1, 0, p) for i, p in enumerate(parts) if p]
    return [*key, (2, 0, name)]


def same_spelling(name: str) -> str:
    """Return what two names share that differ only in case or Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", name).casefold()).strip()


class Tree(Protocol):
    """The upper part of a folder or archive, looked at on demand."""

    @property
    def root(self) -> Path:
        """The folder or the archive."""

    def folders(self, prefix: Prefix) -> list[str]:
        """Return the names of the visible subfolders, in natural order."""

    def n_files(self, prefix: Prefix) -> int:
        """Return the number of files that lie directly in a folder."""


class FolderTree:
    """A `Tree` of a folder on disk; links to folders count as folders."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._seen: dict[Prefix, tuple[list[str], int]] = {}

    def _stats(self, prefix: Prefix) -> tuple[list[str], int]:
        if prefix in self._seen:
            return self._seen[prefix]
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
        self._seen[prefix] = sorted(folders, key=natural_key), n_files
        return self._seen[prefix]

    def folders(self, prefix: Prefix) -> list[str]:
        """Return the names of the visible subfolders, in natural order."""
        return self._stats(prefix)[0]

    def n_files(self, prefix: Prefix) -> int:
        """Return the number of files that lie directly in a folder."""
        return self._stats(prefix)[1]


class NameTree:
    """A `Tree` of slash-separated names, as an archive holds them."""

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


def find_splits(tree: Tree, prefix: Prefix = ()) -> dict[str, Prefix]:
    """Find which folder holds which split; ``{"train": ()}`` where the root holds the classes.

    Raises
    ------
    DataError
        If there are no subfolders, or split folders and others lie side by side.
    """
    names = tree.folders(prefix)
    if not names:
        raise DataError(
            f"{shown(tree.root.joinpath(*prefix))} has no subfolders. Give a folder with one "
            f"subfolder per class.{outline(tree)}"
        )
    found = {name: split_of(name) for name in names}
    splits = {split: (*prefix, name) for name, split in found.items() if split}
    if splits:
        if len(splits) < len(names) or "train" not in splits:
            raise ambiguous(tree)
        return splits
    if len(names) == 1 and tree.folders((*prefix, names[0])) and not tree.n_files(prefix):
        return find_splits(tree, (*prefix, names[0]))  # a wrapper, as archives leave behind
    return {"train": prefix}


def ambiguous(tree: Tree) -> DataError:
    """Return the refusal of a layout that could mean two things, with the tree that was seen."""
    return DataError(
        f"The layout of {shown(tree.root)} is ambiguous. Give either one folder per class, or "
        "train/ with optional val/ and test/ and no folder beside them, or a CSV manifest "
        f"(path,label,split).{outline(tree)}"
    )


def outline(tree: Tree) -> str:
    """Return the first lines of a tree, for people."""
    lines = [f"{shown(tree.root.name)}/  ({tree.n_files(())} files)"]
    for name in tree.folders(()):
        inner = tree.folders((name,))
        lines.append(f"  {shown(name)}/  ({len(inner)} folders, {tree.n_files((name,))} files)")
        lines += [f"    {shown(below)}/" for below in inner[:3]]
        if len(inner) > 3:
            lines.append("    ...")
    if len(lines) > _TREE_LINES:
        lines = [*lines[:_TREE_LINES], f"  ... {len(tree.folders(()))} folders"]
    return " It holds:\n  " + "\n  ".join(lines)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a link that leads nowhere is a file."""
    try:
        return entry.is_dir()
    except OSError:
        return False  # reading it as a file will tell why


def walk(folder: Path, skipped: list[Skipped]) -> Iterator[os.DirEntry[str]]:
    """Yield the visible files below a folder, following links, each real folder once.

    What cannot be listed is noted in `skipped`. Nothing is held but the path of open folders.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            status = here.stat()
            if (status.st_dev, status.st_ino) in seen:
                skipped.append(Skipped(here, "a link to a folder that was already listed"))
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if is_folder(entry):
                        waiting.append(Path(entry.path))
                    else:
                        yield entry
        except OSError as error:
            skipped.append(Skipped(here, f"cannot be listed: {error.strerror or error}"))
