"""Updates as on a GPU: fused, skipped on the device, and asked about every few steps.

torch has fused optimisers for CPUs too, so that this can be tested on any machine.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from strategies.core.context import RunContext, TrainingResources
from strategies.core.errors import TrainingDiverged
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset
from strategies.kernels import compiled
from strategies.kernels.compiled import TRAINING, CompileCost, TimedCompiler
from strategies.models.backbone import Backbone
from strategies.models.classifier import make_network
from strategies.models.network import Network
from strategies.models.stages import stages
from strategies.training import loop as loop_module
from strategies.training.dataloader import ImageInputs
from strategies.training.loop import TrainingLoop
from strategies.training.optimiser import (
    CHECK_STEPS,
    Optimiser,
    Updater,
    make_optimiser,
    restore_optimiser,
)
from strategies.training.recipe import Recipe
from strategies.training.trainer import train
from tests.fake_mps import MPS, FakeMps

BATCH = list(range(4))


@pytest.fixture(params=["adamw", "sgd"])
def recipe(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe whose optimiser is fused."""

    def fused(*given: Any) -> Optimiser:
        made = make_optimiser(*given)
        groups = [{**group, "fused": True} for group in made.param_groups]
        kind = torch.optim.AdamW if given[-1].optimiser == "adamw" else torch.optim.SGD
        return kind(groups)

    monkeypatch.setattr(loop_module, "make_optimiser", fused)
    return Recipe(30, 0.01, batch_size=4, optimiser=request.param, batch_norm="trained")


def _network(backbone: Backbone, ctx: RunContext) -> Network:
    with ctx.seeded():
        return make_network(backbone, (backbone.n_depths,), 3)


@pytest.fixture
def loop(tiny: Backbone, small_dataset: Dataset, ctx: RunContext, recipe: Recipe) -> TrainingLoop:
    network = _network(tiny, ctx).train()
    inputs = ImageInputs(network, small_dataset, tiny, recipe, ctx)
    stage = stages(network.body.net, tiny)
    return TrainingLoop(inputs, stage, small_dataset, recipe, ctx)


def _inject_nan(network: Network, affects: Callable[[int], bool]) -> None:
    """Make the scores of some training steps, counted from 0, NaN."""
    steps = iter(range(1000))

    def inject(module: nn.Module, inputs: object, scores: Tensor) -> Tensor | None:
        return scores * torch.nan if module.training and affects(next(steps)) else None

    network.head.register_forward_hook(inject)


def _all_state(loop: TrainingLoop) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in loop.snapshot().tensors.items()}


def test_an_update_whose_gradient_is_not_finite_changes_nothing(
    loop: TrainingLoop,
) -> None:
    images, bad = torch.randn(2, 4, 3, 32, 32)
    bad[2, 1, 5, 5] = torch.nan
    loop.take_step(BATCH, images)
    before = _all_state(loop)

    loop.take_step(BATCH, bad)

    after = _all_state(loop)
    assert [k for k in before if not torch.equal(before[k], after[k])] == []


def test_the_learning_rate_is_cut_when_the_device_is_asked(loop: TrainingLoop) -> None:
    _inject_nan(loop.network, lambda step: step == 1)
    for step in range(CHECK_STEPS):
        assert loop.lr_cuts == 0, step
        loop.take_step(BATCH, torch.randn(4, 3, 32, 32))
    assert loop.lr_cuts == 1
    loop.cut_rate_after_failure()
    assert loop.lr_cuts == 1


def test_a_loss_that_stays_nan_ends_a_run(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, recipe: Recipe
) -> None:
    network = _network(tiny, ctx)
    _inject_nan(network, lambda step: True)
    with pytest.raises(TrainingDiverged, match="not finite"):
        train(network, small_dataset, tiny, replace(recipe, steps=4 * CHECK_STEPS), ctx)


def test_fused_and_separate_updates_lead_to_the_same_weights(
    tiny: Backbone,
    small_dataset: Dataset,
    ctx: RunContext,
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def trained() -> dict[str, Tensor]:
        network = _network(tiny, ctx)
        with ctx.seeded():
            train(network, replace(small_dataset, val=()), tiny, replace(recipe, steps=5), ctx)
        return network.state_dict()

    fused = trained()
    monkeypatch.setattr(loop_module, "make_optimiser", make_optimiser)
    separate = trained()
    for name, value in separate.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_momentum_starts_at_zero_if_the_first_update_is_skipped() -> None:
    def updated(gradients: list[float]) -> Tensor:
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            layer = nn.Linear(64, 1, bias=False)
        sgd = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9, nesterov=True, fused=True)
        updater = Updater(layer, sgd, 1.0, torch.float32)
        for gradient in gradients:
            layer.weight.grad = torch.full_like(layer.weight, gradient)
            updater.update()
        momentum = sgd.state[layer.weight]["momentum_buffer"]
        return torch.cat([layer.weight.detach(), momentum])

    plain = [0.01, 0.02, 0.03]
    expected = updated(plain)
    torch.testing.assert_close(updated([torch.nan, *plain]), expected, rtol=1e-6, atol=0)
    assert not updated([])[1].any()


class Interrupted(Exception):
    """Raised by a callback."""


def test_a_resumed_run_ends_with_the_same_weights(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, recipe: Recipe, tmp_path: Path
) -> None:
    def trained(context: RunContext) -> dict[str, Tensor]:
        network = _network(tiny, context)
        with context.seeded():
            train(network, small_dataset, tiny, replace(recipe, steps=12), context)
        return network.state_dict()

    def stop(round_: int, accuracy: float | None) -> None:
        if round_ == 3:
            raise Interrupted

    expected = trained(ctx)
    saved = replace(ctx, training=TrainingResources(tmp_path / "training.safetensors"))
    with pytest.raises(Interrupted):
        trained(replace(saved, reporter=Reporter(on_epoch=stop)))
    found = trained(saved)
    assert [k for k, value in expected.items() if not torch.equal(found[k], value)] == []


def test_float16_overflow_is_no_failure_while_the_loss_scale_is_above_one() -> None:
    layer = nn.Linear(2, 1)
    optimiser = torch.optim.AdamW(layer.parameters(), fused=True)
    updater = Updater(layer, optimiser, 1.0, torch.float16)
    failed = []
    for scale in (1e38, 1.0):
        updater.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        updater.scaler.scale(1e30 * layer(1e30 * torch.ones(1, 2)).sum()).backward()
        assert not updater.update()
        failed.append(updater.has_failed())
    assert failed == [False, True]


@pytest.mark.parametrize("fused", [False, True])
def test_the_number_of_steps_stays_on_the_cpu_unless_the_optimiser_is_fused(
    fused: bool,
) -> None:
    with FakeMps():
        weight = nn.Linear(2, 1, bias=False).to(MPS).weight
        optimiser = torch.optim.AdamW([weight], fused=fused or None)
        there = {name: torch.ones(1, 2, device=MPS) for name in ("0/exp_avg", "0/exp_avg_sq")}
        restore_optimiser(optimiser, {**there, "0/step": torch.tensor(3.0, device=MPS)})
        (state,) = optimiser.state_dict()["state"].values()
        assert state["exp_avg"].device == MPS
        assert state["step"].device == (MPS if fused else torch.device("cpu"))
        assert state["step"].item() == 3


def test_a_step_on_one_gpu_may_be_compiled_unless_runs_must_be_equal(
    loop: TrainingLoop,
) -> None:
    images = torch.zeros(4, 3, 32, 32)
    assert not loop._compiler(images).is_enabled
    for is_deterministic in (False, True):
        on_gpu = replace(loop.ctx, device=torch.device("cuda"), is_deterministic=is_deterministic)
        loop.training_ctx = on_gpu
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
            assert loop._compiler(images).is_enabled is not is_deterministic


def test_a_compiled_loss_trains_the_same_network(
    tiny: Backbone,
    small_dataset: Dataset,
    ctx: RunContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = Recipe(12, 0.01, batch_size=4)

    def trained() -> dict[str, Tensor]:
        network = _network(tiny, ctx)
        with ctx.seeded():
            train(network, replace(small_dataset, val=()), tiny, recipe, ctx)
        return network.state_dict()

    expected = trained()
    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda loss: compile_with(loss, backend="eager"))
    monkeypatch.setattr(compiled, "ASSUMED", CompileCost(0.0, 0.5))
    made: list[TimedCompiler] = []

    def enabled(self: TrainingLoop, images: Tensor) -> TimedCompiler:
        made.append(TimedCompiler(TRAINING, self.ctx, [], is_enabled=True))
        return made[-1]

    monkeypatch.setattr(TrainingLoop, "_compiler", enabled)
    found = trained()
    assert [compiler.eager is not None for compiler in made] == [True]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)
