"""Prediction with a saved classifier on files and folders."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advisor.deploy.predict import predict
from strategies.core.errors import DataError
from strategies.core.progress import ignore_progress
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier, make_network


@pytest.fixture
def saved(backbone: Backbone, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    depths = (backbone.n_depths,)
    network = make_network(backbone, depths, 3).eval()
    folder = tmp_path / "classifier"
    ImageClassifier(("a", "b", "c"), backbone, depths, network, "linear_probe", {}).save(folder)
    return folder


def test_readable_images_get_probabilities_and_unreadable_ones_a_reason(
    saved: Path, make_folder: Callable[..., Path]
) -> None:
    data = make_folder("data", 25)  # more than one batch
    bad = [data / "class0" / "000x.png", data / "class2" / "zzz.png"]
    for path in bad:
        path.write_bytes(b"no image")
    paths = sorted(p for p in data.rglob("*.png") if p not in bad)
    progress: list[tuple[int, int]] = []

    (found,) = predict(saved, [data], on_progress=lambda _, *counts: progress.append(counts))

    assert [path for path, _ in found.rows] == paths
    assert [s.path for s in found.skipped] == bad
    assert progress[-1][0] == 77
    expected = ImageClassifier.load(saved).predict_proba(paths)
    rows = [[dict(row)[name] for name in "abc"] for _, row in found.rows]
    np.testing.assert_allclose(rows, expected, atol=0.02)  # the pass may be in bfloat16
    assert all(row[0][1] >= row[1][1] >= row[2][1] for _, row in found.rows)


def test_a_batch_without_a_readable_image_has_no_predictions(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")

    (found,) = predict(saved, [tmp_path / "bad.png"], on_progress=ignore_progress)

    assert found.rows == ()
    assert [s.path.name for s in found.skipped] == ["bad.png"]


def test_images_in_memory_are_predicted_like_their_files(
    saved: Path, make_folder: Callable[..., Path]
) -> None:
    paths = sorted(make_folder("data", 2).rglob("*.png"))
    images = [Image.open(path).convert("RGB") for path in paths]
    given = [images[0], np.asarray(images[1]), *map(str, paths[2:4]), *images[4:]]

    (found,) = predict(saved, given, device="cpu")
    (expected,) = predict(saved, paths, device="cpu")

    assert [name for name, _ in found.rows] == [0, 1, *paths[2:4], 4, 5]
    assert [row for _, row in found.rows] == [row for _, row in expected.rows]


def test_an_image_in_memory_that_cannot_be_used_raises_an_error(saved: Path) -> None:
    given = [np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9, 3))]
    with pytest.raises(DataError, match=r"Image 1, in memory, .* float64"):
        list(predict(saved, given))


def test_an_empty_folder_raises_an_error(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image"):
        list(predict(saved, [tmp_path / "empty"], on_progress=ignore_progress))
