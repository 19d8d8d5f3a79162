import numpy as np
import pytest
from scipy.stats import entropy

from advisor.similarity.transferability import leep_terms, rate_features


def leep(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return leep_terms(probabilities, labels).mean()


def log_me(features: np.ndarray, labels: np.ndarray) -> float:
    return rate_features(features, labels, 0)["logme"].mid


def h_score(features: np.ndarray, labels: np.ndarray) -> float:
    return rate_features(features, labels, 0)["h_score"].mid


def one_hot(named: np.ndarray, n_classes: int) -> np.ndarray:
    return np.eye(n_classes)[named]


def test_leep_is_zero_if_the_source_class_determines_the_label() -> None:
    named, labels = np.array([0, 3, 5, 3, 0]), np.array([1, 0, 1, 0, 1])
    assert leep(one_hot(named, 6), labels) == pytest.approx(0)


def test_leep_is_minus_the_label_entropy_if_predictions_are_constant() -> None:
    labels = np.array([0, 0, 0, 1, 2, 2])
    expected = -entropy([3, 1, 2])
    assert leep(np.full((6, 4), 0.25), labels) == pytest.approx(expected)


def test_leep_is_at_most_zero() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        labels = rng.integers(3, size=50)
        assert leep(rng.dirichlet(np.ones(6), size=50), labels) <= 0


def test_renumbering_the_labels_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    probabilities, labels = rng.dirichlet(np.ones(4), size=40), rng.integers(3, size=40)
    assert leep(probabilities, labels * 5 + 2) == pytest.approx(leep(probabilities, labels))


def test_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="as many"):
        leep(np.full((2, 3), 1 / 3), np.array([0]))
    with pytest.raises(ValueError, match="at least one"):
        leep(np.empty((0, 3)), np.empty(0, dtype=np.int64))


def clusters(spread: float, n: int = 120, d: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    labels = np.arange(n) % 3
    x = rng.normal(size=(n, d))
    x[np.arange(n), labels] += spread
    return x, labels


def test_features_that_separate_the_classes_score_higher() -> None:
    for score in (log_me, h_score):
        found = [score(*clusters(spread)) for spread in (0.0, 2.0, 6.0)]
        assert found == sorted(found)
        assert found[0] < found[2]


def test_rotating_or_shifting_the_features_does_not_matter() -> None:
    x, labels = clusters(2.0)
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(20, 20)))[0]
    for score in (log_me, h_score):
        assert score(x @ turn + 5, labels) == pytest.approx(score(x, labels), rel=1e-6)


def test_log_me_is_the_largest_evidence_of_its_model() -> None:
    """Compare with a grid search over Gaussians with covariance X X' / alpha + 1 / beta."""
    x, labels = clusters(2.0, n=40, d=5)
    x = x - x.mean(axis=0)
    best = 0.0
    grid = np.exp(np.linspace(-4, 8, 60))
    for c in range(3):
        y = (labels == c) - np.mean(labels == c)
        values, axes = np.linalg.eigh(x @ x.T)
        z = (axes.T @ y) ** 2
        variance = (
            np.maximum(values, 0)[None, None] / grid[:, None, None] + (1 / grid)[None, :, None]
        )
        density = -0.5 * (np.log(2 * np.pi * variance) + z / variance).sum(axis=2)
        best += density.max() / len(y) / 3
    assert log_me(x, labels) == pytest.approx(best, abs=0.01)


def test_h_score_is_between_zero_and_the_number_of_classes_minus_one() -> None:
    for spread in (0.0, 1.0, 20.0):
        assert 0 <= h_score(*clusters(spread)) <= 2 + 1e-9


def test_intervals_contain_the_score_and_widen_with_fewer_images() -> None:
    x, labels = clusters(2.0, n=400)
    many, few = rate_features(x, labels, 0), rate_features(x[:40], labels[:40], 0)
    for name in ("logme", "h_score"):
        assert many[name].low < many[name].mid < many[name].high
        assert few[name].high - few[name].low > many[name].high - many[name].low


def test_features_that_are_zero_for_all_but_one_image_have_finite_scores() -> None:
    labels = np.arange(40) % 4
    dead = np.zeros((40, 8))
    dead[3, 0] = 0.5
    found = rate_features(dead, labels, 0)
    assert all(np.isfinite([i.low, i.mid, i.high]).all() for i in found.values())
