"""A device without float64, such as Apple's MPS: measuring, fitting, averaging and predicting."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from advisor.measure.profile import measure
from strategies.core.cache import ArrayCache
from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.models.classifier import evaluate
from strategies.registry import STRATEGIES
from strategies.training.weight_averaging import average_weights
from tests.fake_mps import MPS, FakeMps


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ArrayCache:
    return ArrayCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def on_mps(cache: ArrayCache) -> Iterator[RunContext]:
    with FakeMps():
        yield RunContext(cache=cache, device=MPS)


def test_the_stand_in_has_no_float64_and_marks_what_is_computed_there(
    on_mps: RunContext,
) -> None:
    there = torch.ones(3, device=MPS)
    assert ((there + 1).device, there.cpu().device.type) == (MPS, "cpu")
    with pytest.raises(TypeError, match="float64"):
        there.double()
    with pytest.raises(TypeError, match="float64"):
        torch.zeros(2, dtype=torch.float64, device=there.device)
    linear = torch.nn.Linear(3, 2).to(MPS)
    assert (linear.weight.device, linear(there).device) == (MPS, MPS)


def test_a_dataset_is_measured(
    on_mps: RunContext, small_dataset: Dataset, backbone: Backbone
) -> None:
    profile, _ = measure(small_dataset, backbone, on_mps)
    assert 0 < profile.linear_probe.accuracy.mid <= 1
    assert profile.passes_per_trained_image is not None


@pytest.mark.parametrize("name", ["linear_probe", "full_fine_tune"])
def test_strategies_fit_and_their_classifiers_predict(
    on_mps: RunContext, small_dataset: Dataset, backbone: Backbone, name: str
) -> None:
    few = {"steps": 4} if STRATEGIES[name].trains_network else {}
    strategy = STRATEGIES[name].from_hyperparameters(few)
    classifier = strategy.fit(small_dataset, backbone, on_mps)
    assert classifier.device == MPS
    assert small_dataset.test is not None
    assert evaluate(classifier, small_dataset.test).accuracy.mid > 0.3


def test_networks_are_averaged(
    on_mps: RunContext, small_dataset: Dataset, backbone: Backbone
) -> None:
    probe = STRATEGIES["linear_probe"].from_hyperparameters({})
    classifier = probe.fit(small_dataset, backbone, on_mps)
    averaged = average_weights([classifier, classifier], small_dataset, on_mps)
    weights = (c.network.head.weight.detach().cpu().numpy() for c in (classifier, averaged))
    np.testing.assert_allclose(*weights, rtol=1e-6)
