"""A learning rate whose first step would wreck the network is halved before it is taken."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from strategies.core.context import RunContext, TrainingResources
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.models.classifier import make_network
from strategies.models.stages import stages
from strategies.training.dataloader import ImageInputs
from strategies.training.loop import TrainingLoop
from strategies.training.optimiser import (
    MAX_FIRST_LOSS,
    MAX_HALVINGS,
    stable_halvings,
    warmup_cosine,
)
from strategies.training.recipe import Recipe
from strategies.training.trainer import train

HUGE_LR = 1.0


def _halvings(peak: float, loss_of: Callable[[float], float]) -> tuple[int, float]:
    """Return the halvings for a weight 0 with gradient -1, and the weight afterwards."""
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.tensor([-1.0])
    optimiser = torch.optim.AdamW([{"params": [weight], "peak": peak}])
    found = stable_halvings(optimiser, lambda: loss_of(weight.item()), n_classes=2)
    return found, weight.item()


def test_the_peak_is_halved_until_the_first_loss_is_small_enough() -> None:
    limit = MAX_FIRST_LOSS * np.log(2)
    assert _halvings(0.99 * limit, abs) == (0, 0.0)
    assert _halvings(1.01 * limit, abs) == (1, 0.0)
    assert _halvings(7.9 * limit, abs) == (3, 0.0)


def test_a_loss_that_is_never_small_enough_ends_with_the_most_halvings() -> None:
    assert _halvings(1.0, lambda weight: np.nan) == (MAX_HALVINGS, 0.0)


def _loop(backbone: Backbone, dataset: Dataset, recipe: Recipe, ctx: RunContext) -> TrainingLoop:
    with ctx.seeded():
        network = make_network(backbone, (backbone.n_depths,), 3)
    inputs = ImageInputs(network, dataset, backbone, recipe, ctx)
    return TrainingLoop(inputs, stages(network.body.net, backbone), dataset, recipe, ctx)


def _step(loop: TrainingLoop) -> None:
    """Take a step on equal images of several classes, which no step can tell apart."""
    rows = np.linspace(0, len(loop.labels) - 1, 4).astype(int).tolist()
    assert len(loop.labels[rows].unique()) == 3
    loop.take_step(rows, torch.ones(4, 3, 32, 32))


@pytest.mark.parametrize("given", [{"batch_norm": "trained"}, {"optimiser": "sgd"}])
def test_only_adamw_with_fixed_statistics_is_tried(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, given: dict[str, str]
) -> None:
    recipe = replace(Recipe(10, HUGE_LR, batch_size=4), **given)
    loop = _loop(tiny, small_dataset, recipe, ctx)
    _step(loop)
    assert loop.peak_halvings == 0


def test_the_halved_rate_is_used_from_the_first_step_on_and_reported(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    notes: list[str] = []
    ctx = replace(ctx, reporter=Reporter(on_note=notes.append))
    loop = _loop(tiny, small_dataset, Recipe(10, HUGE_LR, batch_size=4), ctx)
    for _ in range(2):
        _step(loop)
    assert loop.peak_halvings > 0
    halved = HUGE_LR / 2**loop.peak_halvings
    [used] = {group["lr"] for group in loop.optimiser.param_groups}
    assert used == pytest.approx(halved * warmup_cosine(loop.progress, loop.recipe.warmup))
    [note] = notes
    assert f"{halved:.2g} is used" in note


def test_micro_batches_halve_as_a_whole_batch_does(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    found = []
    for n_parts in (1, 2):
        loop = _loop(tiny, small_dataset, Recipe(10, HUGE_LR, batch_size=4), ctx)
        loop.n_parts = n_parts
        _step(loop)
        found.append(loop.peak_halvings)
    assert found[0] == found[1] > 0


def test_a_resumed_run_keeps_the_halved_rate(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, tmp_path: Path
) -> None:
    """Stopped after the first round and resumed, the weights are those of a run in one go."""

    def run(ctx: RunContext) -> dict[str, torch.Tensor]:
        with ctx.seeded():
            network = make_network(tiny, (tiny.n_depths,), 3)
        train(network, small_dataset, tiny, Recipe(12, HUGE_LR, batch_size=4), ctx)
        return network.state_dict()

    def stop(epoch: int, accuracy: float | None) -> None:
        raise KeyboardInterrupt

    notes: list[str] = []
    whole = run(replace(ctx, reporter=Reporter(on_note=notes.append)))
    saving = replace(ctx, training=TrainingResources(checkpoint=tmp_path / "state"))
    with pytest.raises(KeyboardInterrupt):
        run(replace(saving, reporter=Reporter(on_epoch=stop)))
    resumed = run(saving)
    assert len(notes) == 1
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
