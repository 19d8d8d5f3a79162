import numpy as np
import pytest

from strategies.core.folds import MAX_FOLDS, fold_numbers


@pytest.mark.parametrize("sizes", [(50, 50), (7, 30, 4), (11, 2, 3), (100, 5, 5, 6)])
def test_folds_are_balanced_within_every_class_and_overall(sizes: tuple[int, ...]) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)

    folds = fold_numbers(labels, 3)

    n_folds = folds.max() + 1
    assert n_folds == min(max(min(sizes), 2), MAX_FOLDS)
    for c in range(len(sizes)):
        counts = np.bincount(folds[labels == c], minlength=n_folds)
        assert counts.max() - counts.min() <= 1
    totals = np.bincount(folds)
    assert totals.max() - totals.min() <= 1


def test_folds_are_determined_by_the_seed() -> None:
    labels = np.arange(60) % 3

    np.testing.assert_array_equal(fold_numbers(labels, 1), fold_numbers(labels, 1))
    assert (fold_numbers(labels, 1) != fold_numbers(labels, 2)).any()


def test_folds_are_assigned_at_random() -> None:
    labels = np.zeros(1000, dtype=np.int64)

    folds = fold_numbers(labels, 0)

    assert abs(np.corrcoef(folds[1:], folds[:-1])[0, 1]) < 0.1


def test_the_number_of_folds_can_be_given() -> None:
    assert set(fold_numbers(np.arange(30) % 3, 0, n_folds=3)) == {0, 1, 2}


def test_a_class_that_does_not_occur_does_not_change_the_folds() -> None:
    assert fold_numbers(np.repeat([0, 2], 20), 0).max() == MAX_FOLDS - 1
