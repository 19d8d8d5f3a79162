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
from strategies.models.formats.preprocessing import Preprocessing

EXAMPLE_SIZE = (90, 70)
"""Height and width of the image that the graph is traced with; any will do."""


def write(classifier: ImageClassifier, path: Path) -> None:
    """Write an ONNX model: ``images``, uint8 (n, height, width, 3), to ``probabilities``.

    Images are upright RGB of any size; those of one batch have the same. Resizing, cropping and
    normalisation are part of the model, and give the pixels that the program itself uses. The
    class names are stored in the model's metadata.

    Raises
    ------
    StorageError
        If the file cannot be written.
    """
    backbone = classifier.backbone
    metadata = {
        "classes": list(classifier.classes),
        "input_px": backbone.input_px,
        "exporter": f"onnxscript {onnxscript.__version__}",
    }
    device = classifier.device
    preprocessing = Preprocessing(backbone).to(device)
    model = nn.Sequential(preprocessing, classifier.network, nn.Softmax(dim=1)).eval()
    example = torch.zeros(2, *EXAMPLE_SIZE, 3, dtype=torch.uint8, device=device)
    sizes = {axis: torch.export.Dim(name) for axis, name in enumerate(("n", "height", "width"))}
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
            dynamic_shapes=(sizes,),
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
