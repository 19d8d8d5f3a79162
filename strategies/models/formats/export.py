"""Export of classifiers to other formats: ONNX and ``.pt2`` files, and timm model folders."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from strategies.core.errors import NotApplicable, unknown_name
from strategies.data.decoding import ImageSource
from strategies.models.classifier import ImageClassifier
from strategies.models.formats.graph import metadata_of
from strategies.models.reliability.outputs import Predictor

FORMATS: Mapping[str, str] = {
    "onnx": "strategies.models.formats.onnx_format",
    "pt2": "strategies.models.formats.pt2_format",
    "timm": "strategies.models.formats.timm_format",
}
"""Module of every format: ``write(classifier, target, metadata)``, ``add_metadata(target,
metadata)`` and ``predictor(target)``. It is imported only on use, because it may need optional
packages."""
PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "onnx": ("float32", "float16", "int8"),
    "pt2": ("float32",),
    "timm": ("float32",),
}


def export(
    classifier: ImageClassifier,
    target: Path,
    format: str,
    *,
    precision: str = "float32",
    calibration: Sequence[ImageSource] = (),
) -> None:
    """Write a classifier in one of the `FORMATS`, with its metadata (`graph.metadata_of`).

    Parameters
    ----------
    target
        The file ("onnx", "pt2") or folder ("timm") to write.
    precision
        One of the format's `PRECISIONS`. "float16" halves the file, "int8" leaves 30 to 40% of it
        and is faster on most processors; both cost accuracy.
    calibration
        Images that the ranges of "int8" are measured on; others need none.

    Raises
    ------
    NotApplicable
        If the format or precision is unknown, needs a package that is not installed, or cannot
        represent this classifier.
    StorageError
        If the target cannot be written.
    """
    module = _module(format)
    check_precision(format, precision)
    given: dict[str, Any] = {}
    if precision != "float32":
        given["precision"] = precision
    if precision == "int8":
        given["calibration"] = calibration
    module.write(classifier, target, metadata_of(classifier), **given)


def check_precision(format: str, precision: str) -> None:
    """Check that a format can be written in a precision.

    Raises
    ------
    NotApplicable
        If it cannot; the message names what can.
    """
    if format not in FORMATS:
        raise NotApplicable(unknown_name("format", format, FORMATS))
    if precision not in PRECISIONS["onnx"]:
        raise NotApplicable(unknown_name("precision", precision, PRECISIONS["onnx"]))
    if precision not in PRECISIONS[format]:
        raise NotApplicable(
            f"{format} is written in {' or '.join(PRECISIONS[format])}, not in {precision}. Use "
            f"the format onnx for {precision}."
        )


def predictor(target: Path, format: str) -> Predictor:
    """Return what computes the outputs of an image with an exported file or folder."""
    found: Predictor = _module(format).predictor(target)
    return found


def add_metadata(target: Path, format: str, metadata: Mapping[str, Any]) -> None:
    """Add entries to the metadata of an exported file or folder.

    Raises
    ------
    StorageError
        If the target cannot be written.
    """
    _module(format).add_metadata(target, metadata)


def _module(format: str) -> Any:
    if format not in FORMATS:
        raise NotApplicable(unknown_name("format", format, FORMATS))
    try:
        return importlib.import_module(FORMATS[format])
    except ModuleNotFoundError as error:
        raise NotApplicable(
            f"Writing {format} needs the package {error.name}: pip install 'tl-advisor[{format}]'"
        ) from error
