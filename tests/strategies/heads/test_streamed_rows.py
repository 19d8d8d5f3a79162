import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from strategies.core.folds import fold_numbers
from strategies.heads import principal_axes
from strategies.heads.batches import Loss
from strategies.heads.cross_validation import (
    STRENGTHS,
    ClassWeight,
    RegularisationPath,
    best_of,
    cross_validate,
    fit_head,
    out_of_fold,
)

Data = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stream all rows, in chunks that do not divide their number."""
    monkeypatch.setattr(principal_axes, "MAX_IN_MEMORY", 0)
    monkeypatch.setattr(principal_axes, "_CHUNK", 130)


def blobs(n: int, d: int, n_classes: int, seed: int = 0) -> Data:
    """Draw overlapping classes of unequal size, with offsets, scales and a constant column."""
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.geometric(0.4, n) - 1, n_classes - 1)
    centres = np.random.default_rng(9).normal(size=(n_classes, d))
    x = centres[labels] + 2 * rng.normal(size=(n, d))
    x = 10 ** np.linspace(-2, 2, d) * (x + 30)
    x[:, 1] = 7
    return x.astype(np.float32), labels


LOSSES: tuple[Loss, ...] = ("softmax", "squared_hinge")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("class_weight", ["none", "balanced"])
def test_a_head_fitted_to_streamed_rows_equals_the_one_in_memory(
    request: pytest.FixtureRequest, loss: Loss, class_weight: ClassWeight
) -> None:
    x, labels = blobs(700, 20, 4)
    unseen, _ = blobs(300, 20, 4, seed=1)
    expected = fit_head(x, labels, 4, 1e-3, loss=loss, class_weight=class_weight)
    request.getfixturevalue("streamed")

    found = fit_head(x, labels, 4, 1e-3, loss=loss, class_weight=class_weight)

    np.testing.assert_allclose(found.scores(unseen), expected.scores(unseen), atol=0.05)
    same = found.scores(unseen).argmax(axis=1) == expected.scores(unseen).argmax(axis=1)
    assert same.mean() >= 0.99


@pytest.mark.parametrize("loss", LOSSES)
def test_cross_validation_of_streamed_rows_equals_the_one_in_memory(
    request: pytest.FixtureRequest, loss: Loss
) -> None:
    x, labels = blobs(700, 20, 4)
    folds = fold_numbers(labels, 0)
    expected = cross_validate(x, labels, 4, folds=folds, loss=loss)
    request.getfixturevalue("streamed")

    found = cross_validate(x, labels, 4, folds=folds, loss=loss)

    assert abs(found.best - expected.best) <= 1
    np.testing.assert_allclose(found.log_losses, expected.log_losses, rtol=0.01)
    assert np.abs(found.correct.mean(axis=1) - expected.correct.mean(axis=1)).max() < 0.01


@pytest.mark.usefixtures("streamed")
def test_the_second_moments_are_those_of_the_streamed_coordinates() -> None:
    x, _ = blobs(700, 20, 4)
    weights = torch.linspace(0.5, 1.5, 700)

    basis = principal_axes.principal_axes(x, weights)

    rows = basis.coordinates
    assert isinstance(rows, principal_axes.StreamedRows)
    z = torch.cat([z for _, z in rows.chunks()])
    coordinates = rows.to_coordinates(z)
    gram = (coordinates.T * weights) @ coordinates
    np.testing.assert_allclose(gram.diagonal(), rows.second_moments, rtol=1e-3)
    assert (gram - torch.diag(gram.diagonal())).abs().max() < 1e-3 * gram.max()
    v = torch.randn(3, coordinates.shape[1])
    np.testing.assert_allclose(z @ rows.to_features(v).T, coordinates @ v.T, atol=1e-4)


@pytest.mark.usefixtures("streamed")
def test_more_features_than_rows_are_kept_in_memory() -> None:
    x, _ = blobs(30, 50, 2)
    assert isinstance(principal_axes.principal_axes(x, torch.ones(30)).coordinates, torch.Tensor)


@pytest.mark.usefixtures("streamed")
def test_rows_on_disk_are_streamed(tmp_path: Path) -> None:
    x, labels = blobs(700, 20, 4)
    on_disk = np.memmap(tmp_path / "rows", dtype=np.float16, mode="w+", shape=x.shape)
    on_disk[:] = x

    found = fit_head(on_disk, labels, 4, 1e-3)

    expected = fit_head(x.astype(np.float16).astype(np.float32), labels, 4, 1e-3)
    np.testing.assert_allclose(found.scores(x), expected.scores(x), atol=0.05)


def test_only_the_scores_of_the_best_strength_are_kept() -> None:
    n, n_classes = 4000, 50
    labels = np.arange(n) % n_classes
    rng = np.random.default_rng(0)
    bytes_of_scores = 4 * n * n_classes

    def scores_of(noise: float) -> np.ndarray:
        scores = np.eye(n_classes, dtype=np.float32)[labels]
        scores += rng.normal(0, noise, scores.shape).astype(np.float32)
        return scores

    tracemalloc.start()
    found = best_of((scores_of(noise) for noise in np.linspace(2, 0.5, 12)), labels, STRENGTHS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert found.best == 11
    assert found.scores.shape == (n, n_classes)
    assert peak < 10 * bytes_of_scores


def test_one_fold_may_be_held_out_alone() -> None:
    x, labels = blobs(400, 10, 3)
    folds = fold_numbers(labels, 0)
    path = RegularisationPath(strengths=[1e-2, 1e-3])

    alone = [*out_of_fold(x, labels, 3, path, folds=folds, held_out=[0])]
    together = [*out_of_fold(x, labels, 3, path, folds=folds, held_out=range(5))]

    for one, every in zip(alone, together, strict=True):
        np.testing.assert_allclose(one[folds == 0], every[folds == 0], atol=0.1)
        assert not one[folds != 0].any()
