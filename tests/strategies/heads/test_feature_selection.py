import numpy as np
import pytest

from strategies.core.folds import fold_numbers
from strategies.heads.cross_validation import (
    STRENGTHS,
    RegularisationPath,
    best_of,
    cross_validate,
    out_of_fold,
)
from strategies.heads.feature_selection import select_strongest, strongest_out_of_fold

N, D = 120, 60
SVM_PATH = RegularisationPath("squared_hinge")


def _informative(columns: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw noise in which only some columns distinguish three classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(N) % 3
    x = rng.normal(size=(N, D)).astype(np.float32)
    for number, column in enumerate(columns):
        x[:, column] += 3 * (labels == number % 3)
    return x, labels


def test_informative_columns_are_selected_in_ascending_order() -> None:
    columns = [50, 3, 17]
    x, labels = _informative(columns)

    selected = select_strongest(x, labels, 3, 0.05, 1e-2, loss="squared_hinge")

    assert selected.tolist() == sorted(columns)


def test_the_selection_does_not_depend_on_the_scale_of_columns() -> None:
    x, labels = _informative([50, 3, 17])
    scaled = x * np.geomspace(0.3, 3, D).astype(np.float32)

    selected = select_strongest(scaled, labels, 3, 0.05, 1e-2, loss="squared_hinge")

    assert selected.tolist() == [3, 17, 50]


def test_selecting_informative_columns_lowers_the_cross_validated_loss() -> None:
    x, labels = _informative([50, 3, 17])
    folds = fold_numbers(labels, 0)

    scores = strongest_out_of_fold(x, labels, 3, 0.1, 1e-2, SVM_PATH, folds=folds)
    few = best_of(scores, labels, STRENGTHS)
    every = cross_validate(x, labels, 3, folds=folds, loss="squared_hinge")

    assert few.log_loss < every.log_loss


def test_selecting_from_columns_of_noise_gives_chance_accuracy() -> None:
    # Selected on all images, the "best" tenth of 400 columns of noise would seem informative.
    rng = np.random.default_rng(0)
    labels = np.arange(N) % 2
    x = rng.normal(size=(N, 400)).astype(np.float32)
    folds = fold_numbers(labels, 0)

    scores = strongest_out_of_fold(x, labels, 2, 0.1, 1e-2, SVM_PATH, folds=folds)
    nested = best_of(scores, labels, STRENGTHS)
    selected = select_strongest(x, labels, 2, 0.1, 1e-2, loss="squared_hinge")
    naive = cross_validate(x[:, selected], labels, 2, folds=folds, loss="squared_hinge")

    assert nested.correct[nested.best].mean() < 0.63
    assert naive.correct[naive.best].mean() > 0.75


def test_a_share_of_one_selects_all_columns() -> None:
    x, labels = _informative([50, 3, 17])
    folds = fold_numbers(labels, 0)

    assert select_strongest(x, labels, 3, 1.0, 1e-2, loss="softmax").tolist() == list(range(D))
    path = RegularisationPath(strengths=STRENGTHS[:6])
    found = strongest_out_of_fold(x, labels, 3, 1.0, 1e-2, path, folds=folds)
    held_out = range(int(folds.max()) + 1)
    same = np.stack([*out_of_fold(x, labels, 3, path, folds=folds, held_out=held_out)])
    agree = found.argmax(axis=2) == same.argmax(axis=2)
    assert agree.mean() == pytest.approx(1.0, abs=0.02)
