"""Training loop: freezing, recipes, validation, deadlines, memory limits and schedules."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from strategies.core.allocator import CPU_MICRO_BATCH
from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime, TrainingDiverged, TransferError
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset
from strategies.kernels.depthwise import training_precision
from strategies.models.backbone import Backbone
from strategies.models.classifier import make_network
from strategies.models.network import Network, scores_of
from strategies.models.stages import stages
from strategies.training import dataloader, optimiser
from strategies.training.dataloader import ImageInputs
from strategies.training.loop import ROUNDS, TrainingLoop
from strategies.training.optimiser import ProgressSchedule
from strategies.training.recipe import Recipe
from strategies.training.trainer import train


def _network(backbone: Backbone, ctx: RunContext, n_classes: int = 3) -> Network:
    with ctx.seeded():
        return make_network(backbone, (backbone.n_depths,), n_classes)


def _state(network: Network) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items()}


def _train(
    backbone: Backbone, dataset: Dataset, ctx: RunContext, recipe: Recipe
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Train a new network without validation; return its state before and after."""
    network = _network(backbone, ctx)
    before = _state(network)
    with ctx.seeded():
        train(network, replace(dataset, val=()), backbone, recipe, ctx)
    return before, _state(network)


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {k for k in before if not torch.equal(before[k], after[k])}


def _is_statistic(key: str) -> bool:
    return "running_" in key or "num_batches" in key


@pytest.mark.parametrize("frozen", [1, 3])
def test_frozen_stages_keep_parameters_and_statistics_and_the_others_are_trained(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, frozen: int
) -> None:
    recipe = Recipe(3, 0.01, batch_size=8, frozen_stages=frozen, batch_norm="trained")
    before, after = _train(tiny, small_dataset, ctx, recipe)
    network = _network(tiny, ctx)
    stage = stages(network.body.net, tiny)

    keys = {k for k in before if k.startswith("body.net.")}
    frozen_keys = {
        k for k in keys if stage[k.removeprefix("body.net.").rpartition(".")[0]] <= frozen
    }
    assert frozen_keys
    assert frozen_keys < keys
    assert _changed(before, after) == before.keys() - frozen_keys


def test_frozen_statistics_are_kept_while_every_parameter_is_trained(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    before, after = _train(tiny, small_dataset, ctx, Recipe(3, 0.01, batch_size=8))

    assert _changed(before, after) == {k for k in before if not _is_statistic(k)}


def test_trained_statistics_change(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    before, after = _train(
        tiny, small_dataset, ctx, Recipe(3, 0.01, batch_size=8, batch_norm="trained")
    )

    assert _changed(before, after) == before.keys()


def test_blocks_that_use_a_module_without_calling_it_are_frozen_as_a_whole(
    load_random: Callable[..., Backbone], small_dataset: Dataset, ctx: RunContext
) -> None:
    found = load_random("test_coatnet")
    network = _network(found, ctx)
    stage = stages(network.body.net, found)
    optimiser.freeze(network.body, stage, Recipe(1, 0.1, frozen_stages=found.n_depths - 1))

    trained = {k for k, p in network.body.net.named_parameters() if p.requires_grad}
    assert not [k for k in trained if k.startswith("stages")]


def test_the_heads_learning_rate_is_multiplied_by_its_factor(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = _network(tiny, ctx)
    stage = stages(network.body.net, tiny)
    recipe = Recipe(1, 0.01, head_lr_factor=5, weight_decay=0.3)
    made = optimiser.make_optimiser(network.body, network.head, stage, recipe)

    assert {g["peak"] for g in made.param_groups} == {0.01, 0.05}
    for group in made.param_groups:
        vectors = {p.ndim <= 1 for p in group["params"]}
        assert vectors == {group["weight_decay"] == 0}


@pytest.mark.parametrize("frozen", [0, 3])
@pytest.mark.parametrize("name", ["test_vit", "test_vit3", "test_convnext", "test_coatnet"])
def test_decayed_rates_and_exemptions_by_layer_are_those_of_timm(
    name: str, frozen: int, load_random: Callable[..., Backbone], ctx: RunContext
) -> None:
    found = load_random(name)
    network = _network(found, ctx)
    stage = stages(network.body.net, found)
    recipe = Recipe(
        1, 1e-4, layer_lr_decay=0.7, by_layer=True, weight_decay=0.05, frozen_stages=frozen
    )
    optimiser.freeze(network.body, stage, recipe)
    whole = timm.create_model(name, pretrained=False, num_classes=3)
    trained = {k for k, p in network.body.net.named_parameters() if p.requires_grad}
    groups = param_groups_layer_decay(
        whole,
        weight_decay=0.05,
        no_weight_decay_list=getattr(whole, "no_weight_decay", set)(),
        layer_decay=0.7,
    )
    expected = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    named = {id(p): k for k, p in network.body.net.named_parameters()}

    made = optimiser.make_optimiser(network.body, network.head, stage, recipe)

    theirs = {k: expected[id(p)] for k, p in whole.named_parameters() if k in trained}
    ours = {
        named[id(p)]: (pytest.approx(g["peak"] / 1e-4), g["weight_decay"])
        for g in made.param_groups
        for p in g["params"]
        if id(p) in named
    }
    assert ours == theirs
    head = {id(p): g["peak"] for g in made.param_groups for p in g["params"]}
    assert {head[id(p)] for p in network.head.parameters()} == {1e-4}


def test_training_lowers_the_loss(tiny: Backbone, small_dataset: Dataset, ctx: RunContext) -> None:
    network = _network(tiny, ctx)
    labels = torch.tensor([p.label for p in small_dataset.train])

    def loss() -> float:
        scores = torch.from_numpy(scores_of(network, small_dataset.train, tiny, ctx))
        return nn.functional.cross_entropy(scores, labels).item()

    before = loss()
    recipe = Recipe(25, 3e-3, batch_size=16, batch_norm="trained", min_area=0.8)
    train(network, replace(small_dataset, val=()), tiny, recipe, ctx)

    assert loss() < 0.85 * before


def test_the_same_seed_gives_the_same_weights(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    recipe = Recipe(4, 0.01, batch_size=8, batch_norm="trained", hflip=True)

    _, one = _train(tiny, small_dataset, replace(ctx, n_workers=1), recipe)
    _, two = _train(tiny, small_dataset, replace(ctx, n_workers=3), recipe)
    _, other = _train(tiny, small_dataset, replace(ctx, seed=1), recipe)

    assert not _changed(one, two)
    assert _changed(one, other)


def _loop(
    network: Network, dataset: Dataset, backbone: Backbone, recipe: Recipe, ctx: RunContext
) -> TrainingLoop:
    inputs = ImageInputs(network, dataset, backbone, recipe, ctx)
    stage = stages(network.body.net, backbone)
    return TrainingLoop(inputs, stage, dataset, recipe, ctx)


def test_a_batch_that_is_not_finite_changes_no_weights(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = _network(tiny, ctx).train()
    loop = _loop(network, small_dataset, tiny, Recipe(1, 0.1, batch_norm="trained"), ctx)
    rows = [0, 1, 2, 3]
    loop.take_step(rows, torch.randn(4, 3, 32, 32))
    before = _state(network)
    bad = torch.randn(4, 3, 32, 32)
    bad[2, 1, 5, 5] = torch.nan

    loop.take_step(rows, bad)

    assert loop.lr_cuts == 1
    assert not _changed(before, _state(network))


def test_a_gradient_that_is_not_finite_changes_no_weights(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = _network(tiny, ctx).train()
    loop = _loop(network, small_dataset, tiny, Recipe(1, 0.1), ctx)
    before = _state(network)
    network.head.weight.register_hook(lambda gradient: gradient * torch.inf)

    loop.take_step([0, 1, 2, 3], torch.randn(4, 3, 32, 32))

    assert loop.lr_cuts == 1
    assert not _changed(before, _state(network))


def test_float16_overflow_lowers_the_loss_scale_and_not_the_learning_rate(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = _network(tiny, ctx).train()
    loop = _loop(network, small_dataset, tiny, Recipe(1, 0.1, batch_size=4), ctx)
    loop.updater.scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    before = _state(network)

    loop.take_step([0, 1, 2, 3], 100 * torch.randn(4, 3, 32, 32))

    assert loop.lr_cuts == 0
    assert loop.updater.scaler.get_scale() < 1e38
    assert not _changed(before, _state(network))


def _inject_nan(network: Network, affects: Callable[[int], bool]) -> None:
    """Make the scores of some training steps, counted from 0, NaN."""
    steps = iter(range(1000))

    def inject(module: nn.Module, inputs: object, scores: Tensor) -> Tensor | None:
        return scores * torch.nan if module.training and affects(next(steps)) else None

    network.head.register_forward_hook(inject)


def test_a_run_survives_three_batches_that_are_not_finite(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = _network(tiny, ctx)
    before = _state(network)
    _inject_nan(network, lambda step: step in (1, 2, 4))

    train(network, replace(small_dataset, val=()), tiny, Recipe(7, 0.01, batch_size=8), ctx)

    assert _changed(before, _state(network))
    assert all(v.isfinite().all() for v in network.state_dict().values())


def test_a_loss_that_stays_nan_raises_training_diverged(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = _network(tiny, ctx)
    before = _state(network)
    _inject_nan(network, lambda step: True)

    with pytest.raises(TrainingDiverged, match="step 3"):
        train(network, small_dataset, tiny, Recipe(20, 0.01, batch_size=8), ctx)

    assert not _changed(before, _state(network))


def _fake_validation(monkeypatch: pytest.MonkeyPatch, *n_correct: int) -> list[dict[str, Tensor]]:
    """Fake the number of correct validation images per round; record the validated weights."""
    states: list[dict[str, Tensor]] = []

    def validate(loop: TrainingLoop) -> float:
        state = loop.result_state()
        labels = loop.val_labels
        right = np.arange(len(labels)) < n_correct[len(states)]
        predicted = np.where(right, labels, (labels + 1) % 3)
        states.append(state)
        loop.scores = np.eye(3, dtype=np.float32)[predicted]
        correct = loop.correct(loop.scores)
        if correct.sum() >= loop.correct(loop.best_scores).sum():
            loop.best, loop.best_scores = state, loop.scores
        return float(correct.mean())

    monkeypatch.setattr(TrainingLoop, "validate", validate)
    return states


def test_the_starting_weights_are_kept_if_training_is_significantly_harmful(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = _network(tiny, ctx)
    before = _state(network)
    _fake_validation(monkeypatch, 9, *[4] * ROUNDS)

    train(network, small_dataset, tiny, Recipe(ROUNDS, 0.1, batch_size=8), ctx)

    assert not _changed(before, _state(network))
    assert not network.training


def test_weights_that_are_significantly_better_on_validation_are_kept(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = _network(tiny, ctx)
    states = _fake_validation(monkeypatch, 1, 5, 8, 7, 6, 5, 4)

    train(network, small_dataset, tiny, Recipe(12, 0.1, batch_size=8, batch_norm="trained"), ctx)

    assert not _changed(states[2], _state(network))
    assert _changed(states[1], states[2])
    assert _changed(states[2], states[3])


def test_the_last_weights_are_kept_if_no_round_is_significantly_better(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = _network(tiny, ctx)
    states = _fake_validation(monkeypatch, 1, 5, 8, 7, 7, 7, 7)

    train(network, small_dataset, tiny, Recipe(12, 0.1, batch_size=8), ctx)

    assert not _changed(states[-1], _state(network))
    assert _changed(states[2], _state(network))


def test_without_validation_the_last_weights_are_kept_and_no_accuracy_is_reported(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies: list[float | None] = []
    states: list[dict[str, Tensor]] = []
    network = _network(tiny, ctx)
    step = TrainingLoop.take_step

    def record(loop: TrainingLoop, *args: object) -> None:
        step(loop, *args)
        states.append(_state(network))

    monkeypatch.setattr(TrainingLoop, "take_step", record)
    ctx = replace(ctx, reporter=Reporter(on_epoch=lambda _, accuracy: accuracies.append(accuracy)))

    train(network, replace(small_dataset, val=()), tiny, Recipe(8, 0.01, batch_size=8), ctx)

    assert not _changed(states[-1], _state(network))
    assert _changed(states[-2], states[-1])
    assert accuracies == [None] * ROUNDS


def test_a_blend_of_one_half_is_the_mean_of_start_and_end(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    recipe = Recipe(4, 0.01, batch_size=8)
    before, end = _train(tiny, small_dataset, ctx, recipe)
    _, half = _train(tiny, small_dataset, ctx, replace(recipe, blend=0.5))

    for name in _changed(before, end):
        torch.testing.assert_close(half[name], (before[name] + end[name]) / 2)


def test_the_moving_average_lags_behind_the_weights(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    recipe = Recipe(6, 0.01, batch_size=8)
    before, end = _train(tiny, small_dataset, ctx, recipe)
    _, mean = _train(tiny, small_dataset, ctx, replace(recipe, ema=0.9))

    def squared_distance(state: dict[str, Tensor]) -> float:
        return float(sum((state[k] - before[k]).square().sum() for k in before if "weight" in k))

    assert 0 < squared_distance(mean) < squared_distance(end)


def test_l2_sp_keeps_the_body_near_its_starting_weights(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    recipe = Recipe(6, 0.01, batch_size=8)
    before, free = _train(tiny, small_dataset, ctx, recipe)
    _, pulled = _train(tiny, small_dataset, ctx, replace(recipe, l2_sp=50.0))

    def squared_distance(state: dict[str, Tensor]) -> float:
        body = [k for k in before if k.startswith("body")]
        return float(sum((state[k] - before[k]).float().square().sum() for k in body))

    assert 0 < squared_distance(pulled) < 0.8 * squared_distance(free)


@pytest.mark.parametrize(
    "change", [{"mixup": 0.4}, {"cutmix": 1.0}, {"optimiser": "sgd"}, {"layer_lr_decay": 0.5}]
)
def test_an_option_changes_the_trained_weights(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, change: dict[str, object]
) -> None:
    recipe = Recipe(3, 0.01, batch_size=8)
    _, plain = _train(tiny, small_dataset, ctx, recipe)
    _, other = _train(tiny, small_dataset, ctx, replace(recipe, **change))

    assert _changed(plain, other)
    assert all(v.isfinite().all() for v in other.values())


def test_deeper_stages_have_higher_learning_rates_under_layer_decay(
    tiny: Backbone, ctx: RunContext
) -> None:
    network = _network(tiny, ctx)
    stage = stages(network.body.net, tiny)
    recipe = Recipe(1, 0.01, layer_lr_decay=0.5)
    made = optimiser.make_optimiser(network.body, network.head, stage, recipe)

    peak = {id(p): g["peak"] for g in made.param_groups for p in g["params"]}
    for name, parameter in network.body.net.named_parameters():
        above = tiny.n_depths - stage[name.rpartition(".")[0]]
        assert peak[id(parameter)] == pytest.approx(0.01 * 0.5**above)


class _LimitedMemory:
    """Hook that raises an error for forward passes of more than `most` images in training."""

    def __init__(
        self, network: Network, most: int, error: type[RuntimeError], message: str
    ) -> None:
        self.sizes: list[int] = []
        self.most, self.error, self.message = most, error, message
        network.body.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        if module.training:
            self.sizes.append(len(inputs[0]))
            if len(inputs[0]) > self.most:
                raise self.error(self.message)


@pytest.mark.parametrize("most", [16, 5])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory."),
        (RuntimeError, "DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    ],
)
def test_out_of_memory_splits_batches_without_changing_the_weights(
    tiny: Backbone,
    small_dataset: Dataset,
    ctx: RunContext,
    most: int,
    error: type[RuntimeError],
    message: str,
) -> None:
    recipe = Recipe(2, 0.003, batch_size=64, optimiser="sgd")
    dataset = replace(small_dataset, val=())
    whole, split = _network(tiny, ctx), _network(tiny, ctx)
    limited = _LimitedMemory(split, most, error, message)

    train(whole, dataset, tiny, recipe, ctx)
    train(split, dataset, tiny, recipe, ctx)

    assert limited.sizes[0] == CPU_MICRO_BATCH
    assert sum(s for s in limited.sizes if s <= most) == 2 * 64
    for name, value in _state(whole).items():
        torch.testing.assert_close(split.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_out_of_memory_with_one_image_raises_a_transfer_error(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = _network(tiny, ctx)
    _LimitedMemory(network, 0, torch.OutOfMemoryError, "CUDA out of memory.")

    with pytest.raises(TransferError, match="out of memory even with one image at a time"):
        train(network, small_dataset, tiny, Recipe(2, 0.01, batch_size=8), ctx)


def test_a_device_failure_is_not_retried(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = _network(tiny, ctx)
    limited = _LimitedMemory(
        network, 0, torch.AcceleratorError, "CUDA error: an illegal memory access"
    )

    with pytest.raises(TransferError, match=r"illegal memory access.*Start the program again"):
        train(network, small_dataset, tiny, Recipe(2, 0.01, batch_size=8), ctx)
    assert len(limited.sizes) == 1


def test_other_errors_of_a_network_are_not_handled_as_out_of_memory(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = _network(tiny, ctx)
    _LimitedMemory(network, 0, RuntimeError, "shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        train(network, small_dataset, tiny, Recipe(2, 0.01, batch_size=8), ctx)


def test_networks_with_depthwise_convolutions_train_in_full_precision_on_a_cpu(
    tiny: Backbone, backbone: Backbone, ctx: RunContext
) -> None:
    half = replace(ctx, precision=torch.bfloat16)

    assert training_precision(backbone.build(), half) == torch.float32
    assert training_precision(_network(tiny, ctx), half) == torch.bfloat16


def test_every_round_reports_its_validation_accuracy(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    reports: list[tuple[int, float]] = []
    ctx = replace(
        ctx, reporter=Reporter(on_epoch=lambda epoch, accuracy: reports.append((epoch, accuracy)))
    )
    network = _network(tiny, ctx)
    labels = [p.label for p in small_dataset.val]
    before = np.mean(scores_of(network, small_dataset.val, tiny, ctx).argmax(1) == labels)

    train(network, small_dataset, tiny, Recipe(13, 0.003, batch_size=8), ctx)

    assert [epoch for epoch, _ in reports] == list(range(1, ROUNDS + 1))
    found = scores_of(network, small_dataset.val, tiny, ctx).argmax(1)
    final = np.mean(found == labels)
    assert final in {accuracy for _, accuracy in reports} | {before}


def test_an_exception_of_on_epoch_ends_the_run(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    class Pruned(Exception):
        pass

    def prune(epoch: int, accuracy: float) -> None:
        if epoch == 2:
            raise Pruned

    with pytest.raises(Pruned):
        train(
            _network(tiny, ctx),
            small_dataset,
            tiny,
            Recipe(12, 0.01, batch_size=8),
            replace(ctx, reporter=Reporter(on_epoch=prune)),
        )


def test_a_near_deadline_shortens_a_run_and_the_learning_rate_still_decays(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = TrainingLoop.take_step

    def record(loop: TrainingLoop, *args: object) -> None:
        step(loop, *args)
        rates.append(loop.optimiser.param_groups[0]["lr"])

    monkeypatch.setattr(TrainingLoop, "take_step", record)
    start = time.monotonic()

    train(
        _network(tiny, ctx),
        replace(small_dataset, val=()),
        tiny,
        Recipe(10**6, 0.01, batch_size=8),
        ctx.with_deadline(start + 2),
    )

    assert time.monotonic() - start < 4
    assert 2 <= len(rates) < 10**4
    assert max(rates) <= 0.01
    assert rates[-1] < 0.5 * max(rates)


@pytest.mark.parametrize("left_s", [-1.0, 1e-4])
def test_no_time_for_a_single_step_raises_out_of_time(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, left_s: float
) -> None:
    epochs: list[int] = []
    late = replace(
        ctx,
        deadline_s=time.monotonic() + left_s,
        reporter=Reporter(on_epoch=lambda epoch, _: epochs.append(epoch)),
    )

    with pytest.raises(OutOfTime):
        train(_network(tiny, ctx), small_dataset, tiny, Recipe(5, 0.01), late)

    assert not epochs


def test_a_deadline_that_passes_during_the_first_validation_raises_out_of_time(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []
    monkeypatch.setattr(ProgressSchedule, "progress", lambda self, step: 1.5)

    with pytest.raises(OutOfTime):
        train(
            _network(tiny, ctx),
            small_dataset,
            tiny,
            Recipe(5, 0.01),
            replace(ctx, reporter=Reporter(on_epoch=lambda epoch, _: epochs.append(epoch))),
        )

    assert not epochs


def test_the_learning_rate_warms_up_to_its_peak_and_decays_to_zero() -> None:
    rates = [optimiser.warmup_cosine(p, 0.1) for p in np.linspace(0, 1, 101)]

    assert max(rates) == pytest.approx(1)
    assert np.argmax(rates) == 10
    assert (np.diff(rates[:11]) > 0).all()
    assert (np.diff(rates[10:]) < 0).all()
    assert 0 < rates[0] < 0.1
    assert rates[-1] == pytest.approx(0)


def test_every_image_is_drawn_once_per_epoch_in_a_new_order() -> None:
    batches_of_rows = dataloader.row_batches(10, 4, seed=0)
    rows = [next(batches_of_rows) for _ in range(5)]

    assert [len(r) for r in rows] == [4] * 5
    flat = np.concatenate(rows)
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10].tolist() != flat[10:].tolist()


def test_a_batch_may_be_larger_than_the_train_split() -> None:
    assert sorted(next(dataloader.row_batches(3, 7, seed=0))).count(0) in (2, 3)


def _batches(
    dataset: Dataset, backbone: Backbone, ctx: RunContext, n: int = 3, **settings: object
) -> list[tuple[list[int], np.ndarray]]:
    recipe = Recipe(1, 0.1, batch_size=5, **settings)
    found = dataloader.train_batches(dataset.train, backbone, recipe, ctx)
    return [next(found) for _ in range(n)]


def test_the_same_seed_gives_the_same_crops_with_any_number_of_threads(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    one = _batches(small_dataset, tiny, replace(ctx, n_workers=1), hflip=True)
    many = _batches(small_dataset, tiny, replace(ctx, n_workers=4), hflip=True)
    other = _batches(small_dataset, tiny, replace(ctx, seed=1), hflip=True)

    for (rows, pixels), (their_rows, their_pixels) in zip(one, many, strict=True):
        assert rows == their_rows
        np.testing.assert_array_equal(pixels, their_pixels)
    assert any((a[1] != b[1]).any() for a, b in zip(one, other, strict=True))


def test_crops_of_one_image_differ_between_batches(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    one = replace(small_dataset, train=small_dataset.train[:1])

    first, second, _ = (pixels for _, pixels in _batches(one, tiny, ctx))

    assert (first[0] != first[1]).any()
    assert (first != second).any()


def test_hflip_flips_about_half_of_the_same_crops(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    plain = np.concatenate([p for _, p in _batches(small_dataset, tiny, ctx, n=12)])
    hflip = np.concatenate([p for _, p in _batches(small_dataset, tiny, ctx, n=12, hflip=True)])

    same = (plain == hflip).all((1, 2, 3))
    flipped = (plain[:, :, ::-1] == hflip).all((1, 2, 3))
    assert (same | flipped).all()
    assert 0.25 < flipped.mean() < 0.75


def test_images_that_do_not_fit_into_the_image_cache_are_read_again(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = _batches(small_dataset, tiny, ctx)
    monkeypatch.setattr(dataloader, "IMAGE_CACHE_BYTES", 0)

    for (_, a), (_, b) in zip(cached, _batches(small_dataset, tiny, ctx), strict=True):
        np.testing.assert_array_equal(a, b)


def test_scores_follow_the_order_of_the_split(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = _network(tiny, ctx)

    scores = scores_of(network, small_dataset.val, tiny, ctx)
    reverse = scores_of(network, small_dataset.val[::-1], tiny, ctx)

    assert scores.shape == (len(small_dataset.val), 3)
    np.testing.assert_allclose(scores, reverse[::-1], rtol=1e-4, atol=1e-5)


def test_a_resumed_run_spreads_its_schedule_over_the_remaining_steps(
    ctx: RunContext,
) -> None:
    recipe = Recipe(100, 0.1)
    schedule = optimiser.ProgressSchedule(recipe, ctx, step=20, progress=0.6)

    found = [schedule.progress(step) for step in (20, 60, 100)]

    assert found == pytest.approx([0.6, 0.8, 1.0])


def test_the_last_validation_and_one_more_step_fit_before_the_deadline(ctx: RunContext) -> None:
    soon = ctx.with_deadline(time.monotonic() + 10.0)
    schedule = optimiser.ProgressSchedule(Recipe(10**6, 0.1), soon, val_s=4.0)
    assert schedule.progress(0) == 0

    assert schedule.seconds == pytest.approx(10.0 - 1.15 * 4.0 - 0.2, abs=0.1)
    schedule.start_s -= 4.0  # four seconds for two steps: the next one would end too late
    assert schedule.progress(2) > 1
    assert schedule.progress(400) < 1


def test_a_short_run_is_validated_less_often_but_at_its_end(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []
    recording = replace(ctx, reporter=Reporter(on_epoch=lambda epoch, _: epochs.append(epoch)))
    monkeypatch.setattr(TrainingLoop, "affordable_rounds", lambda self, seconds: 2)

    train(_network(tiny, ctx), small_dataset, tiny, Recipe(12, 0.01, batch_size=8), recording)

    assert epochs == [3, ROUNDS]


def test_validation_takes_at_most_a_quarter_of_the_time() -> None:
    loop = object.__new__(TrainingLoop)
    loop.val_s = 1.0
    rounds = [loop.affordable_rounds(seconds) for seconds in (0.0, 4.0, 12.0, np.inf)]
    assert rounds == [1, 2, 4, ROUNDS]


def test_training_returns_the_validation_scores_of_the_final_weights(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = _network(tiny, ctx)
    found = train(network, small_dataset, tiny, Recipe(ROUNDS, 0.003, batch_size=8), ctx)

    assert found is not None
    np.testing.assert_allclose(found, scores_of(network, small_dataset.val, tiny, ctx), atol=1e-4)
    without_val = replace(small_dataset, val=())
    assert train(network, without_val, tiny, Recipe(2, 0.003, batch_size=8), ctx) is None


def test_all_rounds_of_a_run_read_a_validation_image_once(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, n_read: Counter[Path]
) -> None:
    epochs: list[int] = []
    recording = replace(ctx, reporter=Reporter(on_epoch=lambda epoch, _: epochs.append(epoch)))
    train(_network(tiny, ctx), small_dataset, tiny, Recipe(12, 0.01, batch_size=8), recording)

    assert len(epochs) > 1
    assert n_read == Counter(p.path for p in small_dataset.val)


def test_progress_by_steps_is_the_same_after_resuming(ctx: RunContext) -> None:
    recipe = Recipe(13, 0.1)
    fresh, resumed = (
        optimiser.ProgressSchedule(recipe, ctx),
        optimiser.ProgressSchedule(recipe, ctx, 5, 5 / 13),
    )

    assert [fresh.progress(s) for s in range(5, 14)] == [resumed.progress(s) for s in range(5, 14)]


def test_with_enough_time_the_steps_alone_determine_the_progress(ctx: RunContext) -> None:
    timed = ctx.with_deadline(time.monotonic() + 1000.0)
    fresh = optimiser.ProgressSchedule(Recipe(13, 0.1), timed)
    resumed = optimiser.ProgressSchedule(Recipe(13, 0.1), timed, 5, 5 / 13)
    for schedule in (fresh, resumed):
        schedule.start_s -= 1.0  # reading the first batch took a second

    assert [fresh.progress(s) for s in range(14)] == [s / 13 for s in range(14)]
    assert [resumed.progress(s) for s in range(5, 14)] == [s / 13 for s in range(5, 14)]
    assert resumed.seconds == pytest.approx(999.0 - optimiser.RESERVE_S, abs=0.1)


def test_a_deadline_that_passes_before_the_first_step_ends_the_run(ctx: RunContext) -> None:
    schedule = optimiser.ProgressSchedule(
        Recipe(13, 0.1), ctx.with_deadline(time.monotonic() + 10.0)
    )
    schedule.start_s -= 10.0

    assert schedule.progress(0) >= 1


def test_long_steps_are_validated_once_per_round_and_not_after_every_step(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = iter([0.0, 0.4, 0.55, 0.9, 0.95, 1.2])
    monkeypatch.setattr(ProgressSchedule, "progress", lambda self, step: next(shares))
    epochs: list[int] = []
    recording = replace(ctx, reporter=Reporter(on_epoch=lambda epoch, _: epochs.append(epoch)))

    train(_network(tiny, ctx), small_dataset, tiny, Recipe(50, 0.01, batch_size=8), recording)

    assert epochs == [2, 3, 5, 6]
