"""List the image files of a folder, archive, manifest or Hugging Face dataset, per split."""

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from strategies.core.errors import DataError
from strategies.data.archives import is_archive, members
from strategies.data.hub import is_hub_name, list_hub
from strategies.data.image import Skipped, shown
from strategies.data.layouts import (
    FolderTree,
    NameTree,
    Prefix,
    Tree,
    ambiguous_layout,
    find_splits,
    format_tree,
    same_spelling,
    split_of,
    walk,
)
from strategies.data.manifests import MANIFEST_SUFFIXES, manifest_rows
from strategies.data.sampling import Listing


def _list_folder(listing: Listing, data: Path) -> None:
    """List a folder of class folders, or of split folders that contain class folders."""
    tree = FolderTree(data)
    splits = find_splits(tree)
    listing.origin = _origin(splits)
    for split, prefix in _train_first(splits):
        list_split(listing, tree, split, prefix)


def list_split(listing: Listing, tree: Tree, split: str, prefix: Prefix) -> None:
    """List the class folders below `prefix` as one split."""
    names = tree.folders(prefix)
    if not names:
        raise DataError(
            f"{shown(tree.root.joinpath(*prefix))} has no subfolders. Give a folder with one "
            f"subfolder per class.{format_tree(tree)}"
        )
    if n_stray := tree.n_files(prefix):
        where = tree.root.joinpath(*prefix)
        listing.skipped.append(Skipped(where, f"{n_stray:,} files outside the class folders"))
    for name, label in _class_names(listing, split, names):
        folder = tree.root.joinpath(*prefix, name)
        counts = listing.reservoir(split).counts
        counts.setdefault(label, 0)
        _refuse_inner_splits(tree, (*prefix, name))
        start = len(str(folder)) + 1
        for entry in walk(folder, listing.skipped):
            listing.add_file(split, label, entry.path, f"{label}/{entry.path[start:]}")


def _refuse_inner_splits(tree: Tree, prefix: Prefix) -> None:
    """Refuse ``cat/train/1.jpg``: its splits would be mixed without notice."""
    folder = tree.root.joinpath(*prefix)
    for word in ("train", "test", "val", "valid", "training", "testing", "validation"):
        if any((folder / name).is_dir() for name in (word, word.capitalize(), word.upper())):
            raise ambiguous_layout(tree)


def _class_names(listing: Listing, split: str, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (folder name, class); a name equal to one of train except for case is that class."""
    known = [] if split == "train" else listing.classes
    by_spelling: dict[str, list[str]] = {}
    for label in known:
        by_spelling.setdefault(same_spelling(label), []).append(label)
    for name in names:
        candidates = by_spelling.get(same_spelling(name), [])
        if split != "train" and name not in known and len(candidates) == 1:
            listing.merged.append((candidates[0], name))
            yield name, candidates[0]
        else:
            yield name, name


def _list_archive(listing: Listing, data: Path) -> None:
    """List an uncompressed tar archive laid out like a folder."""
    tree = NameTree(data, (name for name, _, _ in members(data)))
    splits = find_splits(tree)
    listing.origin = f"{_origin(splits)}, in a tar archive"
    labels: dict[Prefix, tuple[str, str]] = {}
    for split, prefix in _train_first(splits):
        names = tree.folders(prefix)
        for name, label in _class_names(listing, split, names):
            labels[*prefix, name] = (split, label)
            listing.reservoir(split).counts[label] = 0
            if any(split_of(inner) for inner in tree.folders((*prefix, name))):
                raise ambiguous_layout(tree)
    depths = {len(key) for key in labels}
    for name, _, _ in members(data):
        parts = PurePosixPath(name).parts
        if any(part.startswith(".") for part in parts):
            continue
        found = next((labels[parts[:d]] for d in depths if parts[:d] in labels), None)
        if found is None or len(parts) < 2:
            listing.skipped.append(Skipped(data / name, "outside the class folders"))
            continue
        listing.add_file(*found, str(data / name), name)


def _list_manifest(listing: Listing, data: Path, root: Path | None) -> None:
    """List the files that a CSV, TSV or Parquet manifest names."""
    base = data.parent if root is None else root
    listing.origin = f"as in the manifest {shown(data.name)}"
    for row in manifest_rows(data):
        split = split_of(row.split) if row.split else "train"
        if split is None:
            raise DataError(
                f"{shown(data)}, row {row.number}: split {row.split!r} is none of "
                "train, validation, test. Correct it, or remove the column."
            )
        path = str(base / row.path)
        listing.reservoir(split).add(row.path, row.label, path)
        if row.group:
            listing.groups[path] = row.group
    if not listing.splits:
        raise DataError(f"{shown(data)} lists no image.")
    if len(listing.splits) > 1:
        listing.origin += f": {', '.join(sorted(listing.splits))}"


def list_data(
    data: Path, *, root: Path | None, limit: int | None, seed: int, keep_rest: bool = False
) -> Listing:
    """List `data`: a folder, an archive, a manifest, or ``hfds/NAME``.

    Raises
    ------
    DataError
        If it does not exist, or its layout is not supported.
    """
    if root is not None and data.suffix.lower() not in MANIFEST_SUFFIXES:
        raise DataError(
            f"--root {shown(root)} only applies to a manifest, but {shown(data)} is not one. "
            "Leave --root out."
        )
    listing = Listing("", limit, seed, keep_rest=keep_rest)
    if data.is_dir():
        _list_folder(listing, data)
    elif is_hub_name(data):
        list_hub(listing, data)
    elif not data.exists():
        raise DataError(
            f"{shown(data)} does not exist. Give a folder with one subfolder per class, a CSV "
            "manifest (path,label[,split]), a .tar archive, or hfds/NAME."
        )
    elif is_archive(data):
        _list_archive(listing, data)
    elif data.suffix.lower() in MANIFEST_SUFFIXES:
        _list_manifest(listing, data, root)
    else:
        raise DataError(
            f"{shown(data)} is not a supported file. Give a folder with one subfolder per class, "
            "a CSV, TSV or Parquet manifest (path,label[,split]), or an uncompressed .tar archive."
        )
    return listing.finish(data)


def _origin(splits: dict[str, Prefix]) -> str:
    named = [f"{shown('/'.join(p))}/" for _, p in _train_first(splits) if p]
    if len(splits) > 1:
        return "as given: " + ", ".join(named)
    return f"one folder per class{f' in {named[0]}' if named else ''}"


def _train_first(splits: dict[str, Prefix]) -> list[tuple[str, Prefix]]:
    return [(s, splits[s]) for s in ("train", "val", "test") if s in splits]


def list_dataset(
    data: Path,
    *,
    val: Path | None,
    test: Path | None,
    root: Path | None,
    max_images: int | None,
    seed: int,
    keep_rest: bool = False,
) -> Listing:
    """List a dataset with the splits that were given separately; see `dataset.load_dataset`."""
    if max_images is not None and max_images < 1:
        raise DataError(f"--max-images must be at least 1, got {max_images}.")
    listing = list_data(data, root=root, limit=max_images, seed=seed, keep_rest=keep_rest)
    if "train" not in listing.splits:
        raise DataError(f"{shown(data)} lists no image for train.")
    for name, folder in (("val", val), ("test", test)):
        if folder is not None:
            _add_folder(listing, data, name, folder)
    return listing


def _add_folder(listing: Listing, data: Path, name: str, folder: Path) -> None:
    """List a folder given with --val or --test."""
    if name in listing.splits:
        raise DataError(
            f"--{name} {shown(folder)} was given, but {shown(data)} already has a {name} split. "
            "Leave one of the two out."
        )
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"--{name} {shown(folder)} {problem}. Give a folder of class folders.")
    tree = FolderTree(folder)
    found = find_splits(tree) if tree.folders(()) else {}
    prefix = found["train"] if len(found) == 1 and "train" in found else ()
    list_split(listing, tree, name, prefix)
    listing.finish(folder)
    listing.origin += f", {name} from --{name}"
