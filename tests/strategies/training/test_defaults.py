"""Defaults of fine-tuning, chosen from measurements of the images."""

from dataclasses import replace

import numpy as np
import pytest

from strategies.core.metrics import FlipAsymmetry
from strategies.models.architectures.family import Family
from strategies.training.defaults import (
    ASYMMETRY_COSINE,
    DROP_PATH,
    FAR_LR,
    FAR_SHIFT,
    FEW,
    MANY,
    MAX_BATCH_SIZE,
    NEAR_BLEND,
    NEAR_LR,
    NEAR_SHIFT,
    PRECISE_SD,
    Defaults,
    TrainMeasurements,
    default_batch_size,
    default_steps,
    domain_distance,
    fill,
    fine_tune_defaults,
    is_open,
    lr_factor,
    settle,
)
from strategies.training.recipe import BATCH_SIZE, Recipe, RecipeDraft

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


def by_layer(
    change: float,
    n: int = 400,
    n_layers: int = 13,
    family: Family = "transformer",
) -> Defaults:
    """Return the defaults of a network with layers; change 0: near, 1: the probe fails."""
    accuracy = 0.95 if change == 0 else 0.3
    return fine_tune_defaults(
        TrainMeasurements(n, 13, 224, n, accuracy, 0.0, SYMMETRIC, family, n_layers)
    )


@pytest.mark.parametrize("family", ["transformer", "convnext"])
@pytest.mark.parametrize("n_layers", [5, 13, 25, 41])
def test_transformers_and_convnext_get_the_rates_and_decays_of_their_sources(
    family: Family, n_layers: int
) -> None:
    near, far = (by_layer(c, n_layers=n_layers, family=family) for c in (0, 1))

    assert 1e-5 <= near.lr < far.lr <= 2e-4
    assert near.layer_lr_decay is not None
    assert far.layer_lr_decay is not None
    assert 0.65 <= near.layer_lr_decay < far.layer_lr_decay <= 0.9


@pytest.mark.parametrize(("change", "base", "large"), [(0, 0.65, 0.75), (1, 0.85, 0.9)])
def test_layer_decay_is_that_of_beit_for_its_base_and_large_size(
    change: float, base: float, large: float
) -> None:
    found = [by_layer(change, n_layers=n).layer_lr_decay for n in (13, 25)]

    assert found == pytest.approx([base, large], abs=0.015)


def test_drop_path_is_off_for_few_images_and_small_for_many() -> None:
    few, some, many = (by_layer(0, n=n).drop_path for n in (FEW, 90, MANY))

    assert few == 0
    assert some is not None
    assert 0 < some < DROP_PATH == many


def test_a_convolutional_network_has_neither_drop_path_nor_decay_by_layer() -> None:
    found = defaults(0.0, 0.95, SYMMETRIC)
    draft = RecipeDraft(lr=1e-3, blend=0.5, hflip=True)

    assert found.layer_lr_decay is found.drop_path is None
    assert settle(draft, "convolutional") == draft
    assert not is_open(draft, "convolutional")


@pytest.mark.parametrize("family", ["transformer", "convnext"])
def test_what_the_architecture_alone_determines_is_set_where_it_is_open(
    family: Family,
) -> None:
    draft = RecipeDraft(steps=100, lr=1e-4, blend=1.0, hflip=True)
    settled = Recipe.of(settle(draft, family))
    pinned = settle(replace(draft, weight_decay=0.3, warmup_share=0.05), family)

    assert is_open(settle(draft, family), family)
    assert settled.by_layer
    assert settled.warmup_share > Recipe(steps=100, lr=1e-4).warmup_share
    assert (pinned.weight_decay, pinned.warmup_share) == (0.3, 0.05)


SIZES = (1, 100, 600, 1000, 2400, 4000, 4800, 5000, 9599, 9600, 20_000, 50_000, 76_800, 10**6)


@pytest.mark.parametrize("n", [1, 100, 600, 1000, 2400, 4000, 4800])
def test_up_to_4800_images_batch_and_steps_are_those_that_the_benchmarks_measured(n: int) -> None:
    assert default_batch_size(n) == BATCH_SIZE
    assert default_steps(n, BATCH_SIZE) == int(min(max(8 * n / 32, 150), 600))


@pytest.mark.parametrize("n", [n for n in SIZES if n > 4800])
def test_many_images_are_seen_four_times(n: int) -> None:
    batch_size = default_batch_size(n)
    epochs = default_steps(n, batch_size) * batch_size / n

    assert 4 <= epochs < 4 + batch_size / n


@pytest.mark.parametrize("n", SIZES)
def test_the_batch_is_the_largest_that_leaves_600_steps(n: int) -> None:
    batch_size = default_batch_size(n)
    allowed = [32, 64, 128, 256, 512]

    assert batch_size == max([b for b in allowed if 4 * n / b >= 600], default=32)


def test_steps_have_no_ceiling_and_grow_with_the_images_and_shrink_with_the_batch() -> None:
    one_batch = [default_steps(n, 32) for n in SIZES]

    assert one_batch == sorted(one_batch)
    assert default_steps(10**7, MAX_BATCH_SIZE) > 10 * default_steps(10**6, MAX_BATCH_SIZE) - 10
    assert default_steps(10**6, 64) == default_steps(10**6, 32) / 2


@pytest.mark.parametrize("batch_size", [8, 32, 64, 512])
def test_the_rate_grows_with_the_root_of_the_batch_for_adamw_and_with_the_batch_for_sgd(
    batch_size: int,
) -> None:
    ratio = batch_size / 32

    assert lr_factor(batch_size) ** 2 == pytest.approx(ratio)
    assert lr_factor(batch_size, "sgd") == pytest.approx(ratio)


def test_an_open_rate_fits_the_batch_and_a_given_one_is_kept() -> None:
    found = Defaults(3e-4, 0.5, hflip=True)

    assert fill(RecipeDraft(), found).lr == 3e-4
    assert fill(RecipeDraft(batch_size=128), found).lr == pytest.approx(6e-4)
    assert fill(RecipeDraft(batch_size=128, optimiser="sgd"), found).lr == pytest.approx(1.2e-3)
    assert fill(RecipeDraft(batch_size=128, lr=1e-3), found).lr == 1e-3
