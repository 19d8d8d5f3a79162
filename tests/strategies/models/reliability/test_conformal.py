"""Quantiles of held-out scores and prediction sets: the guarantee, simulated."""

import numpy as np
import pytest

from strategies.models.reliability.conformal import (
    chance_of_as_many,
    classes_in_sets,
    fewest_images,
    nonconformity,
    upper_quantile,
)


@pytest.mark.parametrize(("n", "rate"), [(19, 0.05), (50, 0.1), (100, 0.02), (333, 0.05)])
def test_a_new_score_is_above_the_threshold_as_often_as_stated(n: int, rate: float) -> None:
    rng = np.random.default_rng(0)
    above = [
        float(np.mean(rng.normal(size=200) > upper_quantile(np.sort(rng.normal(size=n)), rate)))
        for _ in range(4000)
    ]
    assert rate - 1 / (n + 1) - 0.003 <= np.mean(above) <= rate + 0.003


def test_too_few_held_out_images_have_no_finite_threshold() -> None:
    scores = np.arange(18, dtype=np.float32)
    assert upper_quantile(scores, 0.05) == np.inf
    assert upper_quantile(np.append(scores, 18), 0.05) == 18
    assert fewest_images(0.05) == 19
    assert fewest_images(0.1) == 9


@pytest.mark.parametrize(("n", "n_new", "rate"), [(40, 30, 0.05), (333, 500, 0.05), (99, 20, 0.2)])
def test_as_many_above_the_threshold_are_as_rare_as_stated(
    n: int, n_new: int, rate: float
) -> None:
    rng = np.random.default_rng(2)
    above = []
    for _ in range(4000):
        threshold = upper_quantile(np.sort(rng.normal(size=n)), rate)
        above.append(int(np.sum(rng.normal(size=n_new) > threshold)))
    for number in np.quantile(above, (0.5, 0.9, 0.99)).astype(int):
        share = np.mean(np.array(above) >= number)
        assert chance_of_as_many(number, n_new, n, rate) == pytest.approx(share, abs=0.025)


def test_an_infinite_threshold_says_nothing_about_new_images() -> None:
    assert chance_of_as_many(0, 50, 18, 0.05) == 1
    assert chance_of_as_many(0, 50, 19, 0.05) == pytest.approx(1)


def test_the_threshold_falls_as_more_false_alarms_are_allowed() -> None:
    scores = np.sort(np.random.default_rng(1).normal(size=200)).astype(np.float32)
    found = [upper_quantile(scores, rate) for rate in (0.01, 0.05, 0.2, 0.5)]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 4


def _drawn(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels of four classes and overconfident probabilities: 60% are correct."""
    labels = rng.integers(4, size=n)
    scores = rng.normal(size=(n, 4))
    scores[np.arange(n), labels] += 1
    odds = np.exp(3 * scores)
    return (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_sets_cover_the_true_class_as_often_as_stated_whatever_the_probabilities(
    coverage: float,
) -> None:
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(300):
        held_out = np.sort(nonconformity(*_drawn(rng, 150)))
        probabilities, labels = _drawn(rng, 300)
        sets = classes_in_sets(probabilities, held_out, coverage)
        covered.append(sets[np.arange(300), labels].mean())
    assert coverage - 0.006 <= np.mean(covered) <= coverage + 1 / 151 + 0.006


def test_a_set_holds_the_most_probable_class_and_grows_with_the_coverage() -> None:
    rng = np.random.default_rng(3)
    held_out, (probabilities, _) = np.sort(nonconformity(*_drawn(rng, 500))), _drawn(rng, 100)
    small, large = (classes_in_sets(probabilities, held_out, c) for c in (0.2, 0.95))
    assert small[np.arange(100), probabilities.argmax(axis=1)].all()
    assert (small <= large).all()
    assert small.sum() < large.sum()
    # in a set, no class is less probable than one outside
    inside = np.where(large, probabilities, 1).min(axis=1)
    outside = np.where(large, 0, probabilities).max(axis=1)
    assert (inside >= outside).all()


def test_with_too_few_held_out_images_a_set_holds_all_classes() -> None:
    probabilities, labels = _drawn(np.random.default_rng(4), 8)
    held_out = np.sort(nonconformity(probabilities, labels))
    assert classes_in_sets(probabilities, held_out, 0.9).all()
    assert not classes_in_sets(probabilities, held_out, 0.5).all()
