"""Nearest neighbours."""

import numpy as np

from advisor.measure.knn import knn_accuracy


def test_classes_that_lie_apart_are_told_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 25)
    folds = np.arange(100) % 5
    noise = rng.normal(size=(100, 16))
    apart = noise + 8 * np.eye(16)[labels]
    assert knn_accuracy(apart, labels, 4, folds).mid > 0.95
    chance = knn_accuracy(noise, labels, 4, folds)
    assert chance.low < 0.25 < chance.high + 0.1


def test_neighbours_of_the_own_fold_have_no_vote() -> None:
    x = np.repeat(np.random.default_rng(1).normal(size=(20, 8)), 2, axis=0)
    labels = np.repeat(np.arange(20) % 2, 2)
    together = np.repeat(np.arange(20), 2) % 5
    apart = np.tile([0, 1], 20)
    assert knn_accuracy(x, labels, 2, apart).mid == 1
    assert knn_accuracy(x, labels, 2, together).mid < 1
