"""Round trips: saved and exported classifiers predict what the fitted ones predict.

The images are real photographs if ``../shared/data`` has some (sizes and aspect ratios differ from
the input's, and one of them is grey), and striped images otherwise.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageOps
from typer.testing import CliRunner

from advisor.cli.app import auto_app
from strategies.core.cache import ArrayCache
from strategies.core.context import RunContext
from strategies.core.errors import NotApplicable
from strategies.data.dataset import Dataset, load_dataset
from strategies.models.backbone import Backbone, load_backbone
from strategies.models.classifier import ImageClassifier
from strategies.models.formats.export import export
from strategies.registry import STRATEGIES
from tests.conftest import SHARED, suitable, write_folder

Fit = Callable[[str], ImageClassifier]

QUICK = {"steps": 4, "views": 1, "depth": 4, "pooling": "grid"}
"""Hyperparameters of quick fits, for the strategies that have them."""
CLOSE = 1e-4
N_PHOTOS = 10


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A few real photographs of three classes, one of them grey; or striped images."""
    root = tmp_path_factory.mktemp("photos")
    if not (SHARED / "flowers5").is_dir():
        return load_dataset(write_folder(root, N_PHOTOS))
    for folder in sorted(p for p in (SHARED / "flowers5").iterdir() if p.is_dir())[:3]:
        (root / folder.name).mkdir()
        for path in sorted(folder.iterdir())[:N_PHOTOS]:
            shutil.copy(path, root / folder.name)
    grey = next(root.rglob("*.jpg"))
    ImageOps.grayscale(Image.open(grey)).save(grey.with_name("grey.png"))
    return load_dataset(root)


@pytest.fixture(scope="session")
def fit(
    photos: Dataset,
    backbone: Backbone,
    convnext: Backbone,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Fit]:
    """Fit a strategy to the photographs, once for all tests of this module: ``fit(name)``."""
    yield from _fits(photos, (backbone, convnext), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def fit_small(photos: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fit]:
    """Like `fit`, with a small network of random weights: its export to ONNX is fast."""
    folder = tmp_path_factory.mktemp("network")
    torch.manual_seed(0)
    net = timm.create_model("test_efficientnet", pretrained=False)
    timm.models.save_for_hf(net, str(folder), safe_serialization=True)
    small = load_backbone(f"local-dir:{folder}", input_px=64)
    yield from _fits(photos, (small,), tmp_path_factory.mktemp("cache"))


def _fits(photos: Dataset, backbones: tuple[Backbone, ...], cache_dir: Path) -> Iterator[Fit]:
    ctx = RunContext(cache=ArrayCache(cache_dir))

    @cache
    def fitted(name: str) -> ImageClassifier:
        own = STRATEGIES[name]().hyperparameters()
        given = {k: v for k, v in QUICK.items() if k in own}
        strategy = STRATEGIES[name].from_hyperparameters(given)
        backbone = suitable(name, photos, *backbones)
        return strategy.fit(photos.hide_test(), backbone, ctx)

    yield fitted
    fitted.cache_clear()


@pytest.fixture(scope="session")
def paths(photos: Dataset) -> list[Path]:
    return [p.path for p in (*photos.val, *photos.train[:9])]


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_saved_classifier_predicts_the_same_at_the_command_line(
    name: str, fit: Fit, paths: list[Path], tmp_path: Path
) -> None:
    classifier = fit(name)
    classifier.save(tmp_path / "saved")
    command = ["predict", str(tmp_path / "saved"), *map(str, paths), "--json", "--device", "cpu"]

    result = CliRunner().invoke(auto_app, command)

    assert result.exit_code == 0, result.output
    expected = classifier.predict_proba(paths)
    assert len(np.unique(expected, axis=0)) == len(paths)
    rows = {Path(p["path"]): p["classes"] for p in json.loads(result.stdout)["predictions"]}
    found = [[_probability(rows[path], c) for c in classifier.classes] for path in paths]
    np.testing.assert_allclose(found, expected, atol=CLOSE)
    assert {f.suffix for f in (tmp_path / "saved").iterdir()} == {".json", ".safetensors"}


def _probability(classes: Any, name: str) -> float:
    return next(c["probability"] for c in classes if c["class"] == name)


@pytest.mark.usefixtures("exported_once")
@pytest.mark.parametrize("name", ["linear_probe", "layer_svm", "autoencoder_probe"])
def test_an_onnx_file_alone_is_sufficient_to_predict_the_same(
    name: str, fit_small: Fit, paths: list[Path], tmp_path: Path
) -> None:
    # The other strategies' networks have the structure of the linear probe's.
    _check_onnx(fit_small(name), paths, tmp_path)


def test_the_default_backbone_is_exported_to_onnx(
    fit: Fit, paths: list[Path], tmp_path: Path
) -> None:
    _check_onnx(fit("layer_svm"), paths, tmp_path)


def _check_onnx(classifier: ImageClassifier, paths: list[Path], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export(classifier, tmp_path / "model.onnx", "onnx")

    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    metadata = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    images = [np.asarray(ImageOps.exif_transpose(Image.open(p)).convert("RGB")) for p in paths]
    found = np.concatenate([session.run(None, {"images": i[np.newaxis]})[0] for i in images])

    np.testing.assert_allclose(found, classifier.predict_proba(paths), atol=CLOSE)
    assert tuple(metadata["classes"]) == classifier.classes


@pytest.mark.parametrize("name", STRATEGIES)
def test_timm_loads_every_network_that_is_not_truncated_and_preprocesses_alike(
    name: str, fit: Fit, paths: list[Path], tmp_path: Path
) -> None:
    classifier = fit(name)
    if classifier.depths != (classifier.backbone.n_depths,):
        with pytest.raises(NotApplicable, match="Export it as onnx"):
            export(classifier, tmp_path / "mine", "timm")
        return
    export(classifier, tmp_path / "mine", "timm")

    net = timm.create_model(f"local-dir:{tmp_path / 'mine'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net))
    images = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    with torch.inference_mode():
        found = net(images).softmax(1).numpy()

    expected = classifier.predict_proba(paths)
    # timm resizes, rounds, then crops; this program does both in one step.
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert net.pretrained_cfg["label_names"] == list(classifier.classes)
