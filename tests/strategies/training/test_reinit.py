"""Reinitialisation: which statistics and weights change, and which are kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.full_fine_tune import FullFineTune
from strategies.models.backbone import Backbone
from strategies.models.classifier import make_network
from strategies.models.features import eval_pixels, to_input
from strategies.models.network import Network
from strategies.models.stages import stages
from strategies.partial_fine_tune import PartialFineTune
from strategies.training.recipe import Recipe, RecipeDraft
from strategies.training.reinit import reinitialise

REESTIMATED = Recipe(3, 0.01, batch_norm="reestimated")


def network_of(backbone: Backbone) -> Network:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return make_network(backbone, (backbone.n_depths,), 3)


def state_of(network: Network) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items()}


def changed(network: Network, before: dict[str, Tensor]) -> set[str]:
    return {k for k, v in network.state_dict().items() if not torch.equal(before[k], v)}


def is_statistic(key: str) -> bool:
    return "running_" in key or "num_batches" in key


def test_reestimated_statistics_are_those_of_the_batch_norm_inputs(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = network_of(tiny)
    reinitialise(network, small_dataset, tiny, REESTIMATED, ctx)

    norm = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    captured: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    pixels = np.stack([eval_pixels(p.path, tiny) for p in small_dataset.train])
    with torch.no_grad():
        network(to_input(pixels, tiny, ctx.device))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = captured[0].mean((0, 2, 3)), captured[0].var((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(norm.running_var, variance, rtol=0.1, atol=1e-3)


def test_only_statistics_are_reestimated_and_frozen_stages_keep_theirs(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = network_of(tiny)
    before = state_of(network)
    reinitialise(network, small_dataset, tiny, replace(REESTIMATED, frozen_stages=2), ctx)

    stage = stages(network.body.net, tiny)
    moved = changed(network, before)
    assert moved
    assert all(is_statistic(key) for key in moved)
    owners = {key.removeprefix("body.net.").rpartition(".")[0] for key in moved}
    assert min(stage[name] for name in owners) == 3
    assert not any(m.training for m in network.modules() if isinstance(m, nn.BatchNorm2d))


def test_the_last_stages_get_random_weights_and_the_first_are_kept(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = network_of(tiny)
    before = state_of(network)
    other = replace(ctx, seed=1)  # the network was initialised with seed 0
    with other.seeded():
        reinitialise(network, small_dataset, tiny, Recipe(3, 0.01, reset_stages=2), other)

    stage = stages(network.body.net, tiny)
    moved = {k for k in changed(network, before) if not is_statistic(k)}
    owners = {key.removeprefix("body.net.").rpartition(".")[0] for key in moved}
    assert min(stage[name] for name in owners) == tiny.n_depths - 1
    convolutions = {
        f"body.net.{n}.weight"
        for n, m in network.body.net.named_modules()
        if isinstance(m, nn.Conv2d) and stage[n] >= tiny.n_depths - 1
    }
    assert convolutions <= moved


def test_features_are_in_the_order_of_the_images(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = network_of(tiny)
    found = reinitialise(network, small_dataset, tiny, REESTIMATED, ctx)
    pixels = np.stack([eval_pixels(small_dataset.train[0].path, tiny)])
    with torch.no_grad():
        alone = network.body(to_input(pixels, tiny, ctx.device))
    np.testing.assert_allclose(found[0], alone[0].numpy(), rtol=1e-3, atol=1e-4)


def test_a_recipe_reinitialises_nothing_by_default() -> None:
    assert not Recipe(3, 0.01).reinitialises
    assert not Recipe(3, 0.01, batch_norm="trained").reinitialises
    assert REESTIMATED.reinitialises


@pytest.mark.parametrize(
    "strategy",
    [
        FullFineTune(RecipeDraft(steps=2, batch_norm="reestimated")),
        FullFineTune(RecipeDraft(steps=2, reset_stages=1)),
        PartialFineTune(RecipeDraft(steps=2, batch_norm="reestimated")),
    ],
    ids=lambda s: f"{s.name}-{s.recipe.batch_norm}",
)
def test_reinitialisation_costs_more_passes_and_is_reproducible(
    strategy: FullFineTune | PartialFineTune,
    small_dataset: Dataset,
    tiny: Backbone,
    ctx: RunContext,
) -> None:
    backbone = tiny
    dataset = small_dataset.hide_test()
    plain = type(strategy)(RecipeDraft(steps=2))
    more = strategy.image_passes(dataset, backbone) - plain.image_passes(dataset, backbone)
    assert more == pytest.approx(2 * len(dataset.train))

    first = strategy.fit(dataset, backbone, ctx)
    again = type(strategy).from_hyperparameters(first.hyperparameters).fit(dataset, backbone, ctx)
    paths = [p.path for p in dataset.val]
    np.testing.assert_array_equal(first.predict_proba(paths), again.predict_proba(paths))
    other = plain.fit(dataset, backbone, ctx).predict_proba(paths)
    assert not np.allclose(first.predict_proba(paths), other)


def test_resetting_all_stages_is_rejected(small_dataset: Dataset, backbone: Backbone) -> None:
    reason = FullFineTune(RecipeDraft(reset_stages=backbone.n_depths)).inapplicable(
        small_dataset, backbone
    )
    assert reason is not None
    assert "reset_stages" in reason
    assert FullFineTune(RecipeDraft(reset_stages=1)).inapplicable(small_dataset, backbone) is None
