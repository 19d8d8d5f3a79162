"""Predicted memory: that of the tensors of real training runs and feature passes."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.models.classifier import make_network
from strategies.models.features import INFERENCE_BATCH, extract_features
from strategies.models.network import Network
from strategies.models.stages import stages
from strategies.registry import STRATEGIES
from strategies.training.costs import memory
from strategies.training.costs.live_bytes import LiveBytes
from strategies.training.costs.memory import (
    FREE_SHARE,
    feature_pass_bytes,
    fitting_micro_batches,
    micro_batches,
    training_bytes,
)
from strategies.training.optimiser import freeze
from strategies.training.recipe import Recipe
from strategies.training.trainer import train

RECIPE = Recipe(2, 1e-3, batch_size=16)


@pytest.fixture
def vit(load_random: Callable[..., Backbone]) -> Backbone:
    return load_random("test_vit", input_px=160)


def peak_of(work: Callable[[], object]) -> int:
    """Return the most bytes of tensors that some work holds at once."""
    counted = LiveBytes(())
    with counted:
        work()
    return max(live for live, _ in counted.history)


def network_of(backbone: Backbone, ctx: RunContext) -> Network:
    with ctx.seeded():
        return make_network(backbone, (backbone.n_depths,), 3)


def test_live_bytes_count_shared_memory_once_and_end_with_the_tensor() -> None:
    before = torch.zeros(100)
    with LiveBytes([torch.zeros(5)]) as counted:
        made = torch.ones(10)
        view = made[2:].view(2, 4)
        before.add_(1)
        before.view(10, 10)
        fixed = torch.ones(5)
        assert (counted.live, counted.fixed) == (60, 20)
        del made
        assert counted.live == 60
        del view
        assert counted.live == 20
        pair = torch.ones(8).chunk(2)
        assert counted.live == 52
        del fixed
        assert (counted.live, counted.fixed) == (32, 0)
    assert len(pair) == 2
    assert max(live for live, _ in counted.history) == 60


def test_live_bytes_count_what_is_kept_for_the_backward_pass() -> None:
    weight = torch.ones(1000, requires_grad=True)
    with LiveBytes([weight]) as counted:
        loss = weight.exp().sin().sum()  # keeps the output of exp, not that of sin
        assert counted.live == 4000 + 4
        torch.autograd.backward(loss)
        del loss
    assert counted.live == 4000  # the gradient


def test_counting_imports_no_compiler() -> None:
    code = (
        "import sys, torch; from strategies.training.costs.live_bytes import LiveBytes\n"
        "with LiveBytes(()): torch.ones(2).add(1)\n"
        "print('torch._dynamo' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        replace(RECIPE, batch_norm="trained"),
        replace(RECIPE, trained="norms_and_biases"),
        replace(RECIPE, batch_size=32, optimiser="sgd"),
        replace(RECIPE, ema=0.9),
    ],
    ids=["full", "statistics", "norms", "sgd", "average"],
)
@pytest.mark.parametrize("family", ["backbone", "vit"])
def test_training_takes_the_memory_that_is_predicted(
    family: str,
    recipe: Recipe,
    small_dataset: Dataset,
    ctx: RunContext,
    request: pytest.FixtureRequest,
) -> None:
    found: Backbone = request.getfixturevalue(family)
    backbone = replace(found, input_px=160)
    dataset = replace(small_dataset, val=small_dataset.val[:4])

    measured = peak_of(lambda: train(network_of(backbone, ctx), dataset, backbone, recipe, ctx))
    assert training_bytes(backbone, recipe, ctx, 3) == pytest.approx(measured, rel=0.15)


def test_a_feature_pass_takes_the_memory_that_is_predicted(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    backbone = replace(backbone, input_px=160)
    measured = peak_of(
        lambda: extract_features(small_dataset.fit_split[:INFERENCE_BATCH], backbone, ctx)
    )
    assert feature_pass_bytes(backbone, ctx) == pytest.approx(measured, rel=0.2)


def test_a_measurement_is_cached_and_does_not_depend_on_the_images(
    backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = training_bytes(backbone, RECIPE, ctx, 3), feature_pass_bytes(backbone, ctx)

    def refuse(self: Backbone) -> nn.Module:
        raise AssertionError("a network was built")

    monkeypatch.setattr(Backbone, "build", refuse)
    again = training_bytes(backbone, RECIPE, ctx, 3), feature_pass_bytes(backbone, ctx)
    assert first == again
    more = training_bytes(backbone, replace(RECIPE, batch_size=32, lr=1e-5), ctx, 1000)
    assert more > first[0]
    with pytest.raises(AssertionError, match="was built"):
        training_bytes(backbone, replace(RECIPE, frozen_stages=2), ctx, 3)


def test_memory_follows_what_is_trained_and_the_size_of_images(
    backbone: Backbone, ctx: RunContext
) -> None:
    def predicted(recipe: Recipe, px: int = 64) -> int:
        return training_bytes(backbone, recipe, ctx, 3, input_px=px)

    full = predicted(RECIPE)
    frozen = [predicted(replace(RECIPE, frozen_stages=k)) for k in (1, 3, 5)]
    assert full > frozen[0] > frozen[1] > frozen[2] > feature_pass_bytes(backbone, ctx) / 4
    assert predicted(replace(RECIPE, batch_norm="trained")) > full
    assert predicted(RECIPE, 128) > 2 * full


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_predicts_its_memory(
    name: str, small_dataset: Dataset, backbone: Backbone, convnext: Backbone, ctx: RunContext
) -> None:
    strategy = STRATEGIES[name]()
    if strategy.inapplicable(small_dataset, backbone) is not None:
        backbone = convnext
    peak = strategy.peak_bytes(small_dataset, backbone, ctx)
    larger = strategy.with_input_px(128).peak_bytes(small_dataset, backbone, ctx)
    assert 4e6 * backbone.params_m / 2 < peak < larger
    if strategy.trains_network:
        assert peak > feature_pass_bytes(backbone, ctx) or name == "lora"


def test_a_trial_leaves_the_network_as_it_was(
    backbone: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = network_of(backbone, ctx).train()
    stage = stages(network.body.net, backbone)
    recipe = replace(RECIPE, batch_norm="trained", frozen_stages=2)
    fixed = freeze(network.body, stage, recipe)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    drawn = torch.get_rng_state()

    memory.step_memory(network, fixed, recipe, torch.ones(2, 3, 64, 64), ctx)

    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize(
    ("left", "expected"), [(1e9, 1), (3.2e6, 1), (3.1e6, 2), (1.6e6, 2), (1e5, 32), (-5.0, 32)]
)
def test_a_batch_is_split_into_as_few_parts_as_fit(left: float, expected: int) -> None:
    assert micro_batches(32, 1e5, left) == expected


def test_the_first_step_on_a_cuda_device_is_split_by_the_prediction(
    backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is one in name only: the trial itself runs on the CPU."""
    network = network_of(backbone, ctx)
    fixed = freeze(network.body, stages(network.body.net, backbone), RECIPE)
    images = torch.ones(32, 3, 64, 64)
    step = memory.step_memory(network, fixed, RECIPE, images[:2], ctx)
    states = 2 * step.trained + max(step.fixed, step.trained)
    on_gpu = replace(ctx, device=torch.device("cuda"))
    monkeypatch.setattr(memory, "step_memory", lambda *_: step)

    def parts(free: float, tried: Tensor = images) -> int:
        monkeypatch.setattr(memory, "free_bytes", lambda _: round(free / FREE_SHARE))
        return fitting_micro_batches(network, fixed, RECIPE, tried, on_gpu)

    assert parts(states + 33 * step.per_image) == 1
    assert parts(states + 17 * step.per_image) == 2
    assert parts(states + 9 * step.per_image) == 4
    assert parts(0) == 32
    assert parts(0, images[:2]) == 1
    assert fitting_micro_batches(network, fixed, RECIPE, images, ctx) == 1

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(memory, "step_memory", fail)
    assert parts(1e12) == 32


def test_a_cpu_needs_memory_for_its_micro_batches_alone(
    backbone: Backbone, ctx: RunContext
) -> None:
    sizes = [
        training_bytes(backbone, replace(RECIPE, batch_size=n), ctx, 3) for n in (16, 32, 512)
    ]
    assert sizes[0] < sizes[1] == sizes[2]


def test_a_trial_that_fails_leaves_the_network_as_it_was(
    backbone: Backbone, ctx: RunContext
) -> None:
    network = network_of(backbone, ctx)
    fixed = freeze(network.body, stages(network.body.net, backbone), RECIPE)
    modes = [module.training for module in network.modules()]

    def fail(module: nn.Module, inputs: tuple[Tensor]) -> None:
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory.")

    network.head.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        memory.step_memory(network, fixed, RECIPE, torch.ones(2, 3, 64, 64), ctx)
    assert [module.training for module in network.modules()] == modes
