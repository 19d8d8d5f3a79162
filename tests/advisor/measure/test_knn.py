"""k-nearest-neighbour accuracy."""

import numpy as np

from advisor.measure.knn import knn_accuracy


def test_separated_classes_are_classified_and_noise_is_at_chance() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 25)
    folds = np.arange(100) % 5
    noise = rng.normal(size=(100, 16))
    apart = noise + 8 * np.eye(16)[labels]
    assert knn_accuracy(apart, labels, 4, folds).mid > 0.95
    chance = knn_accuracy(noise, labels, 4, folds)
    assert chance.low < 0.25 < chance.high + 0.1


def test_neighbours_in_the_same_fold_have_no_vote() -> None:
    x = np.repeat(np.random.default_rng(1).normal(size=(20, 8)), 2, axis=0)
    labels = np.repeat(np.arange(20) % 2, 2)
    together = np.repeat(np.arange(20), 2) % 5
    apart = np.tile([0, 1], 20)
    assert knn_accuracy(x, labels, 2, apart).mid == 1
    assert knn_accuracy(x, labels, 2, together).mid < 1
