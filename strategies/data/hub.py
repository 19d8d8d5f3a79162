"""Hugging Face datasets (``hfds/NAME``, image folders, Parquet folders), read by timm's reader.

Their images are bytes in tables. Those that are read are written to the program's cache folder,
named by content. Only ``datasets`` downloads anything, and a dataset's own code is never run.
"""

import hashlib
import importlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs

from strategies.core.errors import DataError, StorageError
from strategies.data.image import Skipped, shown
from strategies.data.layouts import split_of
from strategies.data.sampling import Listing

_IMAGE_KEYS = ("image", "img", "picture", "pixel_values")
_LABEL_KEYS = ("label", "labels", "fine_label", "class", "target", "category")


def is_hub_name(data: Path) -> bool:
    """Return whether `data` has the form ``hfds/NAME`` and no file of this path exists."""
    return len(data.parts) > 1 and data.parts[0].lower() == "hfds" and not data.exists()


def list_hub(listing: Listing, data: Path) -> None:
    """List every split of a dataset. An image is written to the cache when it is located.

    Raises
    ------
    DataError
        If ``datasets`` is not installed, or cannot load the dataset.
    """
    name = _local_or_name(data)
    readers = _readers(data, name)
    folder = Path(platformdirs.user_cache_dir("tl-advisor")) / "images"

    def unpacked(image: str) -> Path:
        given, _, row = image.rpartition("/")
        if given not in readers:  # a file of a folder that is given with --val or --test
            return Path(image)
        reader = readers[given]
        return _unpack(reader.dataset[int(row)][reader.image_key], folder)

    listing.origin, listing.locate = f"as in {shown(data)}", unpacked
    for given, reader in readers.items():
        split = split_of(given)
        if split is None or split in listing.splits:
            listing.skipped.append(Skipped(data, f"its split {given!r} is not used"))
            continue
        names = {index: label for label, index in reader.class_to_idx.items()}
        reservoir = listing.reservoir(split)
        for row, label in enumerate(reader.iter_targets()):
            if label is None or label == -1:
                continue  # a test split whose labels are not public
            reservoir.add(f"{given}/{row}", str(names.get(label, label)), f"{given}/{row}")
        if not reservoir.counts:
            del listing.splits[split]
            listing.skipped.append(Skipped(data, f"its split {given!r} has no labels"))
    if "train" not in listing.splits:
        raise DataError(f"{shown(data)} has no train split; its splits are: {', '.join(readers)}.")


def _local_or_name(data: Path) -> str:
    """Return the local folder if there is one, else the dataset's name on the hub."""
    rest = Path(*data.parts[1:])  # Path turns hfds//data/x into hfds/data/x
    for folder in (rest, Path("/") / rest):
        if folder.is_dir():
            return str(folder)
    return rest.as_posix()


def _readers(data: Path, name: str) -> dict[str, Any]:
    try:
        datasets = importlib.import_module("datasets")
        known_error = importlib.import_module("datasets.exceptions").DatasetsError
        timm_readers = importlib.import_module("timm.data.readers")
    except ModuleNotFoundError as error:
        raise DataError(
            f"{shown(data)} needs Hugging Face datasets: pip install 'tl-advisor[hf]'."
        ) from error
    try:
        # One reader per split, so that the labels of the splits are not mixed.
        splits = datasets.get_dataset_split_names(name)
        features = datasets.load_dataset_builder(name).info.features
        if not features:  # a local folder: its columns are known once it is loaded
            features = datasets.load_dataset(name, split=splits[0]).features
        keys = {
            "input_key": _key(data, features, _IMAGE_KEYS),
            "target_key": _key(data, features, _LABEL_KEYS),
        }
        return {
            split: timm_readers.create_reader(f"hfds/{name}", split=split, **keys)
            for split in splits
        }
    except (OSError, ValueError, KeyError, RuntimeError, known_error) as error:
        raise DataError(
            f"{shown(data)} cannot be loaded as a Hugging Face dataset: "
            f"{type(error).__name__}: {error}"
        ) from error


def _key(data: Path, features: Mapping[str, Any], known: tuple[str, ...]) -> str:
    for name in known:
        if name in features:
            return name
    raise DataError(
        f"{shown(data)} has no column named {' or '.join(known)}; it has {', '.join(features)}."
    )


def _unpack(stored: Mapping[str, Any], folder: Path) -> Path:
    """Return the path of a stored image as a file; write the file if it does not exist."""
    data: bytes | None = stored["bytes"]
    if data is None:
        return Path(stored["path"])
    digest = hashlib.sha256(data).hexdigest()
    suffix = Path(stored["path"] or "").suffix.lower()
    path = folder / digest[:2] / f"{digest}{suffix}"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(temporary).replace(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}.") from error
    return path
