"""Export of classifiers to other formats: ONNX files and timm model folders."""

import importlib
from collections.abc import Mapping
from pathlib import Path

from strategies.core.errors import NotApplicable, unknown_name
from strategies.models.classifier import ImageClassifier

FORMATS: Mapping[str, str] = {
    "onnx": "strategies.models.formats.onnx_format",
    "timm": "strategies.models.formats.timm_format",
}
"""Module with ``write(classifier, target)`` of every format. It is imported only on use, because
it may need optional packages."""


def export(classifier: ImageClassifier, target: Path, format: str) -> None:
    """Write a classifier in one of the `FORMATS`.

    Parameters
    ----------
    target
        The file ("onnx") or folder ("timm") to write.

    Raises
    ------
    NotApplicable
        If the format is unknown, needs a package that is not installed, or cannot represent
        this classifier.
    StorageError
        If the target cannot be written.
    """
    if format not in FORMATS:
        raise NotApplicable(unknown_name("format", format, FORMATS))
    try:
        module = importlib.import_module(FORMATS[format])
    except ModuleNotFoundError as error:
        raise NotApplicable(
            f"Writing {format} needs the package {error.name}: pip install 'tl-advisor[{format}]'"
        ) from error
    module.write(classifier, target)
