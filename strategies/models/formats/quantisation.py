"""Lower precision of ONNX models: float16, and int8 by static quantisation of onnxruntime.

Only the body has it. Preprocessing and head stay in float32: resizing needs whole numbers of more
bits, and the head has a hundredth of the weights and decides.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from strategies.core.errors import NotApplicable
from strategies.data.decoding import ImageSource, read_image
from strategies.models.formats.graph import INPUT, quiet

Precision = Literal["float32", "float16", "int8"]
N_CALIBRATION, N_CHOICE = 100, 100
"""Images that value ranges are measured on, and others that choose the calibration."""
MAX_HISTOGRAM_BYTES = 2 << 30
"""Memory for the activations that onnxruntime keeps to make histograms of them."""
_Rows = Sequence[NDArray[np.float32]]
_LAYERS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Parts:
    """An ONNX model in three parts: images to crops, crops to features, features to outputs."""

    preprocessing: onnx.ModelProto
    body: onnx.ModelProto
    head: onnx.ModelProto

    def joined(self) -> onnx.ModelProto:
        """Return the whole model."""
        body, head = (
            onnx.compose.add_prefix(part, prefix, rename_inputs=False, rename_outputs=False)
            for part, prefix in ((self.body, "body/"), (self.head, "head/"))
        )
        # `add_prefix` does not rename in subgraphs, which the preprocessing has.
        model = onnx.compose.merge_models(self.preprocessing, body, io_map=[("crops", "crops")])
        names = [given.name for given in head.graph.input]
        return onnx.compose.merge_models(model, head, io_map=[(name, name) for name in names])


@dataclass(frozen=True)
class Calibration:
    """A way to choose the ranges of int8.

    Attributes
    ----------
    only_robust
        Whether the first, the last and all depthwise convolutions stay in float32, and everything
        else but convolutions and products of matrices.
    """

    method: str
    only_robust: bool = False

    def __str__(self) -> str:
        return f"{self.method}, {'without sensitive layers' if self.only_robust else 'all layers'}"


CALIBRATIONS = (
    Calibration("MinMax"),
    Calibration("Percentile"),
    Calibration("Entropy"),
    Calibration("Percentile", only_robust=True),
    Calibration("MinMax", only_robust=True),
)


def session(model: bytes) -> Any:
    """Return a session of onnxruntime on the CPU. Its calls are untyped."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def as_float16(body: onnx.ModelProto) -> onnx.ModelProto:
    """Return a body whose weights and activations are float16; input and output are float32."""
    copy = onnx.ModelProto()
    copy.CopyFrom(body)
    with quiet():
        model = OnnxModel(convert_float_to_float16(copy, keep_io_types=True))
    model.topological_sort()  # the casts of inputs were appended
    converted: onnx.ModelProto = model.model
    return converted


def as_int8(parts: Parts, images: Sequence[ImageSource]) -> tuple[Parts, str]:
    """Return a model with a quantised body, and the name of the calibration.

    Weights are int8 with a scale per channel, activations uint8. Of the `CALIBRATIONS`, the one
    with the smallest difference of probabilities to float32, on images that no range was measured
    on, is used. EfficientNet-Lite and other networks with ReLU6 are quantised well by any.

    Parameters
    ----------
    images
        `N_CALIBRATION` + `N_CHOICE` images are used, mixed over the classes. With fewer, half of
        them measure the ranges.

    Raises
    ------
    NotApplicable
        If there are no two images, or no calibration succeeds.
    """
    if len(images) < 2:
        raise NotApplicable(
            "int8 needs images to measure the ranges of activations on, and has "
            f"{len(images)}. Give labelled images with --check DATA, or use float16."
        )
    preprocess = session(parts.preprocessing.SerializeToString())
    crops = [
        preprocess.run(None, {INPUT: np.asarray(read_image(image))[np.newaxis]})[0]
        for image in images[: N_CALIBRATION + N_CHOICE]
    ]
    half = min(N_CALIBRATION, len(crops) // 2)
    expected = _probabilities(parts, crops[half:])
    best: tuple[float, Parts, str] | None = None
    with tempfile.TemporaryDirectory() as folder:
        prepared = _prepared(parts.body, Path(folder))
        for calibration in CALIBRATIONS:
            body = _quantised(prepared, calibration, crops[:half], Path(folder))
            if body is None:
                continue
            found = replace(parts, body=body)
            error = float(np.abs(_probabilities(found, crops[half:]) - expected).mean())
            if best is None or error < best[0]:
                best = error, found, str(calibration)
    if best is None:
        raise NotApplicable("onnxruntime cannot quantise this network. Use float16.")
    return best[1], best[2]


def _prepared(body: onnx.ModelProto, folder: Path) -> Path:
    """Fuse and infer shapes, as onnxruntime wants it before quantisation; return the file."""
    source, prepared = folder / "float.onnx", folder / "prepared.onnx"
    onnx.save(body, source)
    with quiet():
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
    return prepared


def _quantised(
    prepared: Path, calibration: Calibration, crops: _Rows, folder: Path
) -> onnx.ModelProto | None:
    """Return the quantised body; None if the calibration needs more memory, or has no layer."""
    model = onnx.load(prepared)
    if calibration.method != "MinMax":
        crops = crops[: MAX_HISTOGRAM_BYTES // _activation_bytes(model)]
    nodes = _robust_nodes(model) if calibration.only_robust else None
    if not crops or nodes == []:
        return None
    target = folder / "int8.onnx"
    with quiet():
        quantization.quantize_static(
            prepared,
            target,
            _Crops(crops),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_quantize=nodes,
            calibrate_method=quantization.CalibrationMethod[calibration.method],
        )
    return onnx.load(target)


def _robust_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the names of the layers that lose little: neither depthwise, nor first or last."""
    sizes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in _LAYERS]
    return [node.name for node in layers[1:-1] if not _is_depthwise(node, sizes)]


def _is_depthwise(node: onnx.NodeProto, sizes: Mapping[str, Sequence[int]]) -> bool:
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    return groups > 1 and groups == sizes.get(node.input[1], [0])[0]


def _activation_bytes(model: onnx.ModelProto) -> int:
    """Return about how many bytes all activations of one image take."""
    shapes = (value.type.tensor_type.shape.dim for value in model.graph.value_info)
    return 4 * sum(int(np.prod([d.dim_value or 1 for d in shape])) for shape in shapes) or 1


def _probabilities(parts: Parts, crops: _Rows) -> NDArray[np.float32]:
    body = session(parts.body.SerializeToString())
    head = session(parts.head.SerializeToString())
    names = [output.name for output in body.get_outputs()]
    features = (dict(zip(names, body.run(names, {"crops": x}), strict=True)) for x in crops)
    return np.concatenate([head.run(None, row)[0] for row in features])


class _Crops(quantization.CalibrationDataReader):  # type: ignore[misc]  # an untyped base
    """Hands crops to onnxruntime one by one."""

    def __init__(self, crops: _Rows) -> None:
        self._crops = iter(crops)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next input of the body, None at the end."""
        crop = next(self._crops, None)
        return None if crop is None else {"crops": crop}
