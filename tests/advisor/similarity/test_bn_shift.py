from dataclasses import replace

import numpy as np
import pytest

from advisor.similarity.bn_shift import (
    SourceMoments,
    balanced,
    bootstrap_layer_shifts,
    bootstrap_weights,
    layer_shifts,
    shift_intervals,
    small_sample_factor,
)
from strategies.models.domain_shift import VARIANCE_OFFSET, bn_shift
from strategies.models.moments import Moments

CHANNELS = 40
STANDARD = SourceMoments(np.zeros(CHANNELS), np.ones(CHANNELS))


def make_moments(
    n: int, seed: int, offset: float = 0.0, scale: float = 1.0, positions: int = 16
) -> Moments:
    """Make moments of normal activations that vary between images and between positions."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 0.6, (n, 1, CHANNELS))
    z = offset + scale * (image + rng.normal(0, 0.8, (n, positions, CHANNELS)))
    return Moments(
        z.mean(axis=1).astype(np.float32),
        np.square(z).mean(axis=1).astype(np.float32),
        np.repeat(np.arange(4), CHANNELS // 4),
        np.array([1, 1, 2, 2]),
    )


def one_class(n: int) -> np.ndarray:
    return np.zeros(n, dtype=np.int64)


def test_the_shift_is_zero_if_the_moments_are_those_of_the_source() -> None:
    source = SourceMoments(np.array([0.3, -1.0]), np.array([0.5, 2.0]))
    assert bn_shift(source.mean, source.variance, source.mean, source.variance) == pytest.approx(
        [0, 0]
    )


@pytest.mark.parametrize(("mean", "variance"), [(0.5, 1.0), (0.0, 0.4), (0.0, 3.0), (-1.0, 0.1)])
def test_the_shift_is_the_divergence_of_normal_distributions(mean: float, variance: float) -> None:
    x = np.linspace(-30, 30, 200_001)
    v, s = variance + VARIANCE_OFFSET, 1 + VARIANCE_OFFSET
    p = np.exp(-((x - mean) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v)
    log_ratio = -((x - mean) ** 2) / (2 * v) + x**2 / (2 * s) + 0.5 * np.log(s / v)
    expected = np.trapezoid(p * log_ratio, x)
    found = bn_shift(np.array([mean]), np.array([variance]), 0.0, 1.0)
    assert found[0] == pytest.approx(expected, rel=1e-4)


def test_the_shift_of_a_channel_without_variance_is_bounded() -> None:
    found = bn_shift(np.zeros(1), np.zeros(1), 0.0, 1.0)
    assert np.isfinite(found).all()
    assert found[0] < 2


@pytest.mark.parametrize("offset", [0.0, 0.4])
def test_the_estimate_does_not_grow_with_fewer_images(offset: float) -> None:
    few = [
        layer_shifts(make_moments(20, seed, offset), balanced(one_class(20)), STANDARD).mean()
        for seed in range(80)
    ]
    many = layer_shifts(
        make_moments(8000, 999, offset), balanced(one_class(8000)), STANDARD
    ).mean()
    error = np.std(few) / np.sqrt(len(few))
    assert np.mean(few) == pytest.approx(many, abs=4 * error + 0.002)


def test_a_class_with_many_images_does_not_dominate_the_shift() -> None:
    near, far = make_moments(400, 1), make_moments(400, 2, offset=1.0)

    def shift(n_near: int, n_far: int) -> float:
        moments = replace(
            near,
            mean=np.concatenate([near.mean[:n_near], far.mean[:n_far]]),
            square=np.concatenate([near.square[:n_near], far.square[:n_far]]),
        )
        labels = np.repeat([0, 1], [n_near, n_far])
        return float(layer_shifts(moments, balanced(labels), STANDARD).mean())

    even = shift(200, 200)
    assert shift(400, 40) == pytest.approx(even, abs=0.03)
    assert shift(40, 400) == pytest.approx(even, abs=0.03)


def test_the_bootstrap_varies_like_independent_samples() -> None:
    weights = balanced(one_class(60))
    fresh = [
        layer_shifts(make_moments(60, seed, 0.5), weights, STANDARD).mean() for seed in range(200)
    ]
    scatter = bootstrap_layer_shifts(
        make_moments(60, 500, 0.5), weights, STANDARD, 400, np.random.default_rng(0)
    ).mean(axis=1)
    assert scatter.mean() == pytest.approx(0, abs=1e-6)
    assert scatter.std() == pytest.approx(np.std(fresh), rel=0.3)


@pytest.mark.parametrize("sizes", [[2, 2, 2], [3, 3], [10, 2], [30]])
def test_resampling_has_the_variance_of_an_unbiased_estimate(sizes: list[int]) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    weights = balanced(labels)
    values = np.random.default_rng(3).normal(size=len(labels))
    expected = sum(
        weights.share[labels == c].sum() ** 2 * values[labels == c].var(ddof=1) / size
        for c, size in enumerate(sizes)
    )
    drawn = bootstrap_weights(weights, 20_000, np.random.default_rng(4)) @ values
    assert drawn.mean() == pytest.approx(weights.share @ values, abs=0.02)
    assert drawn.var() == pytest.approx(expected, rel=0.06)


def test_resampled_weights_sum_to_one_and_keep_the_share_of_every_class() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    weights = balanced(labels)
    drawn = bootstrap_weights(weights, 50, np.random.default_rng(0))
    assert (drawn >= 0).all()
    assert drawn.sum(axis=1) == pytest.approx(np.ones(50))
    for label in range(3):
        own = labels == label
        assert drawn[:, own].sum(axis=1) == pytest.approx(weights.share[own].sum())


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 0, 0, 1], [0, 0, 1, 2], [0], [5, 5, 9, 9]])
def test_no_stratum_has_a_single_image_unless_there_is_only_one_image(labels: list[int]) -> None:
    weights = balanced(np.array(labels))
    assert weights.share.sum() == pytest.approx(1)
    assert weights.sizes.min() >= min(2, len(labels))


def test_ninety_percent_intervals_have_about_their_nominal_coverage() -> None:
    population = make_moments(4000, 0, offset=0.4)
    truth = layer_shifts(population, balanced(np.zeros(4000, dtype=np.int64)), STANDARD).mean()
    is_covered = []
    for seed in range(100):
        moments = make_moments(40, seed + 1, offset=0.4)
        shift, _ = shift_intervals(
            moments, np.arange(40) % 2, STANDARD, 1, np.random.default_rng(seed)
        )
        is_covered.append(shift.low <= truth <= shift.high)
    assert 0.8 <= np.mean(is_covered) <= 0.98


def test_the_interval_is_wider_with_few_images() -> None:
    widths = [small_sample_factor(balanced(np.zeros(n, dtype=np.int64))) for n in (3, 20, 1000)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == pytest.approx(1, abs=0.01)
