"""Hyperparameters of fine-tuning: those of transformers differ from those of other networks."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from strategies.base import Strategy
from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.fine_tuning import FineTuning
from strategies.first_stages import FirstStages
from strategies.from_scratch import FromScratch
from strategies.full_fine_tune import FullFineTune
from strategies.lora import Lora
from strategies.models.backbone import Backbone
from strategies.norm_tune import NormTune
from strategies.partial_fine_tune import PartialFineTune
from strategies.training.defaults import (
    TrainMeasurements,
    default_batch_size,
    default_steps,
    lr_factor,
)
from strategies.training.lp_ft import PASSES_PER_STEP

DECAYED = (FullFineTune, PartialFineTune)
WHOLE_LAYERS = (*DECAYED, FirstStages)
TRAINED: tuple[type[Strategy], ...] = (*WHOLE_LAYERS, NormTune, FromScratch)
MEASURED = TrainMeasurements(100, 7, 160, 100, 0.8, 0.15, None)
"""Measurements for a convolutional network."""
OF_TRANSFORMER = replace(MEASURED, family="transformer", n_layers=7)


@pytest.fixture
def vit(load_random: Callable[..., Backbone]) -> Backbone:
    return load_random("test_vit")


@pytest.mark.parametrize("kind", TRAINED)
def test_a_transformers_starting_point_lies_in_its_search_space(
    kind: type[Strategy], vit: Backbone, small_dataset: Dataset
) -> None:
    start = kind.starting_point(OF_TRANSFORMER)
    given = start.hyperparameters()
    assert start.inapplicable(small_dataset, vit) is None
    assert kind.from_hyperparameters(given) == start
    for key, distribution in kind.search_space(small_dataset, vit).items():
        assert distribution._contains(distribution.to_internal_repr(given[key])), key


@pytest.mark.parametrize("kind", WHOLE_LAYERS)
def test_layer_decay_and_drop_path_are_searched_for_transformers_only(
    kind: type[Strategy], vit: Backbone, backbone: Backbone, small_dataset: Dataset
) -> None:
    of_vit = kind.search_space(small_dataset, vit)
    of_cnn = kind.search_space(small_dataset, backbone)
    decayed = {"layer_lr_decay"} if kind in DECAYED else set()
    assert of_vit.keys() - of_cnn.keys() == {"drop_path", *decayed}
    assert of_vit["lr"] == FloatDistribution(1e-6, 5e-4, log=True)
    assert of_cnn["lr"] == FloatDistribution(3e-5, 3e-3, log=True)
    assert of_cnn.keys() - of_vit.keys() <= {"batch_norm"}


def test_the_mode_of_batch_norm_is_searched_for_networks_with_batch_norm_only(
    vit: Backbone, backbone: Backbone, small_dataset: Dataset
) -> None:
    assert "batch_norm" in FullFineTune.search_space(small_dataset, backbone)
    assert "batch_norm" not in FullFineTune.search_space(small_dataset, vit)


def test_the_first_stages_of_a_transformer_are_trained_at_the_full_learning_rate() -> None:
    assert FirstStages.starting_point(OF_TRANSFORMER).recipe.layer_lr_decay == 1.0


@pytest.mark.parametrize("kind", TRAINED)
def test_the_default_learning_rate_of_a_transformer_is_smaller(kind: type[Strategy]) -> None:
    of_vit, of_cnn = (kind.starting_point(m).hyperparameters() for m in (OF_TRANSFORMER, MEASURED))
    assert of_vit["lr"] < of_cnn["lr"]


def test_hyperparameters_of_transformers_are_not_listed_for_convolutional_networks() -> None:
    found = PartialFineTune.starting_point(MEASURED).hyperparameters()
    assert not {"layer_lr_decay", "drop_path"} & found.keys()
    assert FullFineTune.starting_point(MEASURED).hyperparameters()["layer_lr_decay"] == 1.0
    assert {"layer_lr_decay", "drop_path"} <= PartialFineTune.starting_point(
        OF_TRANSFORMER
    ).hyperparameters().keys()


def test_drop_path_is_refused_for_a_convolutional_network(
    small_dataset: Dataset, backbone: Backbone
) -> None:
    for kind in WHOLE_LAYERS:
        reason = kind.from_hyperparameters({"drop_path": 0.1}).inapplicable(
            small_dataset, backbone
        )
        assert reason is not None
        assert "drop_path" in reason
        none = kind.from_hyperparameters({"drop_path": 0.0})
        assert none.inapplicable(small_dataset, backbone) is None


@pytest.mark.parametrize("kind", TRAINED)
def test_a_classifier_of_a_transformer_records_settings_that_fit_the_same_again(
    kind: type[Strategy], vit: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    fitted = kind.from_hyperparameters({"steps": 2}).fit(small_dataset.hide_test(), vit, ctx)
    again = kind.from_hyperparameters(fitted.hyperparameters)
    assert dict(fitted.hyperparameters) == again.hyperparameters()
    assert None not in fitted.hyperparameters.values()
    assert ("drop_path" in fitted.hyperparameters) == (kind in WHOLE_LAYERS)


N_MANY = 20_000
MANY = replace(MEASURED, n_train=N_MANY)


def many_images(dataset: Dataset) -> Dataset:
    """Return a dataset that repeats its train images up to `N_MANY`; nothing reads them."""
    n = len(dataset.train)
    return replace(dataset, train=(dataset.train * (N_MANY // n + 1))[:N_MANY])


@pytest.mark.parametrize("kind", [*WHOLE_LAYERS, NormTune, Lora])
def test_many_images_get_a_larger_batch_and_the_rate_that_fits_it(
    kind: type[FineTuning], small_dataset: Dataset, backbone: Backbone
) -> None:
    few, many = kind.starting_point(MEASURED), kind.starting_point(MANY)
    batch_size = default_batch_size(N_MANY)

    assert "batch_size" not in few.hyperparameters()
    assert many.hyperparameters()["batch_size"] == batch_size == 128
    assert few.recipe.lr is not None
    assert many.recipe.lr == pytest.approx(few.recipe.lr * lr_factor(batch_size), rel=0.02)
    assert kind.from_hyperparameters(many.hyperparameters()) == many
    space = kind.search_space(many_images(small_dataset), backbone)["lr"]
    assert isinstance(space, FloatDistribution)
    assert space.low == pytest.approx(kind.lr_range[0] * lr_factor(batch_size))
    assert space.low < many.recipe.lr < space.high


def test_many_images_are_seen_twice_by_every_full_fine_tuning_that_a_search_tries(
    small_dataset: Dataset, backbone: Backbone
) -> None:
    batch_size = default_batch_size(N_MANY)
    space = FullFineTune.search_space(many_images(small_dataset), backbone)["steps"]
    start = FullFineTune.starting_point(MANY).hyperparameters()["steps"]

    assert isinstance(space, IntDistribution)
    assert space.low * batch_size >= 2 * N_MANY - batch_size
    assert start * batch_size >= 4 * N_MANY


def test_a_given_batch_and_rate_are_kept() -> None:
    given = FullFineTune.from_hyperparameters({"batch_size": 48, "lr": 1e-3})
    assert given.hyperparameters()["batch_size"] == 48
    for n in (100, N_MANY):
        found = given.resolved(n, MEASURED)
        assert (found.batch_size, found.lr) == (48, 1e-3)
        assert found.steps == default_steps(n, 48)


def test_the_cost_of_many_images_counts_every_step_of_the_larger_batch(
    small_dataset: Dataset, backbone: Backbone
) -> None:
    dataset = replace(many_images(small_dataset), val=())
    passes = FullFineTune().image_passes(dataset, backbone)
    scratch = FromScratch().image_passes(dataset, backbone)
    assert passes == pytest.approx(N_MANY * (1 + 4 * PASSES_PER_STEP), rel=0.01)
    assert scratch == pytest.approx(N_MANY * (1 + 8 * PASSES_PER_STEP), rel=0.01)


def test_a_classifier_fitted_with_another_batch_records_it(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    given = FullFineTune.from_hyperparameters({"steps": 2, "batch_size": 6})
    fitted = given.fit(small_dataset.hide_test(), backbone, ctx)
    default = FullFineTune.from_hyperparameters({"steps": 2})
    assert fitted.hyperparameters["batch_size"] == 6
    assert (
        "batch_size" not in default.fit(small_dataset.hide_test(), backbone, ctx).hyperparameters
    )


def test_training_from_scratch_on_many_images_takes_the_rate_of_its_batch() -> None:
    few, many = FromScratch.starting_point(MEASURED), FromScratch.starting_point(MANY)
    batch_size = default_batch_size(N_MANY)
    assert few.lr is not None
    assert many.lr == pytest.approx(few.lr * lr_factor(batch_size))
    assert many.steps == 2 * default_steps(N_MANY, batch_size)
