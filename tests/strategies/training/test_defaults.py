"""Defaults of fine-tuning, chosen from measurements of the images."""

import numpy as np
import pytest

from strategies.core.metrics import FlipAsymmetry
from strategies.training.defaults import (
    ASYMMETRY_COSINE,
    FAR_LR,
    FAR_SHIFT,
    NEAR_BLEND,
    NEAR_LR,
    NEAR_SHIFT,
    PRECISE_SD,
    Defaults,
    TrainMeasurements,
    default_steps,
    domain_distance,
    fine_tune_defaults,
)

SYMMETRIC = FlipAsymmetry(0.0, 0.01)
FAR = 2 * FAR_SHIFT


def defaults(
    shift: float | None, accuracy: float, asymmetry: FlipAsymmetry | None, n: int = 400
) -> Defaults:
    return fine_tune_defaults(TrainMeasurements(n, 6, 96, n, accuracy, shift, asymmetry))


def test_near_images_with_a_good_probe_get_a_low_learning_rate_and_half_blend() -> None:
    found = defaults(0.0, 0.95, SYMMETRIC)

    assert (found.lr, found.blend) == (NEAR_LR, NEAR_BLEND)


@pytest.mark.parametrize(("shift", "accuracy"), [(FAR, 0.95), (0.0, 0.3)])
def test_far_images_or_a_failing_probe_get_a_high_learning_rate_and_full_blend(
    shift: float, accuracy: float
) -> None:
    found = defaults(shift, accuracy, SYMMETRIC)

    assert (found.lr, found.blend) == (FAR_LR, 1.0)


def test_a_failing_probe_raises_the_learning_rate_only_with_enough_images() -> None:
    few, some, many = (defaults(0.0, 0.3, SYMMETRIC, n=n) for n in (40, 90, 200))

    assert (few.lr, few.blend) == (NEAR_LR, NEAR_BLEND)
    assert few.lr < some.lr < many.lr == FAR_LR
    assert defaults(FAR, 0.3, SYMMETRIC, n=10).lr == FAR_LR


def test_the_blend_grows_with_the_number_of_misclassified_images() -> None:
    sizes = (100, 250, 500, 750, 2000)
    found = [defaults(0.0, 0.8, SYMMETRIC, n=n) for n in sizes]
    blends = [d.blend for d in found]

    assert {d.lr for d in found} == {NEAR_LR}
    assert blends == sorted(blends)
    assert blends[:2] == [NEAR_BLEND, NEAR_BLEND]
    assert NEAR_BLEND < blends[2] < blends[3] == blends[4] == 1
    assert defaults(0.0, 1.0, SYMMETRIC, n=2000).blend == NEAR_BLEND


def test_without_batch_norm_the_defaults_are_intermediate() -> None:
    found = defaults(None, 0.95, SYMMETRIC)

    assert NEAR_LR < found.lr < FAR_LR
    assert NEAR_BLEND < found.blend < 1


ASYMMETRIC = FlipAsymmetry(1.2 * ASYMMETRY_COSINE, 0.01)
SLIGHT = FlipAsymmetry(0.8 * ASYMMETRY_COSINE, 0.01)
IMPRECISE = FlipAsymmetry(1.2 * ASYMMETRY_COSINE, 2 * PRECISE_SD)


@pytest.mark.parametrize(
    ("shift", "flip_asymmetry", "hflip"),
    [
        (0.0, SYMMETRIC, True),
        (FAR, SYMMETRIC, True),
        (0.0, ASYMMETRIC, False),
        (FAR, ASYMMETRIC, False),
        (FAR, SLIGHT, True),
        (0.0, IMPRECISE, True),
        (FAR, IMPRECISE, False),
        (0.0, None, True),
        (FAR, None, False),
    ],
)
def test_flips_are_on_for_symmetric_classes_and_if_unknown_only_near_pretraining(
    shift: float, flip_asymmetry: FlipAsymmetry | None, hflip: bool
) -> None:
    assert defaults(shift, 0.5, flip_asymmetry).hflip == hflip


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
