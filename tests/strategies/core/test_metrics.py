import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest

from strategies.core.metrics import (
    LEVEL,
    Interval,
    accuracy,
    calibration_bins,
    calibration_error,
    calibration_error_interval,
    f1_interval,
    log_loss,
    log_loss_interval,
    mean_interval,
    mean_per_class,
    proportion,
    top_k,
)


@pytest.mark.parametrize(
    "values", [(0.5, 0.4, 0.6), (0.1, 0.7, 0.6), (0.0, float("nan"), 1.0), (0.9, 0.5, 0.1)]
)
def test_an_interval_refuses_values_out_of_order(values: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="low <= mid <= high"):
        Interval(*values)


def test_percent_shows_one_decimal_and_the_interval() -> None:
    assert Interval(0.88, 0.912, 0.937).percent() == "91.2% [88.0, 93.7]"
    assert Interval(-0.003, 0.012, 0.028).points() == "+1.2 points [-0.3, +2.8]"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("n", [30, 200])
def test_wilson_intervals_cover_the_true_share_at_the_stated_level(share: float, n: int) -> None:
    hits = np.random.default_rng(0).binomial(n, share, size=4000)
    intervals = {k: proportion(k / n, n) for k in np.unique(hits)}

    covered = np.mean([intervals[k].low <= share <= intervals[k].high for k in hits])

    assert covered == pytest.approx(LEVEL, abs=0.05)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (3, 7), (50, 50), (412, 900)])
def test_wilson_agrees_with_scipy(k: int, n: int) -> None:
    expected = binomtest(k, n).proportion_ci(LEVEL, method="wilson")
    found = proportion(k / n, n)

    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_more_trials_make_the_interval_narrower() -> None:
    widths = [(i := proportion(0.7, n)).high - i.low for n in (5, 50, 500, 5000)]

    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.03


def test_a_higher_level_makes_the_interval_wider() -> None:
    narrow, wide = proportion(0.7, 50, level=0.5), proportion(0.7, 50, level=0.99)

    assert wide.low < narrow.low < narrow.high < wide.high


def test_without_trials_the_interval_is_zero_to_one() -> None:
    assert proportion(0.5, 0) == Interval(0.0, 0.5, 1.0)


def test_accuracy_is_the_share_of_correct_predictions_with_its_interval() -> None:
    labels = np.array([0, 1, 2, 2])

    assert accuracy(np.array([0, 1, 0, 2]), labels) == proportion(0.75, 4)


def test_accuracy_without_labels_is_refused() -> None:
    empty = np.empty(0, dtype=np.int64)
    with pytest.raises(ValueError, match="at least one"):
        accuracy(empty, empty)


def test_mean_per_class_does_not_depend_on_class_sizes() -> None:
    labels = np.repeat([0, 1], [98, 2])

    assert mean_per_class(np.zeros(100, dtype=np.int64), labels) == 0.5


def test_mean_per_class_ignores_classes_that_do_not_occur() -> None:
    labels = np.array([0, 0, 3, 3])

    assert mean_per_class(np.array([0, 1, 3, 3]), labels) == 0.75


def _calibrated(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return random probabilities, and labels drawn from exactly these probabilities."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet([0.5, 0.5, 0.5], size=n)
    labels = (rng.random(n)[:, None] > probabilities.cumsum(axis=1)).sum(axis=1)
    return probabilities, labels


def test_calibration_error_of_true_probabilities_is_about_zero() -> None:
    assert calibration_error(*_calibrated(20_000)) < 0.015


def test_calibration_error_of_full_confidence_that_is_always_wrong_is_one() -> None:
    probabilities = np.tile([1.0, 0.0], (40, 1))

    assert calibration_error(probabilities, np.ones(40, dtype=np.int64)) == 1.0


def test_calibration_error_of_full_confidence_that_is_right_half_the_time_is_a_half() -> None:
    probabilities = np.tile([1.0, 0.0], (40, 1))
    labels = np.repeat([0, 1], 20)

    assert calibration_error(probabilities, labels) == pytest.approx(0.5)


def test_calibration_error_does_not_depend_on_the_order_of_images() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.choice([0.6, 0.7, 0.9], size=90)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = np.sort(rng.integers(0, 2, 90))
    shuffled = rng.permutation(90)

    assert calibration_error(probabilities, labels) == pytest.approx(
        calibration_error(probabilities[shuffled], labels[shuffled])
    )


def test_equal_confidences_that_match_their_accuracy_have_no_calibration_error() -> None:
    probabilities = np.tile([0.75, 0.25], (80, 1))
    labels = np.repeat([0, 1], [60, 20])

    assert calibration_error(probabilities, labels) == pytest.approx(0.0)


def test_calibration_error_works_with_fewer_images_than_bins() -> None:
    assert calibration_error(np.array([[0.8, 0.2]]), np.array([0])) == pytest.approx(0.2)


def test_overconfidence_raises_calibration_error() -> None:
    probabilities, labels = _calibrated(3000)
    sharpened = probabilities**4 / (probabilities**4).sum(axis=1, keepdims=True)

    assert calibration_error(sharpened, labels) > calibration_error(probabilities, labels) + 0.05


def test_log_loss_is_the_mean_negative_log_probability() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(20, 4)), rng.integers(0, 4, 20)
    expected = -log_softmax(logits, axis=1)[np.arange(20), labels].mean()

    assert log_loss(logits, labels) == pytest.approx(expected)


def test_log_loss_of_uniform_logits_is_the_log_of_the_number_of_classes() -> None:
    assert log_loss(np.zeros((5, 7)), np.arange(5)) == pytest.approx(np.log(7))


def test_log_loss_is_invariant_to_a_common_shift_and_stable_for_large_logits() -> None:
    logits = np.array([[1e4, 0.0], [0.0, 1e4]])

    assert log_loss(logits + 1e4, np.array([0, 1])) == pytest.approx(0.0)
    assert log_loss(logits, np.array([1, 0])) == pytest.approx(1e4)


def test_top_k_counts_labels_among_the_k_highest_scores() -> None:
    scores = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    labels = np.array([0, 1, 2])
    assert top_k(scores, labels, 1).mid == pytest.approx(1 / 3)
    assert top_k(scores, labels, 2).mid == pytest.approx(2 / 3)
    assert top_k(scores, labels, 3).mid == 1.0


def test_calibration_bins_increase_and_contain_all_images_and_match_the_accuracy() -> None:
    probabilities, labels = _calibrated(1000)
    bins = calibration_bins(probabilities, labels)
    assert sum(b.n for b in bins) == 1000
    assert [b.confidence for b in bins] == sorted(b.confidence for b in bins)
    right = sum(b.n * b.accuracy.mid for b in bins) / 1000
    assert right == pytest.approx(np.mean(probabilities.argmax(axis=1) == labels))
    inside = [b.accuracy.low <= b.confidence <= b.accuracy.high for b in bins]
    assert np.mean(inside) >= 0.7


def test_few_images_give_one_calibration_bin() -> None:
    (only,) = calibration_bins(np.array([[0.8, 0.2]]), np.array([0]))
    assert only.n == 1
    assert only.accuracy.mid == 1.0


def _answers(n: int, sharpness: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities and labels of a classifier; calibrated at sharpness 1."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, 4))
    shares = softmax(logits, axis=1)
    labels = (shares.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(0, 3)
    return softmax(sharpness * logits, axis=1), labels


@pytest.mark.parametrize(("sharpness", "true_error"), [(1.0, 0.0), (2.5, 0.196)])
def test_calibration_intervals_cover_the_true_error_about_as_stated(
    sharpness: float, true_error: float
) -> None:
    found = [
        calibration_error_interval(*_answers(300, sharpness, seed), seed=seed)
        for seed in range(40)
    ]
    if sharpness > 1:  # of very many images
        true_error = calibration_error(*_answers(200_000, sharpness, 999))
    covered = np.mean([i.low <= true_error <= i.high for i in found])
    assert covered >= LEVEL - 0.1
    assert np.mean([i.high - i.low for i in found]) < 0.12


def test_the_middle_of_a_calibration_interval_is_the_plain_error() -> None:
    probabilities, labels = _answers(200, 2.0, 1)
    found = calibration_error_interval(probabilities, labels)
    assert found.mid == calibration_error(probabilities, labels)
    assert calibration_error_interval(probabilities, labels) == found


def test_log_loss_intervals_have_the_mean_in_the_middle_and_cover_the_true_one() -> None:
    probabilities, labels = _answers(200, 1.5, 2)
    found = log_loss_interval(probabilities, labels)
    assert found.mid == pytest.approx(log_loss(np.log(probabilities), labels))
    true = log_loss_interval(*_answers(200_000, 1.5, 999)).mid
    intervals = [log_loss_interval(*_answers(200, 1.5, seed)) for seed in range(200)]
    covered = np.mean([i.low <= true <= i.high for i in intervals])
    assert covered == pytest.approx(LEVEL, abs=0.07)


def test_the_loss_of_a_probability_of_zero_is_finite() -> None:
    probabilities = np.array([[0.0, 1.0], [0.5, 0.5]], dtype=np.float32)
    found = log_loss_interval(probabilities, np.array([0, 0]))
    assert found.mid == pytest.approx((-np.log(np.finfo(np.float32).eps) + np.log(2)) / 2)


def test_the_mean_of_proportions_covers_the_true_mean_and_narrows_with_more_classes() -> None:
    rng = np.random.default_rng(0)
    shares, n = np.array([0.6, 0.95, 0.8]), 40
    found = [
        mean_interval([proportion(k / n, n) for k in rng.binomial(n, shares)]) for _ in range(2000)
    ]
    covered = np.mean([i.low <= shares.mean() <= i.high for i in found])
    assert covered == pytest.approx(LEVEL, abs=0.04)
    one, four = (mean_interval([proportion(0.8, n)] * k) for k in (1, 4))
    assert one == proportion(0.8, n)
    assert four.high - four.low == pytest.approx((one.high - one.low) / 2)


def test_the_f1_score_is_that_of_precision_and_recall_with_an_interval() -> None:
    found = f1_interval(30, 40, 50)
    assert found is not None
    precision, recall = 30 / 50, 30 / 40
    assert found.mid == pytest.approx(2 * precision * recall / (precision + recall))
    jaccard = proportion(30 / 60, 60)
    assert found.low == pytest.approx(2 * jaccard.low / (1 + jaccard.low))
    assert found.high == pytest.approx(2 * jaccard.high / (1 + jaccard.high))
    none = f1_interval(0, 5, 0)
    assert none is not None
    assert none.mid == 0
    assert f1_interval(0, 0, 0) is None
