import numpy as np
import pytest
from scipy.stats import entropy

from advisor.transferability import leep, nce


def one_hot(named: np.ndarray, n_classes: int) -> np.ndarray:
    return np.eye(n_classes)[named]


def test_zero_when_the_old_class_determines_the_label() -> None:
    named, labels = np.array([0, 3, 5, 3, 0]), np.array([1, 0, 1, 0, 1])
    assert nce(named, labels) == pytest.approx(0)
    assert leep(one_hot(named, 6), labels) == pytest.approx(0)


def test_minus_the_entropy_of_the_labels_when_the_old_head_says_nothing() -> None:
    labels = np.array([0, 0, 0, 1, 2, 2])
    expected = -entropy([3, 1, 2])
    assert nce(np.zeros(6, dtype=np.int64), labels) == pytest.approx(expected)
    assert leep(np.full((6, 4), 0.25), labels) == pytest.approx(expected)


def test_leep_of_certain_predictions_is_nce() -> None:
    rng = np.random.default_rng(0)
    named, labels = rng.integers(4, size=80), rng.integers(3, size=80)
    assert leep(one_hot(named, 4), labels) == pytest.approx(nce(named, labels))


def test_never_above_zero_nor_below_what_ignoring_the_old_head_gives() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        labels = rng.integers(3, size=50)
        named = rng.integers(6, size=50)
        share = np.bincount(labels) / 50
        assert -entropy(share) - 1e-9 <= nce(named, labels) <= 0
        assert leep(rng.dirichlet(np.ones(6), size=50), labels) <= 0


def test_the_numbers_of_labels_do_not_matter() -> None:
    rng = np.random.default_rng(2)
    named, labels = rng.integers(4, size=40), rng.integers(3, size=40)
    assert nce(named * 7 + 1, labels * 5 + 2) == pytest.approx(nce(named, labels))


def test_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="as many"):
        nce(np.array([0, 1]), np.array([0]))
    with pytest.raises(ValueError, match="at least one"):
        leep(np.empty((0, 3)), np.empty(0, dtype=np.int64))
