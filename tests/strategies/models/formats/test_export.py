import json
import logging
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from strategies.core.errors import NotApplicable, StorageError
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.models.body import Body
from strategies.models.classifier import ImageClassifier, make_network, scale_scores
from strategies.models.features import batches, to_input
from strategies.models.formats.export import add_metadata, export, predictor
from strategies.models.reliability.calibration import Fold, calibrate_reliability, score_depths

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.usefixtures("exported_once")

CLOSE = 1e-4
"""Largest difference of probabilities in float32. The pixels are the same; sums of the network are
added in another order."""


def _classifier(backbone: Backbone, depths: tuple[int, ...]) -> ImageClassifier:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = make_network(backbone, depths, 3).eval()
        torch.nn.init.normal_(network.head.weight)
    return ImageClassifier(("a", "b", "Ω"), backbone, depths, network, "some", {})


def _export(classifier: ImageClassifier, path: Path) -> None:
    export(classifier, path, "onnx")


def _inputs(dataset: Dataset, backbone: Backbone, n: int) -> np.ndarray:
    (pixels,) = batches([p.path for p in dataset.train[:n]], backbone, 1)
    return to_input(pixels, backbone, torch.device("cpu")).numpy()


def _images(dataset: Dataset, n: int) -> np.ndarray:
    """Return images as a user reads them, uint8 (n, height, width, 3)."""
    paths = [image.path for image in dataset.train[:n]]
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])


@pytest.mark.parametrize(
    ("name", "px", "depths"), [("test_resnet", 64, (1, 3)), ("test_vit", 160, (7,))]
)
def test_an_onnx_model_gives_the_same_probabilities_for_any_batch_size(
    load_random: Callable[..., Backbone],
    small_dataset: Dataset,
    tmp_path: Path,
    name: str,
    px: int,
    depths: tuple[int, ...],
) -> None:
    classifier = _classifier(load_random(name, input_px=px), depths)
    _export(classifier, tmp_path / "deep" / "model.onnx")

    session = ort.InferenceSession(
        tmp_path / "deep" / "model.onnx", providers=["CPUExecutionProvider"]
    )

    for n in (1, 2, 5):
        (found,) = session.run(None, {"images": _images(small_dataset, n)})
        expected = classifier.predict_proba([p.path for p in small_dataset.train[:n]])
        np.testing.assert_allclose(found, expected, atol=CLOSE)
    assert len(np.unique(expected, axis=0)) == 5
    assert [o.name for o in session.get_outputs()] == ["probabilities"]


def test_an_onnx_model_is_one_file_with_classes_and_preprocessing(
    load_random: Callable[..., Backbone], small_dataset: Dataset, tmp_path: Path
) -> None:
    backbone = load_random("test_efficientnet", input_px=64)
    classifier = _classifier(backbone, (backbone.n_depths,))
    classifier.network.to(memory_format=torch.channels_last)  # as training leaves it
    logging.getLogger("torch.onnx").setLevel(logging.INFO)
    _export(classifier, tmp_path / "model.onnx")

    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": _images(small_dataset, 4)})

    expected = classifier.predict_proba([p.path for p in small_dataset.train[:4]])
    np.testing.assert_allclose(found, expected, atol=CLOSE)
    metadata = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    assert metadata["classes"] == ["a", "b", "Ω"]
    assert metadata["input_px"] == backbone.input_px
    onnx.checker.check_model(str(tmp_path / "model.onnx"))
    assert {f.name for f in tmp_path.iterdir() if f.is_file()} == {"model.onnx"}
    assert logging.getLogger("torch.onnx").level == logging.INFO


@pytest.mark.parametrize(
    ("name", "px"), [("test_efficientnet", 64), ("test_resnet", 96), ("test_vit", 160)]
)
def test_timm_loads_an_exported_folder_and_gives_the_same_probabilities(
    load_random: Callable[..., Backbone],
    small_dataset: Dataset,
    tmp_path: Path,
    name: str,
    px: int,
) -> None:
    backbone = replace(load_random(name, input_px=px), crop_mode="squash", licence="mit")
    classifier = _classifier(backbone, (backbone.n_depths,))
    export(classifier, tmp_path / "mine", "timm")

    net = timm.create_model(f"local-dir:{tmp_path / 'mine'}", pretrained=True).eval()

    with torch.inference_mode():
        images = torch.from_numpy(_inputs(small_dataset, backbone, 5))
        found = net(images).softmax(1).numpy()
    expected = classifier.predict_proba([p.path for p in small_dataset.train[:5]])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(np.unique(expected, axis=0)) == 5
    data = timm.data.resolve_model_data_config(net)
    assert data["input_size"] == (3, px, px)
    assert tuple(data["mean"]) == backbone.mean
    assert tuple(data["std"]) == backbone.std
    assert data["crop_pct"] == backbone.crop_pct
    assert data["crop_mode"] == "squash"
    assert data["interpolation"] == backbone.interpolation
    assert net.pretrained_cfg["license"] == "mit"
    assert net.pretrained_cfg["label_names"] == ["a", "b", "Ω"]


@pytest.mark.parametrize("depths", [(1,), (1, 3)])
def test_a_cut_network_is_refused_by_the_timm_format_with_an_alternative(
    load_random: Callable[..., Backbone], tmp_path: Path, depths: tuple[int, ...]
) -> None:
    classifier = _classifier(load_random("test_resnet"), depths)

    with pytest.raises(NotApplicable, match="Export it as onnx"):
        export(classifier, tmp_path / "mine", "timm")
    assert not (tmp_path / "mine").exists()


def test_an_unknown_format_is_answered_with_the_closest_one(
    load_random: Callable[..., Backbone], tmp_path: Path
) -> None:
    classifier = _classifier(load_random("test_resnet"), (1,))

    with pytest.raises(NotApplicable, match="Did you mean 'onnx'"):
        export(classifier, tmp_path / "mine", "onxx")


SIZES = ((48, 48), (31, 57), (90, 33), (300, 211))
"""Height and width of images, also larger than the input, odd, and long."""


def _odd_images(n: int = 8) -> list[np.ndarray]:
    """Return smooth images of several sizes; every second one is grey."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(n):
        height, width = SIZES[i % len(SIZES)]
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        image = small.resize((width, height), Image.Resampling.BICUBIC)
        found.append(np.asarray(image.convert("L").convert("RGB") if i % 2 else image))
    return found


@pytest.mark.parametrize(
    ("name", "format", "precision", "tolerance"),
    [
        ("test_efficientnet", "pt2", "float32", CLOSE),
        ("test_vit", "pt2", "float32", CLOSE),
        ("test_efficientnet", "onnx", "float32", CLOSE),
        ("test_efficientnet", "onnx", "float16", 0.02),
        ("test_efficientnet", "onnx", "int8", 0.1),
        ("test_vit", "onnx", "float16", 0.02),
        ("test_vit", "onnx", "int8", 0.1),
    ],
)
def test_an_export_predicts_images_of_any_size_as_the_classifier_does(
    load_random: Callable[..., Backbone],
    tmp_path: Path,
    name: str,
    format: str,
    precision: str,
    tolerance: float,
) -> None:
    backbone = load_random(name) if name == "test_vit" else load_random(name, input_px=64)
    classifier = _classifier(backbone, (backbone.n_depths,))
    # Random networks: one has nearly the same probabilities for all images, one is always sure.
    scale_scores(classifier.network, 10.0 if name == "test_efficientnet" else 0.1)
    target = tmp_path / f"model.{format}"
    images = _odd_images()

    export(classifier, target, format, precision=precision, calibration=images)

    predict = predictor(target, format)
    found = np.concatenate([predict(image).probabilities for image in images])
    expected = classifier.predict_proba(images)
    assert len(np.unique(expected, axis=0)) == len(images)
    assert np.ptp(expected, axis=0).max() > 1.5 * tolerance
    np.testing.assert_allclose(found, expected, atol=tolerance)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == [target.name]
    if format == "onnx":
        _check_precision(onnx.load(target), precision, classifier)


def _check_precision(model: Any, precision: str, classifier: ImageClassifier) -> None:
    """Check how large the weights are, and that input and output are those of float32."""
    n_weights = sum(p.numel() for p in classifier.network.body.parameters())
    n_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    assert n_bytes / n_weights < {"float32": 4.4, "float16": 2.4, "int8": 2.0}[precision]
    props = {p.key: json.loads(p.value) for p in model.metadata_props}
    assert props["precision"] == precision
    assert ("quantisation" in props) == (precision == "int8")
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert not any(node.metadata_props for node in model.graph.node)  # paths of this machine


def test_a_pt2_file_needs_torch_alone_and_holds_no_pickle(
    load_random: Callable[..., Backbone], tmp_path: Path
) -> None:
    backbone = load_random("test_resnet", input_px=64)
    classifier = _classifier(backbone, (2, backbone.n_depths))
    target, image = tmp_path / "model.pt2", _odd_images()[2]
    export(classifier, target, "pt2")
    np.save(tmp_path / "image.npy", image)
    code = (
        "import sys, json, numpy as np, torch; extra = {'metadata.json': ''}; "
        "model = torch.export.load('model.pt2', extra_files=extra).module(); "
        "images = torch.from_numpy(np.load('image.npy'))[None]; "
        "assert 'timm' not in sys.modules and 'strategies' not in sys.modules; "
        "print(json.dumps([model(images)[0].tolist(), json.loads(extra['metadata.json'])]))"
    )

    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)

    found, metadata = json.loads(done.stdout)
    np.testing.assert_allclose(found, classifier.predict_proba([image])[0], atol=CLOSE)
    assert metadata["classes"] == list(classifier.classes)
    with zipfile.ZipFile(target) as file:
        names = file.namelist()
        content = b"".join(file.read(n) for n in names if n.endswith((".json", ".py")))
        pickles = [n for n in names if n.endswith((".pkl", ".pt", ".pth")) and file.read(n)]
    assert not pickles
    assert str(Path(torch.__file__).parent).encode() not in content


@pytest.mark.parametrize("format", ["onnx", "pt2", "timm"])
def test_every_format_holds_the_metadata_and_more_can_be_added(
    load_random: Callable[..., Backbone], tmp_path: Path, format: str
) -> None:
    backbone = replace(load_random("test_efficientnet", input_px=64), licence="mit")
    classifier = _classifier(backbone, (backbone.n_depths,))
    classifier.save(tmp_path / "saved")
    target = tmp_path / f"model.{format}"

    export(classifier, target, format)
    add_metadata(target, format, {"check": {"n": 3}})

    found = _metadata(target, format)
    record = json.loads((tmp_path / "saved" / "classifier.json").read_text(encoding="utf-8"))
    assert found["classifier_sha256"] == record["weights_sha256"]
    assert found["classes"] == ["a", "b", "Ω"]
    assert found["licence"] == "mit"
    assert found["program"].startswith("tl-advisor ")
    assert found["check"] == {"n": 3}
    image = _odd_images()[0]
    expected = classifier.predict_proba([image])[0]
    tolerance = 0.02 if format == "timm" else CLOSE  # timm resizes, rounds, then crops
    outputs = predictor(target, format)(image)
    np.testing.assert_allclose(outputs.probabilities[0], expected, atol=tolerance)
    assert outputs.unknown is None


def _metadata(target: Path, format: str) -> dict[str, Any]:
    if format == "onnx":
        return {p.key: json.loads(p.value) for p in onnx.load(target).metadata_props}
    if format == "pt2":
        extra = {"metadata.json": ""}
        torch.export.load(target, extra_files=extra)
        return json.loads(extra["metadata.json"])
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    return config["tl_advisor"]


def _with_reliability(plain: ImageClassifier) -> ImageClassifier:
    """Calibrate a classifier on noise, so that it has an unknown score."""
    depths = score_depths(plain.backbone, plain.depths)
    body = Body(plain.network.body.net, depths.numbers, plain.backbone.n_depths)
    px = plain.backbone.input_px
    pixels = torch.randn(64, 3, px, px, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        x, scores = body(pixels).numpy(), plain.network(pixels).numpy()
    labels = np.arange(len(x)) % len(plain.classes)
    fold = Fold(x[:32], labels[:32], x[32:], scores[32:], labels[32:])
    found = calibrate_reliability([fold], x[:32], labels[:32], depths, "validation")
    return replace(plain, reliability=found)


# A .pt2 file holds the modules of the ONNX model, so one network suffices for it.
@pytest.mark.parametrize(("format", "whole"), [("onnx", True), ("onnx", False), ("pt2", False)])
def test_the_score_of_unknown_images_is_a_second_output(
    load_random: Callable[..., Backbone], tmp_path: Path, format: str, whole: bool
) -> None:
    backbone = load_random("test_resnet", input_px=64)
    depths = (backbone.n_depths,) if whole else (1, 2)
    classifier = _with_reliability(_classifier(backbone, depths))
    target, image = tmp_path / f"model.{format}", _odd_images()[1]

    export(classifier, target, format)

    if format == "onnx":
        session = ort.InferenceSession(target, providers=["CPUExecutionProvider"])
        assert [o.name for o in session.get_outputs()] == ["probabilities", "unknown_score"]
        found, score = session.run(None, {"images": image[np.newaxis]})
    else:
        model = torch.export.load(target).module()
        found, score = (x.numpy() for x in model(torch.tensor(image)[None]))
    expected = classifier.predict_outputs([image])
    np.testing.assert_allclose(score, expected.unknown, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found, expected.probabilities, atol=CLOSE)
    outputs = predictor(target, format)(image)
    np.testing.assert_allclose(outputs.probabilities, found, atol=1e-6)
    np.testing.assert_allclose(outputs.unknown, score, rtol=1e-5)
    known = json.loads(json.dumps(classifier.reliability.record()))
    assert _metadata(target, format)["reliability"] == known


def test_the_body_of_a_classifier_with_an_unknown_score_is_quantised(
    load_random: Callable[..., Backbone], tmp_path: Path
) -> None:
    classifier = _with_reliability(_classifier(load_random("test_resnet", input_px=64), (1, 2)))
    target, images = tmp_path / "int8.onnx", _odd_images()

    export(classifier, target, "onnx", precision="int8", calibration=images)

    session = ort.InferenceSession(target, providers=["CPUExecutionProvider"])
    score = session.run(["unknown_score"], {"images": images[1][np.newaxis]})[0]
    np.testing.assert_allclose(score, classifier.predict_outputs([images[1]]).unknown, rtol=0.2)


def test_int8_without_images_is_refused(
    load_random: Callable[..., Backbone], tmp_path: Path
) -> None:
    classifier = _classifier(load_random("test_resnet", input_px=64), (1,))

    with pytest.raises(NotApplicable, match="--check DATA, or use float16"):
        export(classifier, tmp_path / "m.onnx", "onnx", precision="int8")
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(
    ("format", "precision", "message"),
    [
        ("onnx", "int4", "Did you mean 'int8'"),
        ("pt2", "int8", "Use the format onnx for int8"),
        ("timm", "float16", "Use the format onnx for float16"),
    ],
)
def test_a_precision_that_a_format_does_not_have_is_refused(
    load_random: Callable[..., Backbone],
    tmp_path: Path,
    format: str,
    precision: str,
    message: str,
) -> None:
    classifier = _classifier(load_random("test_resnet", input_px=64), (1,))

    with pytest.raises(NotApplicable, match=message):
        export(classifier, tmp_path / "x", format, precision=precision)


@pytest.mark.parametrize("format", ["onnx", "pt2", "timm"])
def test_a_target_that_cannot_be_written_is_a_storage_error(
    load_random: Callable[..., Backbone], tmp_path: Path, format: str
) -> None:
    backbone = load_random("test_resnet")
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(StorageError, match="cannot be written"):
        export(_classifier(backbone, (backbone.n_depths,)), tmp_path / "file" / "x", format)
