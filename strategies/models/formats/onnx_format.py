"""Export to ONNX files. Importing this module needs the extra ``onnx``."""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxscript
import torch
from torch import nn

from strategies.core.errors import StorageError
from strategies.models.classifier import ImageClassifier

_RESIZED = {
    "center": "short side",
    "squash": "both sides",
    "border": "long side (the rest filled with the mean colour)",
}


def write(classifier: ImageClassifier, path: Path) -> None:
    """Write an ONNX model: normalised ``images`` (n, 3, px, px) to ``probabilities``.

    The class names and the preprocessing of images are stored in the model's metadata.

    Raises
    ------
    StorageError
        If the file cannot be written.
    """
    backbone = classifier.backbone
    metadata = {
        "classes": list(classifier.classes),
        "input_px": backbone.input_px,
        "crop_pct": backbone.crop_pct,
        "crop_mode": backbone.crop_mode,
        "interpolation": backbone.interpolation,
        "mean": backbone.mean,
        "std": backbone.std,
        "preparation": f"upright RGB; {_RESIZED[backbone.crop_mode]} resized to "
        "int(input_px / crop_pct) by Pillow (with antialiasing) and centre crop of "
        "input_px x input_px, both in one step; scaled to 0..1; minus mean, divided by std",
        "exporter": f"onnxscript {onnxscript.__version__}",
    }
    model = nn.Sequential(classifier.network, nn.Softmax(dim=1)).eval()
    device = next(model.parameters()).device
    example = torch.zeros(2, 3, backbone.input_px, backbone.input_px, device=device)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error
    with _quiet():
        program = torch.onnx.export(
            model,
            (example,),
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {k: json.dumps(v) for k, v in metadata.items()})
    try:
        onnx.save(proto, path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings and log messages of torch's ONNX exporter."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
