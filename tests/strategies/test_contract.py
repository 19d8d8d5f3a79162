"""Contract that every registered strategy must fulfil."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch

from advisor.report.words import title
from strategies.base import Strategy
from strategies.core.context import RunContext
from strategies.core.errors import NotApplicable, OutOfTime
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier
from strategies.registry import STRATEGIES, get_strategy
from strategies.training.defaults import TrainMeasurements
from tests.conftest import suitable

QUICK = {"views": 1, "steps": 3}
"""Hyperparameters with which a fit is quick, for the strategies that have them."""

pytestmark = pytest.mark.parametrize("name", STRATEGIES)


@pytest.fixture
def backbone(
    name: str, small_dataset: Dataset, backbone: Backbone, convnext: Backbone
) -> Backbone:
    """Return the embedded backbone, or a ConvNeXt for a strategy that is not for it."""
    return suitable(name, small_dataset, backbone, convnext)


@pytest.fixture
def strategy(name: str) -> Strategy:
    kind = get_strategy(name)
    own = kind().hyperparameters()
    return kind.from_hyperparameters({k: v for k, v in QUICK.items() if k in own})


@pytest.fixture(scope="module")
def fits() -> dict[str, ImageClassifier]:
    """Classifiers that the tests of this module share, by strategy."""
    return {}


@pytest.fixture
def fitted(
    strategy: Strategy,
    small_dataset: Dataset,
    backbone: Backbone,
    ctx: RunContext,
    fits: dict[str, ImageClassifier],
) -> ImageClassifier:
    if strategy.name not in fits:
        fits[strategy.name] = strategy.fit(small_dataset.hide_test(), backbone, ctx)
    return fits[strategy.name]


def test_is_a_frozen_dataclass_registered_by_its_name(name: str) -> None:
    kind = STRATEGIES[name]
    assert kind.name == name
    assert kind.title == title(name)
    assert kind.fallback_gain.sd > 0 or kind.role == "baseline"
    assert kind.references
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().name = "other"  # type: ignore[misc]


def test_default_hyperparameters_are_plain_values(name: str) -> None:
    for value in STRATEGIES[name]().hyperparameters().values():
        assert value is None or isinstance(value, (bool, int, float, str))


def test_every_sampled_hyperparameter_belongs_to_the_strategy_and_applies(
    name: str, small_dataset: Dataset, backbone: Backbone
) -> None:
    kind = STRATEGIES[name]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    space = dict(kind.search_space(small_dataset, backbone))
    for _ in range(5):
        trial = study.ask(space)
        strategy = kind.from_hyperparameters(trial.params)
        assert trial.params.items() <= strategy.hyperparameters().items()
        assert strategy.inapplicable(small_dataset, backbone) is None


def test_the_starting_point_applies_and_lies_in_the_search_space(
    name: str, small_dataset: Dataset, backbone: Backbone
) -> None:
    kind = STRATEGIES[name]
    measured = TrainMeasurements(
        n_train=len(small_dataset.train),
        n_depths=backbone.n_depths,
        input_px=backbone.input_px,
        n_measured=len(small_dataset.train),
        probe_accuracy=0.7,
        domain_shift=0.15,
        flip_asymmetry=None,
        family=backbone.family,
        n_layers=backbone.n_layers,
    )
    start = kind.starting_point(measured)
    assert start.inapplicable(small_dataset, backbone) is None
    given = start.hyperparameters()
    for key, distribution in kind.search_space(small_dataset, backbone).items():
        assert distribution._contains(distribution.to_internal_repr(given[key])), key
    assert kind.from_hyperparameters(given) == start


def test_every_sampled_hyperparameter_may_be_fixed(
    name: str, small_dataset: Dataset, backbone: Backbone
) -> None:
    kind = STRATEGIES[name]
    for seed in range(3):
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed)).ask(
            dict(kind.search_space(small_dataset, backbone))
        )
        assert kind.checked(trial.params, small_dataset, backbone) == trial.params
    assert kind.hyperparameter_types().keys() >= kind().hyperparameters().keys()


def test_values_outside_the_search_space_cannot_be_fixed(
    name: str, small_dataset: Dataset, backbone: Backbone
) -> None:
    kind = STRATEGIES[name]
    for key, allowed in kind.search_space(small_dataset, backbone).items():
        outside = [f"no {key}", float("nan")]
        if not isinstance(allowed, optuna.distributions.CategoricalDistribution):
            outside += [allowed.low - 1, allowed.high * 2 + 1, True]  # type: ignore[attr-defined]
        for value in outside:
            with pytest.raises(NotApplicable, match=f"{key} of {name} must be .*, got"):
                kind.checked({key: value}, small_dataset, backbone)


def test_an_unknown_hyperparameter_is_refused_with_a_suggestion(name: str) -> None:
    known = next(iter(STRATEGIES[name]().hyperparameters()))
    with pytest.raises(NotApplicable, match=f"Did you mean .*{known}"):
        STRATEGIES[name].from_hyperparameters({known + "x": 1})


def test_cost_is_positive_and_grows_with_the_number_of_images(
    strategy: Strategy, small_dataset: Dataset, backbone: Backbone
) -> None:
    double = replace(
        small_dataset, train=small_dataset.train * 2, val=small_dataset.val * 2, test=None
    )
    once = strategy.image_passes(small_dataset, backbone)
    assert 0 < once < strategy.image_passes(double, backbone)


def test_probabilities_have_one_column_per_class_and_sum_to_one(
    fitted: ImageClassifier, small_dataset: Dataset
) -> None:
    assert small_dataset.test is not None
    found = fitted.predict_proba([p.path for p in small_dataset.test])
    assert found.shape == (len(small_dataset.test), small_dataset.n_classes)
    assert np.all(found >= 0)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_the_same_seed_gives_the_same_predictions_and_global_state_is_unchanged(
    strategy: Strategy,
    fitted: ImageClassifier,
    small_dataset: Dataset,
    backbone: Backbone,
    ctx: RunContext,
) -> None:
    before, dataset_before = torch.get_rng_state(), repr(small_dataset)
    again = strategy.fit(small_dataset.hide_test(), backbone, ctx)
    assert torch.equal(torch.get_rng_state(), before)
    assert repr(small_dataset) == dataset_before
    paths = [p.path for p in small_dataset.val]
    np.testing.assert_array_equal(fitted.predict_proba(paths), again.predict_proba(paths))


def test_a_saved_classifier_predicts_the_same_when_loaded(
    fitted: ImageClassifier, small_dataset: Dataset, tmp_path: Path
) -> None:
    # Prediction at the command line, ONNX and timm: see test_round_trips.
    paths = [p.path for p in small_dataset.val]
    fitted.save(tmp_path / "saved")
    loaded = ImageClassifier.load(tmp_path / "saved")
    np.testing.assert_allclose(loaded.predict_proba(paths), fitted.predict_proba(paths), atol=1e-6)
    assert loaded.classes == fitted.classes
    assert dict(loaded.hyperparameters) == dict(fitted.hyperparameters)


def test_the_input_size_is_recorded_in_the_classifier_and_scales_the_cost(
    strategy: Strategy, small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    small = replace(strategy, input_px=32)

    fitted = small.fit(small_dataset.hide_test(), backbone, ctx)

    assert fitted.backbone.input_px == fitted.hyperparameters["input_px"] == 32
    ratio = small.image_passes(small_dataset, backbone) / strategy.image_passes(
        small_dataset, backbone
    )
    assert ratio == pytest.approx((32 / backbone.input_px) ** 2)


def test_test_images_and_labels_are_never_read(
    strategy: Strategy, small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    assert small_dataset.test is not None
    missing = Path("does/not/exist.png")
    invalid = tuple(replace(p, path=missing, label=10**6) for p in small_dataset.test)
    strategy.fit(replace(small_dataset, test=invalid), backbone, ctx)


class Stop(Exception):
    """Raised by a callback."""


def test_exceptions_of_on_epoch_are_propagated(
    name: str, strategy: Strategy, small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    def stop(epoch: int, val_accuracy: float) -> None:
        raise Stop

    stopping = replace(ctx, reporter=replace(ctx.reporter, on_epoch=stop))
    if strategy.trains_network:
        with pytest.raises(Stop):
            strategy.fit(small_dataset.hide_test(), backbone, stopping)
    else:
        strategy.fit(small_dataset.hide_test(), backbone, stopping)


def test_a_passed_deadline_raises_out_of_time(
    strategy: Strategy, small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    with pytest.raises(OutOfTime):
        strategy.fit(small_dataset.hide_test(), backbone, ctx.with_deadline(0.0))


def test_the_error_for_a_misspelt_name_suggests_the_right_one(name: str) -> None:
    with pytest.raises(NotApplicable, match=f"Did you mean .*{name}"):
        get_strategy(name[:-1])
