import numpy as np
import pytest
from scipy.special import softmax

from strategies.core.folds import fold_numbers
from strategies.core.metrics import log_loss
from strategies.heads.cross_validation import (
    STRENGTHS,
    best_of,
    corrected_accuracy,
    cross_validate,
    one_standard_error_rule,
    significantly_better,
    temperature,
)

Data = tuple[np.ndarray, np.ndarray]


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_temperature_is_recovered(true: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 4)) * 2
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)

    found, loss = temperature(logits * true, labels)

    assert found == pytest.approx(true, rel=0.05)
    assert loss == pytest.approx(log_loss(logits * true / found, labels))


def test_the_best_strength_has_the_least_calibrated_loss() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    good = 2 * np.eye(3)[labels] + rng.normal(size=(400, 3))
    scores = np.stack([rng.normal(size=(400, 3)), 50 * good, good + 3 * rng.normal(size=(400, 3))])

    # The temperature corrects overconfidence, so it must not affect the choice.
    assert best_of(scores.astype(np.float32), labels, (3.0, 2.0, 1.0)).best == 1


def test_corrected_accuracy_of_the_best_random_setting_is_at_chance() -> None:
    chance, n, naive, corrected, covered = 0.25, 60, [], [], []
    for seed in range(60):
        correct = np.random.default_rng(seed).random((20, n)) < chance
        interval = corrected_accuracy(correct, seed, draws=200)
        naive.append(correct.mean(axis=1).max())
        corrected.append(interval.mid)
        covered.append(interval.low <= chance <= interval.high)

    assert np.mean(corrected) == pytest.approx(chance, abs=0.02)
    assert np.mean(naive) > chance + 0.08
    assert np.mean(covered) >= 0.9


def test_cross_validated_accuracy_on_random_labels_is_at_chance() -> None:
    accuracies = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x, labels = rng.normal(size=(60, 30)).astype(np.float32), rng.permutation(60) % 3
        folds = fold_numbers(labels, seed)
        tried = cross_validate(x, labels, 3, folds=folds, strengths=STRENGTHS[:6:2])
        accuracies.append(corrected_accuracy(tried.correct, seed, draws=100).mid)

    assert np.mean(accuracies) == pytest.approx(1 / 3, abs=0.06)


def test_the_accuracy_of_a_clearly_best_setting_is_not_corrected() -> None:
    rng = np.random.default_rng(0)
    correct = np.stack([rng.random(400) < 0.9, rng.random(400) < 0.3])

    assert corrected_accuracy(correct, 0).mid == pytest.approx(correct[0].mean(), abs=0.01)


def test_a_single_setting_needs_no_correction() -> None:
    correct = np.arange(50)[None] % 5 > 0

    assert corrected_accuracy(correct, 0).mid == pytest.approx(0.8)


def test_a_few_correct_images_do_not_give_full_confidence() -> None:
    labels = np.array([0, 1, 0, 1, 0, 1])
    scores = np.eye(2)[labels]

    few, _ = temperature(scores, labels)
    many, _ = temperature(np.tile(scores, (100, 1)), np.tile(labels, 100))

    assert softmax(scores / few, axis=1).max() < 0.98
    assert softmax(scores / many, axis=1).max() > 0.995


def scores_and_labels(
    n: int, true: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw scores with a known temperature, and labels from their probabilities."""
    logits = rng.normal(size=(n, 4)) * 2
    return logits * true, (logits + rng.gumbel(size=logits.shape)).argmax(1)


def test_the_prior_shrinks_temperatures_of_few_images_to_1_and_hardly_those_of_many() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 3, 10, 100):
        free, shrunk = (
            np.log(
                temperature(*scores_and_labels(n, 3.0, np.random.default_rng(n)), spread=spread)[0]
            )
            for spread in (np.inf, 0.5)
        )
        assert 0 <= shrunk / free <= 1
    assert abs(np.log(temperature(*scores_and_labels(1, 3.0, rng), spread=0.5)[0])) < 0.5
    assert temperature(*scores_and_labels(20_000, 3.0, rng), spread=0.5)[0] == pytest.approx(
        3, rel=0.05
    )


def test_the_prior_on_temperature_improves_calibration_from_few_images() -> None:
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(100):
        true = float(np.exp(rng.normal(0.3, np.log(2))))  # most networks are overconfident
        scores, labels = scores_and_labels(6, true, rng)
        others, truth = scores_and_labels(500, true, rng)
        free, shrunk = (
            log_loss(others / temperature(scores, labels, spread=spread)[0], truth)
            for spread in (np.inf, np.log(2))
        )
        gains.append(free - shrunk)
    assert np.mean(gains) > 2 * np.std(gains) / np.sqrt(len(gains))


def test_another_setting_is_chosen_only_if_significantly_better() -> None:
    n = 100
    first = np.arange(n) < 60
    lucky = np.arange(n) < 63
    better, best = np.arange(n) < 80, np.arange(n) < 85

    assert significantly_better([first, lucky], [1.0, 0.5]) == 0
    assert significantly_better([first, lucky, better], [1.0, 0.1, 0.5]) == 2
    assert significantly_better([first, better, best], [1.0, 0.4, 0.5]) == 1
    assert significantly_better([best, first], [1.0, 0.1]) == 0


def test_the_first_setting_is_kept_unless_another_is_better_by_two_standard_errors() -> None:
    noise = np.random.default_rng(0).normal(size=100)
    first = 1 + noise
    unclear = first - 0.15 + np.tile([1.0, -1.0], 50)  # one and a half standard errors
    clear = first - 0.5 + 0.1 * np.random.default_rng(2).normal(size=100)

    assert one_standard_error_rule([first, first, first + 0.1], [3, 1, 2]) == 0
    assert one_standard_error_rule([first, unclear], [2, 1]) == 0
    assert one_standard_error_rule([first, unclear, clear], [1, 1, 3]) == 2


def test_the_cheapest_setting_within_one_standard_error_of_the_best_is_chosen() -> None:
    rng = np.random.default_rng(0)
    first = 2 + rng.normal(size=100)
    best, near, far = (first - gain + 0.3 * rng.normal(size=100) for gain in (1.0, 0.99, 0.6))

    assert one_standard_error_rule([first, best, near, far], [9, 3, 2, 1]) == 2
    assert one_standard_error_rule([first, best, near, far], [9, 2, 3, 1]) == 1


def test_of_many_equal_settings_the_first_is_mostly_kept() -> None:
    rng = np.random.default_rng(0)
    chosen = [
        one_standard_error_rule(list(rng.normal(size=(17, 20))), [1] * 17) for _ in range(200)
    ]
    assert np.mean([c > 0 for c in chosen]) < 0.4


def test_with_a_single_image_the_first_setting_is_kept() -> None:
    assert one_standard_error_rule([np.array([1.0]), np.array([0.1])], [1, 1]) == 0
