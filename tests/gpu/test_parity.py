"""The GPU computes what the CPU does: features, probes, heads and predictions.

Features are stored as float16, so two correct values may differ by one part in a thousand.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from strategies.core.folds import fold_numbers
from strategies.data.dataset import Dataset, labels_of
from strategies.heads.batches import Loss
from strategies.heads.cross_validation import ClassWeight, cross_validate, fit_head
from strategies.linear_probe import LinearProbe
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier
from strategies.models.features import ROUNDING_TOLERANCE, extract_features
from tests.gpu.conftest import Devices
from tests.gpu.loops import relative_error

pytestmark = pytest.mark.gpu

FLOAT32_TOLERANCE = 2e-3
"""Of the Euclidean norm: twice the rounding of the cache."""
HEAD_TOLERANCE = 2e-2
"""Of the Euclidean norm of a head's weights. The solver stops when the gradient is small."""
PROBABILITY_TOLERANCE = {"float32": 2e-3, "own": 0.1}
"""Largest difference of a predicted probability."""


def test_features_and_moments_of_all_depths_agree_in_float32(
    devices: Devices, small_dataset: Dataset, any_backbone: Backbone
) -> None:
    images = small_dataset.train
    expected = extract_features(images, any_backbone, devices.cpu)
    found = extract_features(images, any_backbone, devices.gpu)
    assert len(found.pooled) == len(expected.pooled) == any_backbone.n_depths
    for depth, rows in enumerate(expected.pooled):
        assert relative_error(found.pooled[depth], rows) < FLOAT32_TOLERANCE, depth
    assert (found.moments is None) == (expected.moments is None)
    if expected.moments is not None and found.moments is not None:
        for name in ("mean", "square"):
            ours, theirs = getattr(found.moments, name), getattr(expected.moments, name)
            assert relative_error(ours, theirs) < FLOAT32_TOLERANCE, name


def test_features_agree_in_the_gpus_own_precision(
    devices: Devices, small_dataset: Dataset, any_backbone: Backbone
) -> None:
    images = small_dataset.train
    expected = extract_features(images, any_backbone, devices.cpu)
    found = extract_features(images, any_backbone, devices.own)
    for depth, rows in enumerate(expected.pooled):
        assert relative_error(found.pooled[depth], rows) < ROUNDING_TOLERANCE, depth


@pytest.mark.parametrize("precision", ["float32", "own"])
def test_cross_validated_accuracy_of_a_probe_agrees(
    devices: Devices, small_dataset: Dataset, backbone: Backbone, precision: str
) -> None:
    images = small_dataset.fit_split
    labels, folds = labels_of(images), fold_numbers(labels_of(images), 0)
    accuracies = []
    for ctx in (devices.cpu, devices.with_precision(precision)):
        rows = extract_features(images, backbone, ctx).at([backbone.n_depths])
        found = cross_validate(rows, labels, 3, folds=folds, device=ctx.head_device)
        accuracies.append(found.correct[found.best].mean())
    assert accuracies[0] > 0.6  # not by chance, which is a third
    n_apart = {"float32": 1, "own": 3}[precision]
    assert abs(accuracies[1] - accuracies[0]) <= (n_apart + 0.5) / len(images)


@pytest.mark.parametrize("loss", get_args(Loss))
@pytest.mark.parametrize("class_weight", get_args(ClassWeight))
def test_the_solver_of_heads_gives_the_same_weights(
    device: torch.device, loss: Loss, class_weight: ClassWeight
) -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(4, size=400, p=[0.4, 0.3, 0.2, 0.1]).astype(np.int64)
    centres = 0.4 * rng.normal(size=(4, 64))
    rows = (centres[labels] + rng.normal(size=(400, 64))).astype(np.float32)
    folds = fold_numbers(labels, 0)
    found = [
        cross_validate(
            rows, labels, 4, folds=folds, loss=loss, class_weight=class_weight, device=d
        )
        for d in (torch.device("cpu"), device)
    ]
    assert np.mean(found[0].correct == found[1].correct) > 0.99
    np.testing.assert_allclose(found[1].log_losses, found[0].log_losses, rtol=1e-2)
    heads = [
        fit_head(rows, labels, 4, 1e-3, loss=loss, class_weight=class_weight, device=d)
        for d in (torch.device("cpu"), device)
    ]
    assert relative_error(heads[1].weight, heads[0].weight) < HEAD_TOLERANCE


def test_the_weights_of_a_fitted_probe_agree(
    devices: Devices, small_dataset: Dataset, backbone: Backbone
) -> None:
    weights = []
    for ctx in (devices.cpu, devices.gpu):
        fitted = LinearProbe(strength=1e-3, views=1).fit(small_dataset, backbone, ctx)
        assert fitted.device.type == ctx.device.type
        weights.append(fitted.network.head.weight)
    assert relative_error(weights[1], weights[0]) < HEAD_TOLERANCE


@pytest.mark.parametrize("precision", ["float32", "own"])
def test_a_classifier_predicts_the_same(
    devices: Devices,
    small_dataset: Dataset,
    any_backbone: Backbone,
    tmp_path: Path,
    precision: str,
) -> None:
    LinearProbe(views=1).fit(small_dataset, any_backbone, devices.cpu).save(tmp_path / "saved")
    paths = [image.path for image in small_dataset.fit_split]
    ctx = devices.with_precision(precision)
    expected = ImageClassifier.load(tmp_path / "saved").predict_proba(paths)
    there = ImageClassifier.load(tmp_path / "saved", ctx.device)
    found = there.predict_proba(paths, precision=ctx.precision)
    assert there.device.type == ctx.device.type
    np.testing.assert_allclose(found, expected, atol=PROBABILITY_TOLERANCE[precision])


def test_features_of_views_agree(
    devices: Devices, small_dataset: Dataset, network_named: Callable[[str], Backbone]
) -> None:
    few, backbone = replace(small_dataset, train=small_dataset.train[:12]), network_named("cnn")
    heads = []
    for ctx in (devices.cpu, devices.gpu):
        fitted = LinearProbe(strength=1e-2, views=6).fit(few, backbone, ctx)
        heads.append(fitted.network.head.weight)
    assert relative_error(heads[1], heads[0]) < HEAD_TOLERANCE
