"""Export to ONNX files. Importing this module needs the extra ``onnx``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxscript
import torch
from torch import nn

from strategies.core.atomic_files import atomic_file
from strategies.core.errors import StorageError
from strategies.data.decoding import ImageSource, Pixels
from strategies.models.classifier import ImageClassifier
from strategies.models.formats.graph import (
    FEATURES,
    INPUT,
    ExportedClassifier,
    example_images,
    in_order,
    output_names,
    quiet,
)
from strategies.models.formats.quantisation import (
    Parts,
    Precision,
    as_float16,
    as_int8,
    session,
)
from strategies.models.reliability.outputs import Outputs, Predictor


def write(
    classifier: ImageClassifier,
    path: Path,
    metadata: Mapping[str, Any],
    precision: Precision = "float32",
    calibration: Sequence[ImageSource] = (),
) -> None:
    """Write `ExportedClassifier` as an ONNX model of one file, with metadata as JSON.

    Parameters
    ----------
    precision
        That of the body. Preprocessing, head and softmax are computed in float32.
    calibration
        Images that the value ranges of "int8" are measured on.

    Raises
    ------
    StorageError
        If the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error
    parts = _parts(classifier)
    notes = {"exporter": f"onnxscript {onnxscript.__version__}"}
    if precision == "float16":
        parts = replace(parts, body=as_float16(parts.body))
    elif precision == "int8":
        parts, notes["quantisation"] = as_int8(parts, calibration)
    _save(parts.joined(), path, {**metadata, "precision": precision, **notes})


def add_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    """Add metadata to a file; entries of the same name are replaced.

    Raises
    ------
    StorageError
        If the file cannot be written.
    """
    model = onnx.load(path)
    known = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    _save(model, path, {**known, **metadata})


def predictor(path: Path) -> Predictor:
    """Return what computes the outputs of an image with the file, on the CPU."""
    running: onnxruntime.InferenceSession = session(path.read_bytes())

    def predict(image: Pixels) -> Outputs:
        found = running.run(None, {INPUT: image[np.newaxis]})
        return Outputs(found[0], found[1] if len(found) > 1 else None)

    return predict


def _save(model: onnx.ModelProto, path: Path, metadata: Mapping[str, Any]) -> None:
    del model.metadata_props[:]
    texts = {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}
    onnx.helper.set_model_props(model, texts)
    try:
        with atomic_file(path) as file:
            file.write(model.SerializeToString())
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error


def _parts(classifier: ImageClassifier) -> Parts:
    """Export the parts of `ExportedClassifier` one by one, so that one can be quantised."""
    model = ExportedClassifier(classifier)
    images, sizes = example_images()
    with torch.inference_mode():
        crops = model.preprocessing(images)
        features = in_order(model.body(crops))
    n = {0: torch.export.Dim("n")}
    names = FEATURES[: len(features)]
    read_by_head = dict(zip(names, features, strict=True))
    return Parts(
        _exported(model.preprocessing, {INPUT: images}, sizes, ["crops"]),
        _exported(model.body, {"crops": crops}, n, names),
        _exported(model.head, read_by_head, n, output_names(classifier)),
    )


def _exported(
    module: nn.Module,
    examples: Mapping[str, torch.Tensor],
    sizes: Mapping[int, Any],
    outputs: Sequence[str],
) -> onnx.ModelProto:
    with quiet():
        program = torch.onnx.export(
            module,
            tuple(example.clone() for example in examples.values()),
            input_names=list(examples),
            output_names=list(outputs),
            dynamic_shapes=tuple(sizes for _ in examples),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto  # every access makes another one
    _forget_tracing(model.graph)
    return model


def _forget_tracing(graph: onnx.GraphProto) -> None:
    """Remove the exporter's notes at nodes: source code and paths of this machine."""
    for node in graph.node:
        del node.metadata_props[:]
        for attribute in node.attribute:
            _forget_tracing(attribute.g)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del value.metadata_props[:]
