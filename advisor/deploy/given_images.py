"""Images and labels as scikit-learn's users give them, and the manifest that a run reads."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from strategies.core.errors import DataError, StorageError, TransferError
from strategies.data.decoding import ImageSource, read_image
from strategies.data.image import shown

MANIFEST = "images.csv"
FORMS = (
    "Give a sequence of paths, PIL images or arrays, or one array of images: uint8, (n, h, w, 3) "
    "or (n, h, w)."
)


class InputError(TransferError, ValueError):
    """Images, labels or a parameter of an estimator cannot be used as given."""


def image_list(X: Any) -> list[ImageSource]:
    """Return given images as a list, without reading or copying them.

    Raises
    ------
    InputError
        If they are no sequence, none, or a single image.
    """
    if isinstance(X, np.ndarray) and X.dtype.kind not in "OU":
        is_grey = X.ndim == 3 and X.shape[2] != 3
        if X.dtype != np.uint8 or not (is_grey or (X.ndim == 4 and X.shape[3] == 3)):
            raise InputError(
                f"X is an array of {X.dtype} with shape {X.shape}. {FORMS} Convert floats between "
                "0 and 1 with (255 * X).round().astype('uint8')."
            )
    elif isinstance(X, str | Path | Image.Image) or not hasattr(X, "__len__"):
        raise InputError(f"X is a single {type(X).__name__}. {FORMS}")
    elif hasattr(X, "columns") or getattr(X, "ndim", 1) != 1:
        raise InputError(f"X is a table of shape {X.shape}. {FORMS} Give one of its columns.")
    found = list(X)
    if not found:
        raise InputError(f"X has 0 images. {FORMS}")
    return found


def encoded_labels(y: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the classes, sorted, and the number of its class for every image.

    Raises
    ------
    InputError
        If the labels are no classes, or of one class.
    """
    if y is None:
        raise InputError(
            "A classifier requires y to be passed, but the target y is None. Give a label for "
            "every image."
        )
    try:
        labels = column_or_1d(y, warn=True)
        if labels.dtype.kind == "f" and not np.isfinite(labels).all():
            raise InputError("y contains NaN or infinity. Give a label for every image.")
        check_classification_targets(labels)
        classes, codes = np.unique(labels, return_inverse=True)
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(f"y cannot be used as labels: {error}") from error
    if len(classes) < 2:
        raise InputError(
            f"y has one class, {classes.tolist()[0]!r}. A classifier needs at least two classes."
        )
    return classes, codes


def class_names(classes: NDArray[Any]) -> tuple[str, ...]:
    """Return a name for every label, as reports show it; different for different labels."""
    names = [shown(str(label)).strip() for label in classes.tolist()]
    if "" in names or len(set(names)) < len(names):
        names = [f"{number}: {name}" for number, name in enumerate(names)]
    return tuple(names)


def write_manifest(
    images: Sequence[ImageSource], codes: Sequence[int], names: Sequence[str], folder: Path
) -> Path:
    """Write a manifest of labelled images; write images in memory as PNG files beside it.

    Parameters
    ----------
    codes, names
        The number of the class of every image, and the names of the classes.

    Raises
    ------
    InputError
        If an image in memory is none, or a path is given twice.
    StorageError
        If the folder cannot be written.
    """
    row_of: dict[Path, int] = {}
    manifest = folder / MANIFEST
    try:
        # File names need not be valid UTF-8: their bytes are kept.
        with manifest.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("path", "label"))
            for row, (image, code) in enumerate(zip(images, codes, strict=True)):
                path = _path(image, row, folder)
                first = row_of.setdefault(path, row)
                if first != row:
                    raise InputError(
                        f"{shown(path)} is given twice, as image {first} and image {row} of X. "
                        "Give every image once."
                    )
                writer.writerow((str(path), names[code]))
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error}") from error
    return manifest


def _path(image: ImageSource, row: int, folder: Path) -> Path:
    """Return the absolute path of an image; write it first if it is in memory."""
    if isinstance(image, str | Path):
        return Path(image).absolute()
    try:
        rgb = read_image(image)
    except DataError as error:
        raise InputError(f"Image {row} of X: {error}") from error
    path = folder / f"{row:06d}.png"
    rgb.save(path, compress_level=1)
    return path
