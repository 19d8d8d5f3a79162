"""Recipe: fine-tuning defaults, domain shift, default steps and validation of settings."""

import numpy as np
import pytest
from numpy.typing import NDArray

from strategies.core.errors import NotApplicable
from strategies.models.features import Features, Moments
from strategies.training.flip_symmetry import UNKNOWN, FlipAsymmetry
from strategies.training.recipe import (
    ASYMMETRY_COSINE,
    FAR_LR,
    FAR_SHIFT,
    NEAR_BLEND,
    NEAR_LR,
    NEAR_SHIFT,
    PRECISE_SD,
    Recipe,
    default_steps,
    domain_distance,
    domain_shift,
    fine_tune_defaults,
)

SYMMETRIC = FlipAsymmetry(0.0, 0.01)


def _features(offset: float, spread: float = 1.0, n: int = 400) -> Features:
    """Return features with this mean and standard deviation at every BatchNorm layer."""
    means = np.full((n, 8), offset, dtype=np.float32)
    squares = means**2 + np.float32(spread**2)
    layer = np.repeat([0, 1], 4)
    moments = Moments(means, squares, layer, np.array([0.2, 0.7]), np.array([1, 2]))
    return Features((np.zeros((n, 3), dtype=np.float32),), moments)


def _without_moments() -> Features:
    pooled: NDArray[np.float32] = np.zeros((4, 3), dtype=np.float32)
    return Features((pooled,), None)


def test_images_with_pretraining_statistics_have_no_domain_shift() -> None:
    assert domain_shift(_features(0.0)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("far", [(1.0, 1.0), (0.0, 3.0), (0.0, 0.2)])
def test_another_mean_or_standard_deviation_is_a_domain_shift(far: tuple[float, float]) -> None:
    assert domain_shift(_features(*far)) > domain_shift(_features(0.1)) > 0


def test_near_images_with_a_good_probe_get_a_low_learning_rate_and_half_blend() -> None:
    found = fine_tune_defaults(_features(0.0), 0.95, SYMMETRIC)

    assert (found.lr, found.blend) == (NEAR_LR, NEAR_BLEND)


@pytest.mark.parametrize(("offset", "accuracy"), [(2.0, 0.95), (0.0, 0.3)])
def test_far_images_or_a_failing_probe_get_a_high_learning_rate_and_full_blend(
    offset: float, accuracy: float
) -> None:
    found = fine_tune_defaults(_features(offset), accuracy, SYMMETRIC)

    assert (found.lr, found.blend) == (FAR_LR, 1.0)


def test_a_failing_probe_raises_the_learning_rate_only_with_enough_images() -> None:
    few, some, many = (
        fine_tune_defaults(_features(0.0, n=n), 0.3, SYMMETRIC) for n in (40, 90, 200)
    )

    assert (few.lr, few.blend) == (NEAR_LR, NEAR_BLEND)
    assert few.lr < some.lr < many.lr == FAR_LR
    assert fine_tune_defaults(_features(2.0, n=10), 0.3, SYMMETRIC).lr == FAR_LR


def test_the_blend_grows_with_the_number_of_misclassified_images() -> None:
    sizes = (100, 250, 500, 750, 2000)
    found = [fine_tune_defaults(_features(0.0, n=n), 0.8, SYMMETRIC) for n in sizes]
    blends = [d.blend for d in found]

    assert {d.lr for d in found} == {NEAR_LR}
    assert blends == sorted(blends)
    assert blends[:2] == [NEAR_BLEND, NEAR_BLEND]
    assert NEAR_BLEND < blends[2] < blends[3] == blends[4] == 1
    assert fine_tune_defaults(_features(0.0, n=2000), 1.0, SYMMETRIC).blend == NEAR_BLEND


def test_without_batch_norm_the_defaults_are_intermediate() -> None:
    found = fine_tune_defaults(_without_moments(), 0.95, SYMMETRIC)

    assert NEAR_LR < found.lr < FAR_LR
    assert NEAR_BLEND < found.blend < 1


ASYMMETRIC = FlipAsymmetry(1.2 * ASYMMETRY_COSINE, 0.01)
SLIGHT = FlipAsymmetry(0.8 * ASYMMETRY_COSINE, 0.01)
IMPRECISE = FlipAsymmetry(1.2 * ASYMMETRY_COSINE, 2 * PRECISE_SD)


@pytest.mark.parametrize(
    ("offset", "flip_asymmetry", "hflip"),
    [
        (0.0, SYMMETRIC, True),
        (2.0, SYMMETRIC, True),
        (0.0, ASYMMETRIC, False),
        (2.0, ASYMMETRIC, False),
        (2.0, SLIGHT, True),
        (0.0, IMPRECISE, True),
        (2.0, IMPRECISE, False),
        (0.0, UNKNOWN, True),
        (2.0, UNKNOWN, False),
    ],
)
def test_flips_are_on_for_symmetric_classes_and_if_unknown_only_near_pretraining(
    offset: float, flip_asymmetry: FlipAsymmetry, hflip: bool
) -> None:
    assert fine_tune_defaults(_features(offset), 0.5, flip_asymmetry).hflip == hflip


def test_domain_distance_increases_with_the_shift() -> None:
    shifts = np.linspace(0.01, 1, 50)
    found = [domain_distance(s) for s in shifts]

    assert (np.diff(found) >= 0).all()
    assert domain_distance(NEAR_SHIFT) == pytest.approx(0)
    assert domain_distance(FAR_SHIFT) == pytest.approx(1)


def test_default_steps_grow_with_the_images_within_bounds() -> None:
    steps = [default_steps(n, 32) for n in (1, 100, 1000, 2000, 10**6)]

    assert steps == sorted(steps)
    assert steps[0] == 150
    assert steps[-1] == 600


@pytest.mark.parametrize(
    "wrong", [{"blend": 0.0}, {"layer_lr_decay": 1.5}, {"ema": 1.0}, {"spectral": -1.0}]
)
def test_settings_out_of_range_are_rejected(wrong: dict[str, float]) -> None:
    with pytest.raises(NotApplicable, match=next(iter(wrong))):
        Recipe(1, 0.1, **wrong)


@pytest.mark.parametrize(("steps", "share"), [(1000, 0.1), (200, 0.25), (60, 0.5)])
def test_a_short_run_has_at_least_the_minimum_number_of_warmup_steps(
    steps: int, share: float
) -> None:
    assert Recipe(steps=steps, lr=1e-3).warmup == pytest.approx(share)
