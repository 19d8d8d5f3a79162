"""Image files of a dataset for one pass, with their labels and splits where these are known."""

from dataclasses import dataclass
from pathlib import Path

from strategies.core.errors import DataError
from strategies.data.image import Skipped, shown
from strategies.data.layouts import FolderTree, walk
from strategies.data.listing import list_data
from strategies.data.sampling import Listing

SPLITS = ("train", "val", "test")
ALL = "all"


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """An image file; without a label or a split, these are empty."""

    path: Path
    label: str
    split: str


@dataclass(frozen=True)
class Files:
    """The image files of a dataset, which may be unreadable, in the order of splits and paths.

    Attributes
    ----------
    origin
        Where the labels and splits come from, as text.
    skipped
        Files that are no images, or stand outside the class folders.
    """

    files: tuple[LabelledFile, ...]
    origin: str
    skipped: tuple[Skipped, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that the dataset contains; empty if it is not split."""
        found = {file.split for file in self.files} - {""}
        return tuple(split for split in SPLITS if split in found)

    def of(self, split: str) -> tuple[LabelledFile, ...]:
        """Return the files of a split, or of all splits.

        Raises
        ------
        DataError
            If the dataset does not have the split.
        """
        if split == ALL:
            return self.files
        if split not in self.splits:
            has = f"it has {', '.join(self.splits)}" if self.splits else "it is not split"
            raise DataError(
                f"The dataset has no {split} split: {has}. Give --split all, or leave it out."
            )
        return tuple(file for file in self.files if file.split == split)


def list_labelled(data: Path, root: Path | None = None) -> Files:
    """List all images of a dataset: a folder, an archive, a manifest, or ``hfds/NAME``.

    Parameters
    ----------
    root
        Base folder of a manifest's relative paths; by default the manifest's folder.

    Raises
    ------
    DataError
        If its layout is not supported; see `listing.list_data`.
    """
    listing = list_data(data, root=root, limit=None, seed=0)
    is_split = set(listing.splits) != {"train"}
    files = [
        LabelledFile(path, shown(label), split if is_split else "")
        for split in SPLITS
        if split in listing.splits
        for path, label in listing.files(split)
    ]
    return Files(tuple(files), listing.origin, tuple(listing.skipped))


def list_any(data: Path, root: Path | None = None) -> Files:
    """List all images of a dataset, or of a folder without subfolders, whose images have no label.

    Raises
    ------
    DataError
        As `list_labelled`, and if there is no image.
    """
    if not data.is_dir() or root is not None or FolderTree(data).folders(()):
        return list_labelled(data, root)
    listing = Listing("one folder, without labels", None, 0)
    for entry in walk(data, listing.skipped):
        listing.add_file("train", "", entry.path, entry.name)
    if "train" not in listing.splits:
        raise DataError(f"{shown(data)} contains no image.")
    files = tuple(LabelledFile(path, "", "") for path, _ in listing.files("train"))
    return Files(files, listing.origin, tuple(listing.skipped))
