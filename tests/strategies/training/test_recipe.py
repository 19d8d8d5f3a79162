import numpy as np
import pytest
from numpy.typing import NDArray

from strategies.core.errors import NotApplicable
from strategies.models.features import Features, Moments
from strategies.training.flip_symmetry import UNSEEN, FlipAsymmetry
from strategies.training.recipe import (
    FAR_LR,
    FAR_SHIFT,
    NEAR_BLEND,
    NEAR_LR,
    NEAR_SHIFT,
    ONE_SIDED,
    SEEN,
    Recipe,
    default_steps,
    domain_distance,
    domain_shift,
    fine_tune_defaults,
)

EVEN = FlipAsymmetry(0.0, 0.01)


def _features(offset: float, spread: float = 1.0, n: int = 400) -> Features:
    """Features whose activations have this mean and standard deviation at every layer."""
    means = np.full((n, 8), offset, dtype=np.float32)
    squares = means**2 + np.float32(spread**2)
    layer = np.repeat([0, 1], 4)
    moments = Moments(means, squares, layer, np.array([0.2, 0.7]), np.array([1, 2]))
    return Features((np.zeros((n, 3), dtype=np.float32),), moments)


def _without_moments() -> Features:
    pooled: NDArray[np.float32] = np.zeros((4, 3), dtype=np.float32)
    return Features((pooled,), None)


def test_images_like_those_of_pretraining_have_no_shift() -> None:
    assert domain_shift(_features(0.0)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("far", [(1.0, 1.0), (0.0, 3.0), (0.0, 0.2)])
def test_another_mean_or_spread_is_a_shift(far: tuple[float, float]) -> None:
    assert domain_shift(_features(*far)) > domain_shift(_features(0.1)) > 0


def test_near_images_that_a_probe_names_rightly_get_small_steps_half_way() -> None:
    found = fine_tune_defaults(_features(0.0), 0.95, EVEN)

    assert (found.lr, found.blend) == (NEAR_LR, NEAR_BLEND)


@pytest.mark.parametrize(("offset", "accuracy"), [(2.0, 0.95), (0.0, 0.3)])
def test_far_images_or_a_failing_probe_get_large_steps_in_full(
    offset: float, accuracy: float
) -> None:
    found = fine_tune_defaults(_features(offset), accuracy, EVEN)

    assert (found.lr, found.blend) == (FAR_LR, 1.0)


def test_a_probe_that_fails_on_few_near_images_says_only_that_they_are_few() -> None:
    few, some, many = (fine_tune_defaults(_features(0.0, n=n), 0.3, EVEN) for n in (40, 90, 200))

    assert (few.lr, few.blend) == (NEAR_LR, NEAR_BLEND)
    assert few.lr < some.lr < many.lr == FAR_LR
    assert fine_tune_defaults(_features(2.0, n=10), 0.3, EVEN).lr == FAR_LR


def test_small_steps_are_taken_in_full_where_a_probe_is_wrong_on_many_images() -> None:
    sizes = (100, 250, 500, 750, 2000)
    found = [fine_tune_defaults(_features(0.0, n=n), 0.8, EVEN) for n in sizes]
    blends = [d.blend for d in found]

    assert {d.lr for d in found} == {NEAR_LR}
    assert blends == sorted(blends)
    assert blends[:2] == [NEAR_BLEND, NEAR_BLEND]
    assert NEAR_BLEND < blends[2] < blends[3] == blends[4] == 1
    assert fine_tune_defaults(_features(0.0, n=2000), 1.0, EVEN).blend == NEAR_BLEND


def test_without_batch_norm_the_middle_is_taken() -> None:
    found = fine_tune_defaults(_without_moments(), 0.95, EVEN)

    assert NEAR_LR < found.lr < FAR_LR
    assert NEAR_BLEND < found.blend < 1


LEFT, SLIGHT = FlipAsymmetry(1.2 * ONE_SIDED, 0.01), FlipAsymmetry(0.8 * ONE_SIDED, 0.01)
VAGUE = FlipAsymmetry(1.2 * ONE_SIDED, 2 * SEEN)


@pytest.mark.parametrize(
    ("offset", "flip_asymmetry", "mirrored"),
    [
        (0.0, EVEN, True),
        (2.0, EVEN, True),
        (0.0, LEFT, False),
        (2.0, LEFT, False),
        (2.0, SLIGHT, True),
        (0.0, VAGUE, True),
        (2.0, VAGUE, False),
        (0.0, UNSEEN, True),
        (2.0, UNSEEN, False),
    ],
)
def test_images_are_mirrored_where_they_have_no_sides_and_unseen_only_near_ones(
    offset: float, flip_asymmetry: FlipAsymmetry, mirrored: bool
) -> None:
    assert fine_tune_defaults(_features(offset), 0.5, flip_asymmetry).hflip == mirrored


def test_farness_rises_from_near_to_far() -> None:
    shifts = np.linspace(0.01, 1, 50)
    found = [domain_distance(s) for s in shifts]

    assert (np.diff(found) >= 0).all()
    assert domain_distance(NEAR_SHIFT) == pytest.approx(0)
    assert domain_distance(FAR_SHIFT) == pytest.approx(1)


def test_more_images_get_more_steps_within_bounds() -> None:
    steps = [default_steps(n, 32) for n in (1, 100, 1000, 2000, 10**6)]

    assert steps == sorted(steps)
    assert steps[0] == 150
    assert steps[-1] == 600


@pytest.mark.parametrize(
    "wrong", [{"blend": 0.0}, {"layer_lr_decay": 1.5}, {"ema": 1.0}, {"spectral": -1.0}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(NotApplicable, match=next(iter(wrong))):
        Recipe(1, 0.1, **wrong)


@pytest.mark.parametrize(("steps", "share"), [(1000, 0.1), (200, 0.25), (60, 0.5)])
def test_a_short_training_warms_up_for_as_many_steps_as_a_long_one(
    steps: int, share: float
) -> None:
    assert Recipe(steps=steps, lr=1e-3).warmup == pytest.approx(share)
