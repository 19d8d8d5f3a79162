"""The unknown score on features of known distributions, against its definition."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score

from strategies.core.errors import StorageError, TransferError
from strategies.models.backbone import Backbone
from strategies.models.body import Body
from strategies.models.classifier import RECORD_FILE, ImageClassifier, make_network
from strategies.models.reliability.calibration import (
    Fold,
    calibrate_reliability,
    score_depths,
    score_parts,
)
from strategies.models.reliability.graph import UnknownScore
from strategies.models.reliability.reliability import RELIABILITY_FILE, Depths, Reliability
from strategies.models.reliability.statistics import feature_statistics, shrunk_covariance

N_CLASSES, WIDTHS = 4, (10, 30)
DEPTHS = Depths((2, 3), WIDTHS)
Draw = Callable[[int], tuple[NDArray[np.float32], NDArray[np.int64]]]


@pytest.fixture
def draw() -> Draw:
    """Return a sampler of positive features of four classes with one covariance."""
    rng = np.random.default_rng(0)
    means = rng.uniform(4, 6, (N_CLASSES + 1, sum(WIDTHS)))
    mixing = rng.normal(size=(sum(WIDTHS), sum(WIDTHS))) / 12

    def drawn(n: int, first: int = 0, last: int = N_CLASSES) -> tuple:
        labels = rng.integers(first, last, size=n)
        noise = rng.normal(size=(n, sum(WIDTHS))) @ mixing
        return (means[labels] + noise).astype(np.float32), labels

    return drawn


def calibrated(draw: Draw, n: int = 400) -> Reliability:
    train, held_out = draw(300), draw(n)
    scores = np.eye(N_CLASSES, dtype=np.float32)[held_out[1]]
    fold = Fold(*train, held_out[0], 4 * scores, held_out[1])
    return calibrate_reliability([fold], *train, DEPTHS, "validation")


def scores_of(found: Reliability, features: NDArray[np.float32]) -> NDArray[np.float32]:
    return found.module()(torch.from_numpy(features)).detach().numpy()


@pytest.mark.parametrize(("n", "d"), [(40, 90), (200, 30)])
def test_the_covariance_is_that_of_ledoit_and_wolf(n: int, d: int) -> None:
    x = np.random.default_rng(0).normal(size=(n, d)) * np.linspace(0.1, 2, d)
    x = (x - x.mean(axis=0)).astype(np.float32)
    found = shrunk_covariance(x)
    axes = found.axes.astype(np.float64)
    whole = axes @ np.diag(found.variances - found.rest) @ axes.T + found.rest * np.eye(d)
    expected, _ = ledoit_wolf(x, assume_centered=True)
    np.testing.assert_allclose(whole, expected, atol=1e-5)


def test_the_parts_follow_from_the_definition(draw: Draw) -> None:
    (x, labels), (new, _) = draw(200), draw(20)
    found = score_parts(feature_statistics(x, labels, WIDTHS), DEPTHS, new)

    def unit(rows: NDArray[np.float32]) -> NDArray[np.float64]:
        parts = np.split(rows.astype(np.float64), np.cumsum(WIDTHS)[:-1], axis=1)
        return np.concatenate([p / np.linalg.norm(p, axis=1, keepdims=True) for p in parts], 1)

    rows, new_rows = unit(x), unit(new)
    means = np.stack([rows[labels == c].mean(axis=0) for c in range(N_CLASSES)])
    within, _ = ledoit_wolf(rows - means[labels], assume_centered=True)
    shares = np.bincount(labels) / len(labels)
    centre = rows.mean(axis=0)
    total = within + ((means - centre).T * shares) @ (means - centre)

    def square(a: NDArray[np.float64], b: NDArray[np.float64], s: NDArray[np.float64]) -> float:
        return float((a - b) @ np.linalg.solve(s, a - b))

    for row, (distance, relative, cosine) in zip(new_rows, found, strict=True):
        nearest = min(square(row, mean, within) for mean in means)
        assert distance == pytest.approx(np.sqrt(nearest), rel=1e-3)
        assert relative == pytest.approx(nearest - square(row, centre, total), rel=1e-3, abs=1e-2)
        a = row - centre
        cosines = [
            a
            @ np.linalg.solve(within, b)
            / np.sqrt(square(a, 0 * a, within) * square(b, 0 * b, within))
            for b in means - centre
        ]
        assert -cosine == pytest.approx(max(cosines), abs=1e-3)


def test_false_alarms_are_as_stated_and_another_class_is_found(draw: Draw) -> None:
    found = calibrated(draw)
    known = scores_of(found, draw(2000)[0])
    other = scores_of(found, draw(500, N_CLASSES, N_CLASSES + 1)[0])
    for rate in (0.02, 0.05, 0.2):
        assert np.mean(known > found.threshold(rate)) == pytest.approx(rate, abs=0.03)
    truth = np.repeat([0, 1], [len(known), len(other)])
    assert roc_auc_score(truth, np.concatenate([known, other])) > 0.95
    assert np.mean(other > found.threshold()) > 0.8
    # far away along no axis of the training images
    assert np.all(scores_of(found, 40 * np.eye(sum(WIDTHS), dtype=np.float32)) > found.threshold())


def test_the_brightness_of_an_image_does_not_matter(draw: Draw) -> None:
    found, x = calibrated(draw), draw(5)[0]
    np.testing.assert_allclose(scores_of(found, x), scores_of(found, 3 * x), rtol=1e-3, atol=1e-3)


def test_the_score_is_computed_in_float32_within_autocast(draw: Draw) -> None:
    found, (features, _) = calibrated(draw), draw(200)
    images = torch.from_numpy(features)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        within = found.module()(images)
        assert (images @ images.T).dtype == torch.bfloat16  # the test can fail
    np.testing.assert_array_equal(within.numpy(), scores_of(found, features))


def test_a_rate_that_needs_more_held_out_images_is_refused_with_the_least_possible(
    draw: Draw,
) -> None:
    found = calibrated(draw, n=30)
    with pytest.raises(TransferError, match=r"at least 99 held-out images, and there were 30"):
        found.threshold(0.01)
    with pytest.raises(TransferError, match="above 0 and below 1, got 1"):
        found.threshold(1)
    with pytest.raises(TransferError, match="coverage must be above 0 and below 1, got 90"):
        found.prediction_sets(np.full((1, 4), 0.25, np.float32), 90)
    assert found.threshold(0.05) == found.unknown[-1]
    assert not found.promises_sets
    assert found.record()["unknown"]["thresholds"]["0.01"] is None
    assert calibrated(draw, n=100).promises_sets


def test_one_image_of_every_class_gives_finite_scores(draw: Draw) -> None:
    x, _ = draw(N_CLASSES)
    statistics = feature_statistics(x, np.arange(N_CLASSES), WIDTHS)
    assert np.isfinite(score_parts(statistics, DEPTHS, draw(10)[0])).all()


def test_the_module_is_exported_to_onnx(draw: Draw, tmp_path: Path) -> None:
    found, x = calibrated(draw), draw(7)[0]
    torch.onnx.export(
        found.module(),
        (torch.from_numpy(x[:2]),),
        str(tmp_path / "unknown.onnx"),
        input_names=["features"],
        dynamic_shapes=[{0: torch.export.Dim("n")}],
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "unknown.onnx"))
    (exported,) = session.run(None, {"features": x})
    np.testing.assert_allclose(exported, scores_of(found, x), rtol=1e-3, atol=1e-3)


def classifier(backbone: Backbone, depths: tuple[int, ...], pooling: str) -> ImageClassifier:
    torch.manual_seed(0)
    network = make_network(backbone, depths, N_CLASSES, pooling).eval()
    return ImageClassifier(tuple("abcd"), backbone, depths, network, "layer_svm", {}, pooling)


def with_reliability(plain: ImageClassifier, pixels: torch.Tensor) -> ImageClassifier:
    """Calibrate a classifier on features of noise."""
    depths = score_depths(plain.backbone, plain.depths)
    body = Body(plain.network.body.net, depths.numbers, plain.backbone.n_depths)
    with torch.inference_mode():
        x, scores = body(pixels).numpy(), plain.network(pixels).numpy()
    labels = np.arange(len(x)) % N_CLASSES
    fold = Fold(x[:32], labels[:32], x[32:], scores[32:], labels[32:])
    found = calibrate_reliability([fold], x[:32], labels[:32], depths, "validation")
    return replace(plain, reliability=found)


@pytest.fixture(params=[((6,), "mean"), ((1, 3), "grid"), ((4, 6), "mean")], ids=str)
def judged(backbone: Backbone, request: pytest.FixtureRequest) -> ImageClassifier:
    """Return classifiers whose head reads the last depth, two earlier ones, or both kinds."""
    pixels = torch.randn(64, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return with_reliability(classifier(backbone, *request.param), pixels)


def test_one_pass_gives_the_same_probabilities_and_the_unknown_scores(
    judged: ImageClassifier,
) -> None:
    images = np.random.default_rng(1).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)
    outputs = judged.predict_outputs(images)
    np.testing.assert_allclose(outputs.probabilities, judged.predict_proba(images), atol=1e-5)
    assert outputs.unknown is not None
    assert outputs.unknown.shape == (5,)
    assert outputs.unknown.dtype == np.float32
    assert judged.predict_outputs([]).unknown.shape == (0,)
    assert replace(judged, reliability=None).predict_outputs(images).unknown is None


def test_the_score_of_a_pass_is_that_of_the_pooled_depths(judged: ImageClassifier) -> None:
    network = judged.judged_network()
    assert network is not None
    x = torch.randn(3, 3, 64, 64)
    depths = judged.reliability.depths.numbers
    assert max(depths) == max(judged.depths)
    with torch.inference_mode():
        pooled = Body(judged.network.body.net, depths, judged.backbone.n_depths)(x)
        scores, unknown = network(x)
        expected = judged.reliability.module()(pooled)
        np.testing.assert_allclose(unknown.numpy(), expected.numpy(), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(scores.numpy(), judged.network(x).numpy(), atol=1e-4)


def test_reliability_is_saved_and_loaded_with_the_classifier(
    judged: ImageClassifier, tmp_path: Path
) -> None:
    judged.save(tmp_path)
    images = np.random.default_rng(2).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    again = ImageClassifier.load(tmp_path)
    expected, found = judged.predict_outputs(images), again.predict_outputs(images)
    np.testing.assert_array_equal(found.unknown, expected.unknown)
    assert again.reliability.record() == judged.reliability.record()
    assert (tmp_path / RELIABILITY_FILE).stat().st_size < 4e6


def test_a_damaged_or_missing_file_of_the_reliability_is_named(
    judged: ImageClassifier, tmp_path: Path
) -> None:
    judged.save(tmp_path)
    path = tmp_path / RELIABILITY_FILE
    content = path.read_bytes()
    path.write_bytes(content[:-4] + b"\0\0\0\0")
    with pytest.raises(StorageError, match=f"SHA-256 of .*{RELIABILITY_FILE}"):
        ImageClassifier.load(tmp_path)
    path.unlink()
    with pytest.raises(StorageError, match=f"{RELIABILITY_FILE} cannot be read"):
        ImageClassifier.load(tmp_path)


def test_a_classifier_without_reliability_has_no_file_and_no_key(
    judged: ImageClassifier, tmp_path: Path
) -> None:
    replace(judged, reliability=None).save(tmp_path)
    assert not (tmp_path / RELIABILITY_FILE).exists()
    assert "reliability" not in (tmp_path / RECORD_FILE).read_text()
    assert ImageClassifier.load(tmp_path).reliability is None


def test_classes_without_an_image_are_left_out(draw: Draw) -> None:
    x, labels = draw(60)
    statistics = feature_statistics(x, 2 * labels, WIDTHS)  # classes 1 and 3 have no image
    tensors = {name: torch.from_numpy(array) for name, array in statistics.items()}
    parts = UnknownScore(tensors, WIDTHS).parts(torch.from_numpy(x))
    assert torch.isfinite(parts).all()
    assert len(statistics["class_rows"]) == N_CLASSES
