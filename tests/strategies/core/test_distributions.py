import numpy as np
import pytest
from scipy import stats

from strategies.core.distributions import betabinom, binom, norm, rankdata, student_t

SHARES = np.array([1e-12, 0.01, 0.3, 0.5, 0.95, 1 - 1e-9])


def test_the_normal_distribution_is_that_of_scipy() -> None:
    values = np.linspace(-40, 40, 801)

    np.testing.assert_array_equal(norm.ppf(SHARES), stats.norm.ppf(SHARES))
    np.testing.assert_array_equal(norm.sf(values), stats.norm.sf(values))


@pytest.mark.parametrize("freedom", [1, 2, 7, 300])
def test_quantiles_of_student_are_those_of_scipy(freedom: int) -> None:
    ours = [student_t.ppf(share, freedom) for share in SHARES]

    np.testing.assert_array_equal(ours, stats.t.ppf(SHARES, freedom))


@pytest.mark.parametrize("n", [1, 2, 9, 100, 5000])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.97, 1.0])
def test_binomial_tails_are_those_of_scipy(n: int, p: float) -> None:
    for k in {-1, 0, n // 2, n - 1, n}:
        assert binom.sf(k, n, p) == pytest.approx(stats.binom.sf(k, n, p), rel=1e-12)


@pytest.mark.parametrize("n", [1, 9, 100, 5000])
@pytest.mark.parametrize(("a", "b"), [(1, 20), (16, 285), (501, 9500), (0.5, 0.5)])
def test_beta_binomial_tails_are_those_of_scipy(n: int, a: float, b: float) -> None:
    for k in {-1, 0, n // 10, n // 2, n - 1, n}:
        expected = stats.betabinom.sf(k, n, a, b)
        assert betabinom.sf(k, n, a, b) == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    values = np.random.default_rng(0).integers(0, 20, 100).astype(float)

    np.testing.assert_array_equal(rankdata(values), stats.rankdata(values))
