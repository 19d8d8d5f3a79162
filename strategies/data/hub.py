"""Hugging Face datasets (``hfds/NAME``, an image folder, a Parquet folder), by timm's reader.

Their images are bytes in tables: those that are sampled are put into a folder of the program's
own cache, by content. Nothing is downloaded that ``datasets`` would not download itself, and no
dataset's own code is run.
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

_IMAGE_KEYS = ("image", "img", "image", "pixel_values")
_LABEL_KEYS = ("label", "labels", "fine_label", "class", "target", "category")


def is_hub_name(data: Path) -> bool:
    """Whether `data` is written ``hfds/NAME`` and no such file lies here."""
    return len(data.parts) > 1 and data.parts[0].lower() == "hfds" and not data.exists()


def list_hub(data: Path, listing: Listing) -> Listing:
    """List every split of a dataset and put the sampled images into the cache.

    Raises
    ------
    DataError
        If ``datasets`` is not installed, or cannot load this.
    """
    name = _local_or_name(data)
    readers = _readers(data, name)
    folder = Path(platformdirs.user_cache_dir("tl-advisor")) / "images"
    for given, reader in readers.items():
        split = split_of(given)
        if split is None or split in listing.splits:
            listing.skipped.append(Skipped(data, f"its split {given!r} is not used"))
            continue
        names = {index: label for label, index in reader.class_to_idx.items()}
        reservoir = listing.reservoir(split)
        for row, label in enumerate(reader.iter_targets()):
            if label is None or label == -1:
                continue  # a test split whose labels are kept secret
            reservoir.offer(f"{given}/{row}", str(names.get(label, label)), f"{given}/{row}")
        if not reservoir.counts:
            del listing.splits[split]
            listing.skipped.append(Skipped(data, f"its split {given!r} has no labels"))
            continue
        for path, _ in reservoir.chosen():
            stored = reader.dataset[int(path.rpartition("/")[2])][reader.image_key]
            listing.unpacked[path] = str(_unpack(stored, folder))
    if "train" not in listing.splits:
        raise DataError(f"{shown(data)} has no train split; it has: {', '.join(readers)}.")
    return listing


def _local_or_name(data: Path) -> str:
    """Return a folder where there is one: ``hfds//data/x`` reaches us as ``hfds/data/x``."""
    rest = Path(*data.parts[1:])
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
        # Splits are asked for one by one: their labels must not be mixed.
        splits = datasets.get_dataset_split_names(name)
        features = datasets.load_dataset_builder(name).info.features or {}
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
    if not features:
        return known[0]  # not told before loading: image folders use these names
    for name in known:
        if name in features:
            return name
    raise DataError(
        f"{shown(data)} has no column named {' or '.join(known)}; it has {', '.join(features)}."
    )


def _unpack(stored: Mapping[str, Any], folder: Path) -> Path:
    """Return a file with a stored image's bytes, writing it if it is not there yet."""
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
