import numpy as np
import pytest

from advisor.similarity.bn_shift import balanced
from advisor.similarity.kernel_distance import (
    bootstrap_kernel_distance,
    cubic_kernels,
    kernel_distance,
    mmd2,
    permutation_p_value,
)


def sample(n: int, seed: int, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.abs(rng.normal(size=(n, 12)) + offset).astype(np.float32)


def equal_weights(n: int) -> np.ndarray:
    return np.full(n, 1 / n)


def test_mmd_is_computed_from_pairs_of_different_images_only() -> None:
    x, y = sample(5, 0, 1.0), sample(4, 1)
    size = np.sqrt(np.mean(y.astype(float) ** 2))

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a.astype(float) @ b / size**2 / 12 + 1) ** 3)

    own = np.mean([k(x[i], x[j]) for i in range(5) for j in range(5) if i != j])
    reference = np.mean([k(y[i], y[j]) for i in range(4) for j in range(4) if i != j])
    cross = np.mean([k(a, b) for a in x for b in y])
    assert mmd2(cubic_kernels(x, y), equal_weights(5)) == pytest.approx(
        own + reference - 2 * cross, rel=1e-4
    )


@pytest.mark.parametrize("n", [15, 60])
def test_the_mean_distance_is_zero_for_one_distribution_at_any_sample_size(
    n: int,
) -> None:
    found = [
        kernel_distance(cubic_kernels(sample(n, s), sample(80, s + 1000)), equal_weights(n))
        for s in range(150)
    ]
    assert np.mean(found) == pytest.approx(0, abs=4 * np.std(found) / np.sqrt(150))


def test_the_distance_grows_with_the_difference_and_stays_below_one() -> None:
    reference = sample(200, 1)
    found = [
        kernel_distance(cubic_kernels(sample(200, 2, o), reference), equal_weights(200))
        for o in (0, 1, 3)
    ]
    assert found == sorted(found)
    assert found[-1] < 1


def test_the_scale_of_the_features_does_not_matter() -> None:
    x, y = sample(20, 0, 1.0), sample(30, 1)
    once, scaled = cubic_kernels(x, y), cubic_kernels(100 * x, 100 * y)
    assert kernel_distance(once, equal_weights(20)) == pytest.approx(
        kernel_distance(scaled, equal_weights(20)), rel=1e-4
    )


def test_the_bootstrap_varies_like_independent_samples() -> None:
    reference = sample(300, 7)
    fresh = [
        kernel_distance(cubic_kernels(sample(50, s, 1.0), reference), equal_weights(50))
        for s in range(100)
    ]
    weights = balanced(np.zeros(50, dtype=np.int64))
    scatter = bootstrap_kernel_distance(
        cubic_kernels(sample(50, 999, 1.0), reference), weights, 500, np.random.default_rng(0)
    )
    assert scatter.std() == pytest.approx(np.std(fresh), rel=0.3)


def test_p_values_are_uniform_under_the_null_also_with_unequal_weights() -> None:
    rng = np.random.default_rng(0)
    share = balanced(np.array([0] * 15 + [1] * 3)).share
    found = [
        permutation_p_value(cubic_kernels(sample(18, s), sample(40, s + 500)), share, 99, rng)
        for s in range(200)
    ]
    assert np.mean(np.array(found) <= 0.1) == pytest.approx(0.1, abs=0.06)
    assert np.mean(found) == pytest.approx(0.5, abs=0.07)


def test_the_p_value_is_minimal_for_another_distribution_and_never_zero() -> None:
    kernels = cubic_kernels(sample(30, 0, 2.0), sample(60, 1))
    p_value = permutation_p_value(kernels, equal_weights(30), 99, np.random.default_rng(0))
    assert p_value == pytest.approx(0.01)


def test_without_permutations_the_p_value_is_one() -> None:
    kernels = cubic_kernels(sample(10, 0), sample(10, 1))
    assert permutation_p_value(kernels, equal_weights(10), 0, np.random.default_rng(0)) == 1
