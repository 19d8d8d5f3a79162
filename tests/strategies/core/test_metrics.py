import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import binomtest

from strategies.core.metrics import (
    LEVEL,
    Interval,
    accuracy,
    calibration_bins,
    calibration_error,
    log_loss,
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
