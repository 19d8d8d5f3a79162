"""Training runs on a GPU: they learn, their classifiers leave the GPU, and they can be resumed."""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from strategies.core.context import RunContext, TrainingResources
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier, evaluate, make_network
from strategies.registry import get_strategy
from strategies.training.recipe import Recipe
from strategies.training.trainer import train
from tests.gpu.conftest import Devices
from tests.gpu.loops import relative_error

pytestmark = pytest.mark.gpu

NO_DETERMINISTIC_KERNEL = "ignore:.*deterministic"
Load = Callable[[str], Backbone]

RUNS = [
    ("partial_fine_tune", "cnn", {"steps": 24, "lr": 1e-3}, 0.75),
    ("full_fine_tune", "cnn", {"steps": 24, "lr": 1e-3}, 0.75),
    ("norm_tune", "cnn", {"steps": 24}, 0.75),
    ("lora", "vit", {"steps": 48, "lr": 3e-3}, 0.75),
]
"""Strategy, network, hyperparameters, and the accuracy on its own train images that it reaches.
A third is chance."""


@pytest.mark.parametrize(
    ("name", "network", "given", "accuracy"), RUNS, ids=[name for name, *_ in RUNS]
)
def test_a_strategy_learns_and_its_saved_classifier_predicts_the_same_on_the_cpu(
    devices: Devices,
    small_dataset: Dataset,
    network_named: Load,
    tmp_path: Path,
    name: str,
    network: str,
    given: dict[str, float],
    accuracy: float,
) -> None:
    if name == "lora" and find_spec("peft") is None:
        pytest.skip("LoRA needs peft, which is not installed")
    strategy = get_strategy(name).from_hyperparameters(given)
    fitted = strategy.fit(small_dataset.hide_test(), network_named(network), devices.own)
    assert fitted.device.type == devices.own.device.type
    assert all(value.isfinite().all() for value in fitted.network.state_dict().values())
    assert evaluate(fitted, small_dataset.train).accuracy.mid >= accuracy
    fitted.save(tmp_path / "saved")
    loaded = ImageClassifier.load(tmp_path / "saved", torch.device("cpu"))
    paths = [image.path for image in small_dataset.fit_split]
    expected, found = fitted.predict_proba(paths), loaded.predict_proba(paths)
    np.testing.assert_allclose(found, expected, atol=2e-3)


class Interrupted(Exception):
    """Raised by a callback."""


def _trained(
    dataset: Dataset, backbone: Backbone, recipe: Recipe, ctx: RunContext
) -> dict[str, Tensor]:
    with ctx.seeded():
        network = make_network(backbone, (backbone.n_depths,), dataset.n_classes)
        train(network, dataset, backbone, recipe, ctx)
    return {name: value.cpu() for name, value in network.state_dict().items()}


RECIPE = Recipe(14, 1e-3, batch_size=8, batch_norm="trained", hflip=True)
RESUMED = {
    "cnn": ("cnn", RECIPE, "own"),
    "cnn, float16": ("cnn", RECIPE, "float16"),
    "cnn, averaged and mixed": ("cnn", replace(RECIPE, ema=0.5, blend=0.7, mixup=0.3), "own"),
    "cnn, cached frozen stages": ("cnn", replace(RECIPE, frozen_stages=2), "own"),
    "cnn, sgd": ("cnn", replace(RECIPE, optimiser="sgd", lr=1e-2), "own"),
    "vit": ("vit", replace(RECIPE, layer_lr_decay=0.7, by_layer=True), "own"),
    "convnext": ("convnext", RECIPE, "own"),
}


@pytest.mark.filterwarnings(NO_DETERMINISTIC_KERNEL)
@pytest.mark.parametrize("case", RESUMED)
def test_a_resumed_deterministic_run_ends_with_the_same_weights(
    devices: Devices,
    small_dataset: Dataset,
    network_named: Load,
    tmp_path: Path,
    case: str,
) -> None:
    name, recipe, precision = RESUMED[case]
    backbone = network_named(name)
    ctx = replace(devices.with_precision(precision), is_deterministic=True)
    expected = _trained(small_dataset, backbone, recipe, ctx)

    def stop(round_: int, accuracy: float | None) -> None:
        if round_ == 3:
            raise Interrupted

    saved = replace(ctx, training=TrainingResources(tmp_path / "training.safetensors"))
    with pytest.raises(Interrupted):
        _trained(small_dataset, backbone, recipe, replace(saved, reporter=Reporter(on_epoch=stop)))
    rounds: list[int] = []
    count = Reporter(on_epoch=lambda round_, _: rounds.append(round_))
    found = _trained(small_dataset, backbone, recipe, replace(saved, reporter=count))
    assert rounds[0] == 4  # the first three were not trained again
    assert [k for k, value in expected.items() if not torch.equal(found[k], value)] == []


def test_a_step_of_sgd_changes_the_weights_as_on_the_cpu(
    devices: Devices, small_dataset: Dataset, network_named: Load
) -> None:
    # Adam's first steps amplify rounding errors where a gradient is nearly zero.
    recipe = replace(RECIPE, optimiser="sgd", steps=3, lr=1e-2, hflip=False)
    backbone = network_named("cnn")
    with devices.cpu.seeded():
        start = make_network(backbone, (backbone.n_depths,), 3).state_dict()
    dataset = replace(small_dataset, val=())
    steps = [
        {k: v - start[k] for k, v in _trained(dataset, backbone, recipe, ctx).items()}
        for ctx in (devices.cpu, devices.gpu)
    ]
    for name, expected in steps[0].items():
        if name.startswith("head") or "conv_stem" in name:
            assert relative_error(steps[1][name], expected) < 2e-2, name
