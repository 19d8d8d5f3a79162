import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from strategies.core.errors import NotApplicable, StorageError
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier, make_network
from strategies.models.features import batches, to_input
from strategies.models.formats.export import export

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


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


@pytest.mark.parametrize(("name", "depths"), [("test_resnet", (1, 3)), ("test_vit", (7,))])
def test_an_onnx_model_gives_the_same_probabilities_for_any_batch_size(
    load_random: Callable[..., Backbone],
    small_dataset: Dataset,
    tmp_path: Path,
    name: str,
    depths: tuple[int, ...],
) -> None:
    classifier = _classifier(load_random(name), depths)
    _export(classifier, tmp_path / "deep" / "model.onnx")

    session = ort.InferenceSession(
        tmp_path / "deep" / "model.onnx", providers=["CPUExecutionProvider"]
    )

    for n in (1, 2, 5):
        (found,) = session.run(None, {"images": _images(small_dataset, n)})
        expected = classifier.predict_proba([p.path for p in small_dataset.train[:n]])
        # Some pixels lie half-way between two values; the head's weights are large.
        np.testing.assert_allclose(found, expected, atol=5e-3)
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
    np.testing.assert_allclose(found, expected, atol=5e-3)
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


@pytest.mark.parametrize("format", ["onnx", "timm"])
def test_a_target_that_cannot_be_written_is_a_storage_error(
    load_random: Callable[..., Backbone], tmp_path: Path, format: str
) -> None:
    backbone = load_random("test_resnet")
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(StorageError, match="cannot be written"):
        export(_classifier(backbone, (backbone.n_depths,)), tmp_path / "file" / "x", format)
