"""Hyperparameters of fine-tuning: those of transformers differ from those of other networks."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from optuna.distributions import FloatDistribution

from strategies.base import Strategy
from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.first_stages import FirstStages
from strategies.from_scratch import FromScratch
from strategies.full_fine_tune import FullFineTune
from strategies.models.backbone import Backbone
from strategies.norm_tune import NormTune
from strategies.partial_fine_tune import PartialFineTune
from strategies.training.defaults import TrainMeasurements

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
