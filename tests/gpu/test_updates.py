"""Training steps on a GPU: no host sync, NaN batches are skipped, the loss scale of float16."""

import contextlib
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from strategies.core.errors import TrainingDiverged
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.models.classifier import make_network
from strategies.training.optimiser import CHECK_STEPS
from strategies.training.recipe import Recipe
from strategies.training.trainer import train
from tests.gpu.conftest import Devices
from tests.gpu.loops import changed, inject_nan, make_loop, noise, state_of, step
from tests.gpu.synchronisation import no_synchronisation

pytestmark = pytest.mark.gpu

Load = Callable[[str], Backbone]
RECIPE = Recipe(100, 1e-3, batch_size=8, batch_norm="trained", label_smoothing=0.1)
CASES = {
    "cnn": ("cnn", RECIPE, "own"),
    "vit": ("vit", RECIPE, "own"),
    "convnext": ("convnext", RECIPE, "own"),
    "float32": ("cnn", RECIPE, "float32"),
    "float16": ("cnn", RECIPE, "float16"),
    "sgd": ("cnn", replace(RECIPE, optimiser="sgd"), "own"),
    "frozen statistics": ("cnn", replace(RECIPE, batch_norm="frozen"), "own"),
    "frozen stages": ("cnn", replace(RECIPE, frozen_stages=2), "own"),
    "norms and biases": ("cnn", replace(RECIPE, trained="norms_and_biases"), "own"),
    "l2-sp": ("cnn", replace(RECIPE, l2_sp=0.1), "own"),
    "mixup and cutmix": ("cnn", replace(RECIPE, mixup=0.3, cutmix=1.0), "own"),
    "averaged": ("cnn", replace(RECIPE, ema=0.9), "own"),
}


def test_asking_the_device_for_a_value_is_refused(device: torch.device) -> None:
    value = torch.ones((), device=device)
    with pytest.raises(RuntimeError, match="synchroniz"), no_synchronisation():
        value.item()
    assert value.item() == 1


@pytest.mark.parametrize("case", CASES)
def test_steps_between_two_checks_wait_for_nothing(
    devices: Devices, small_dataset: Dataset, network_named: Load, case: str
) -> None:
    name, recipe, precision = CASES[case]
    loop = make_loop(network_named(name), small_dataset, recipe, devices.with_precision(precision))
    assert loop.updater.check_steps == CHECK_STEPS
    with contextlib.closing(loop.inputs.batches(0)) as batches:
        for _ in range(CHECK_STEPS):  # the first steps set up what later ones use
            loop.take_step(*next(batches))
        with loop.ctx.device_settings(), no_synchronisation():
            for _ in range(CHECK_STEPS - 1):
                loop.take_step(*next(batches))
    assert loop.step == 2 * CHECK_STEPS - 1
    loop.cut_rate_after_failure()
    assert loop.lr_cuts == 0


@pytest.mark.parametrize("precision", ["float32", "own", "float16"])
@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_a_batch_that_is_not_finite_changes_nothing(
    devices: Devices,
    small_dataset: Dataset,
    network_named: Load,
    precision: str,
    optimiser: str,
) -> None:
    backbone, ctx = network_named("cnn"), devices.with_precision(precision)
    loop = make_loop(backbone, small_dataset, replace(RECIPE, optimiser=optimiser), ctx)
    images = noise(8, backbone, ctx)
    for _ in range(2):
        step(loop, images)
    before = state_of(loop)
    bad = images.clone()
    bad[2, 1, 5, 5] = torch.nan

    step(loop, bad)

    assert changed(before, state_of(loop)) == []
    step(loop, images)
    assert changed(before, state_of(loop)) != []


def test_the_learning_rate_is_cut_when_the_device_is_asked(
    devices: Devices, small_dataset: Dataset, network_named: Load
) -> None:
    backbone = network_named("cnn")
    loop = make_loop(backbone, small_dataset, RECIPE, devices.gpu)
    inject_nan(loop.network, lambda number: number == 1)
    for number in range(CHECK_STEPS):
        assert loop.lr_cuts == 0, number
        step(loop, noise(8, backbone, loop.ctx))
    assert loop.lr_cuts == 1


def test_a_loss_that_stays_nan_ends_the_run(
    devices: Devices, small_dataset: Dataset, network_named: Load
) -> None:
    backbone, ctx = network_named("cnn"), devices.own
    with ctx.seeded():
        network = make_network(backbone, (backbone.n_depths,), 3)
    inject_nan(network, lambda number: True)
    recipe = replace(RECIPE, steps=4 * CHECK_STEPS)
    with pytest.raises(TrainingDiverged, match="not finite"):
        train(network, replace(small_dataset, val=()), backbone, recipe, ctx)


def test_float16_overflow_lowers_the_loss_scale_and_not_the_learning_rate(
    devices: Devices, small_dataset: Dataset, network_named: Load
) -> None:
    backbone, ctx = network_named("cnn"), devices.with_precision("float16")
    loop = make_loop(backbone, small_dataset, RECIPE, ctx)
    loop.updater.scaler = torch.amp.GradScaler(ctx.device.type, init_scale=1e38)
    before = state_of(loop)
    step(loop, noise(8, backbone, ctx))
    assert changed(before, state_of(loop)) == []
    loop.cut_rate_after_failure()
    assert loop.lr_cuts == 0
    assert loop.updater.scaler.get_scale() < 1e38


def test_a_float16_run_learns_with_a_loss_scale(
    devices: Devices, small_dataset: Dataset, network_named: Load
) -> None:
    backbone, ctx = network_named("cnn"), devices.with_precision("float16")
    loop = make_loop(backbone, small_dataset, replace(RECIPE, steps=40), ctx)
    loop.progress = 0.3  # near the peak learning rate
    images = noise(8, backbone, ctx)
    labels = loop.labels[:8].to(ctx.device)

    def loss() -> float:
        with torch.no_grad(), ctx.autocast():
            scores = loop.network(images).float()
        return torch.nn.functional.cross_entropy(scores, labels).item()

    before = loss()
    for _ in range(2 * CHECK_STEPS):
        step(loop, images)
    assert loop.updater.scaler.is_enabled()
    assert loop.updater.scaler.get_scale() > 1
    assert loop.lr_cuts == 0
    assert loss() < 0.8 * before
