import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime, TrainingDiverged, TransferError
from strategies.data.dataset import Dataset
from strategies.kernels.depthwise import training_precision
from strategies.models.backbone import Backbone, stages
from strategies.models.classifier import make_network
from strategies.models.features import batches, to_input
from strategies.models.network import Network, scores_of
from strategies.training import dataloader as loader
from strategies.training import optimiser
from strategies.training import trainer as training
from strategies.training.data_parallel import SINGLE_PROCESS
from strategies.training.dataloader import ImageInputs
from strategies.training.recipe import Recipe
from strategies.training.trainer import ROUNDS, train


@pytest.fixture
def tiny(load_random: Callable[..., Backbone]) -> Backbone:
    """A ResNet of half a million parameters at 32 px."""
    return replace(load_random("test_resnet", input_px=64), input_px=32)


def _network(backbone: Backbone, ctx: RunContext, n_classes: int = 3) -> Network:
    with ctx.seeded():
        return make_network(backbone, (backbone.n_depths,), n_classes)


def _state(network: Network) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items()}


def _train(
    backbone: Backbone, dataset: Dataset, ctx: RunContext, recipe: Recipe
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Train a fresh network without validation (so that the last weights stay): before, after."""
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
def test_frozen_stages_keep_parameters_and_statistics_and_the_others_learn(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, frozen: int
) -> None:
    recipe = Recipe(3, 0.01, batch_size=8, frozen_stages=frozen, batch_norm="trained")
    before, after = _train(tiny, small_dataset, ctx, recipe)
    network = _network(tiny, ctx)
    stage = stages(network.body.net, tiny)

    keys = {k for k in before if k.startswith("body.net.")}
    kept = {k for k in keys if stage[k.removeprefix("body.net.").rpartition(".")[0]] <= frozen}
    assert kept
    assert kept < keys
    assert _changed(before, after) == before.keys() - kept


def test_frozen_statistics_stay_while_every_parameter_learns(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    before, after = _train(tiny, small_dataset, ctx, Recipe(3, 0.01, batch_size=8))

    assert _changed(before, after) == {k for k in before if not _is_statistic(k)}


def test_trained_statistics_move(tiny: Backbone, small_dataset: Dataset, ctx: RunContext) -> None:
    before, after = _train(
        tiny, small_dataset, ctx, Recipe(3, 0.01, batch_size=8, batch_norm="trained")
    )

    assert _changed(before, after) == before.keys()


def test_blocks_that_use_a_module_without_calling_it_are_frozen_whole(
    load_random: Callable[..., Backbone], small_dataset: Dataset, ctx: RunContext
) -> None:
    found = load_random("test_coatnet")
    network = _network(found, ctx)
    stage = stages(network.body.net, found)
    optimiser.freeze(network.body, stage, Recipe(1, 0.1, frozen_stages=found.n_depths - 1))

    learning = {k for k, p in network.body.net.named_parameters() if p.requires_grad}
    assert not [k for k in learning if k.startswith("stages")]


def test_the_head_learns_faster_by_its_factor(
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


def test_training_learns(tiny: Backbone, small_dataset: Dataset, ctx: RunContext) -> None:
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


def _learner(
    network: Network, dataset: Dataset, backbone: Backbone, recipe: Recipe, ctx: RunContext
) -> training._TrainingLoop:
    fed = ImageInputs(network, dataset, backbone, recipe, ctx)
    stage = stages(network.body.net, backbone)
    return training._TrainingLoop(fed, stage, dataset, recipe, ctx, SINGLE_PROCESS)


def test_a_batch_that_is_not_finite_leaves_no_trace(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = _network(tiny, ctx).train()
    learner = _learner(network, small_dataset, tiny, Recipe(1, 0.1, batch_norm="trained"), ctx)
    rows = [0, 1, 2, 3]
    learner.take_step(rows, torch.randn(4, 3, 32, 32))
    before = _state(network)
    bad = torch.randn(4, 3, 32, 32)
    bad[2, 1, 5, 5] = torch.nan

    learner.take_step(rows, bad)

    assert learner.brakes == 1
    assert not _changed(before, _state(network))


def test_a_gradient_that_is_not_finite_leaves_no_trace(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = _network(tiny, ctx).train()
    learner = _learner(network, small_dataset, tiny, Recipe(1, 0.1), ctx)
    before = _state(network)
    network.head.weight.register_hook(lambda gradient: gradient * torch.inf)

    learner.take_step([0, 1, 2, 3], torch.randn(4, 3, 32, 32))

    assert learner.brakes == 1
    assert not _changed(before, _state(network))


def test_overflow_in_float16_lowers_the_scale_and_not_the_learning_rate(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = _network(tiny, ctx).train()
    learner = _learner(network, small_dataset, tiny, Recipe(1, 0.1, batch_size=4), ctx)
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    before = _state(network)

    learner.take_step([0, 1, 2, 3], 100 * torch.randn(4, 3, 32, 32))

    assert learner.brakes == 0
    assert learner.scaler.get_scale() < 1e38
    assert not _changed(before, _state(network))


def _spoil(
    monkeypatch: pytest.MonkeyPatch, network: Network, spoilt: Callable[[int], bool]
) -> None:
    """Make the scores of some training steps, counted from 0, not finite."""
    steps = iter(range(1000))

    def spoil(module: nn.Module, inputs: object, scores: Tensor) -> Tensor | None:
        return scores * torch.nan if module.training and spoilt(next(steps)) else None

    network.head.register_forward_hook(spoil)


def test_a_training_survives_three_bad_batches(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = _network(tiny, ctx)
    before = _state(network)
    _spoil(monkeypatch, network, lambda step: step in (1, 2, 4))

    train(network, replace(small_dataset, val=()), tiny, Recipe(7, 0.01, batch_size=8), ctx)

    assert _changed(before, _state(network))
    assert all(v.isfinite().all() for v in network.state_dict().values())


def test_a_loss_that_stays_infinite_is_told_after_the_brakes(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = _network(tiny, ctx)
    before = _state(network)
    _spoil(monkeypatch, network, lambda step: True)

    with pytest.raises(TrainingDiverged, match="step 3"):
        train(network, small_dataset, tiny, Recipe(20, 0.01, batch_size=8), ctx)

    assert not _changed(before, _state(network))


def _judged_as(monkeypatch: pytest.MonkeyPatch, *right: int) -> list[dict[str, Tensor]]:
    """Have validation find so many images right, and record the weights that it was shown."""
    shown: list[dict[str, Tensor]] = []

    def judge(learner: training._TrainingLoop) -> float:
        state = learner._shown()
        labels = learner.val_labels
        said = np.where(np.arange(len(labels)) < right[len(shown)], labels, (labels + 1) % 3)
        shown.append(state)
        learner.scores = np.eye(3, dtype=np.float32)[said]
        hits = learner._hits(learner.scores)
        if hits.sum() >= learner._hits(learner.best_scores).sum():
            learner.best, learner.best_scores = state, learner.scores
        return float(hits.mean())

    monkeypatch.setattr(training._TrainingLoop, "judge", judge)
    return shown


def test_the_starting_point_stays_when_training_clearly_harms(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = _network(tiny, ctx)
    before = _state(network)
    _judged_as(monkeypatch, 9, *[4] * ROUNDS)

    train(network, small_dataset, tiny, Recipe(ROUNDS, 0.1, batch_size=8), ctx)

    assert not _changed(before, _state(network))
    assert not network.training


def test_the_weights_that_were_clearly_best_on_val_stay(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = _network(tiny, ctx)
    shown = _judged_as(monkeypatch, 1, 5, 8, 7, 6, 5, 4)

    train(network, small_dataset, tiny, Recipe(12, 0.1, batch_size=8, batch_norm="trained"), ctx)

    assert not _changed(shown[2], _state(network))
    assert _changed(shown[1], shown[2])
    assert _changed(shown[2], shown[3])


def test_the_last_weights_stay_where_val_cannot_tell_them_from_the_best(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = _network(tiny, ctx)
    shown = _judged_as(monkeypatch, 1, 5, 8, 7, 7, 7, 7)

    train(network, small_dataset, tiny, Recipe(12, 0.1, batch_size=8), ctx)

    assert not _changed(shown[-1], _state(network))
    assert _changed(shown[2], _state(network))


def test_without_val_the_last_weights_stay_and_no_accuracy_is_told(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float | None] = []
    shown: list[dict[str, Tensor]] = []
    network = _network(tiny, ctx)
    step = training._TrainingLoop.take_step

    def watch(learner: training._TrainingLoop, *args: object) -> None:
        step(learner, *args)
        shown.append(_state(network))

    monkeypatch.setattr(training._TrainingLoop, "take_step", watch)
    ctx = replace(ctx, on_epoch=lambda _, accuracy: told.append(accuracy))

    train(network, replace(small_dataset, val=()), tiny, Recipe(8, 0.01, batch_size=8), ctx)

    assert not _changed(shown[-1], _state(network))
    assert _changed(shown[-2], shown[-1])
    assert told == [None] * ROUNDS


def test_half_a_blend_is_the_mean_of_start_and_end(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    recipe = Recipe(4, 0.01, batch_size=8)
    before, end = _train(tiny, small_dataset, ctx, recipe)
    _, half = _train(tiny, small_dataset, ctx, replace(recipe, blend=0.5))

    for name in _changed(before, end):
        torch.testing.assert_close(half[name], (before[name] + end[name]) / 2)


def test_an_average_lags_behind_the_weights(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    recipe = Recipe(6, 0.01, batch_size=8)
    before, end = _train(tiny, small_dataset, ctx, recipe)
    _, mean = _train(tiny, small_dataset, ctx, replace(recipe, ema=0.9))

    def way(state: dict[str, Tensor]) -> float:
        return float(sum((state[k] - before[k]).square().sum() for k in before if "weight" in k))

    assert 0 < way(mean) < way(end)


def test_l2_sp_keeps_the_body_near_its_start(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    recipe = Recipe(6, 0.01, batch_size=8)
    before, free = _train(tiny, small_dataset, ctx, recipe)
    _, pulled = _train(tiny, small_dataset, ctx, replace(recipe, l2_sp=50.0))

    def way(state: dict[str, Tensor]) -> float:
        body = [k for k in before if k.startswith("body")]
        return float(sum((state[k] - before[k]).float().square().sum() for k in body))

    assert 0 < way(pulled) < 0.8 * way(free)


def test_spectral_shrinkage_lets_the_least_of_the_directions_fade(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    recipe = Recipe(6, 0.01, batch_size=8)

    def least(weight: float) -> float:
        network = _network(tiny, ctx)
        _, after = _train(tiny, small_dataset, ctx, replace(recipe, spectral=weight))
        network.load_state_dict(after)
        images = [p.path for p in small_dataset.train[:8]]
        shown = torch.cat([to_input(b, tiny, ctx.device) for b in batches(images, tiny, 1)])
        with torch.inference_mode():
            return float(torch.linalg.svdvals(network.eval().body(shown).float())[-1])

    assert least(50.0) < 0.8 * least(0.0)


@pytest.mark.parametrize(
    "change", [{"mixup": 0.4}, {"cutmix": 1.0}, {"optimiser": "sgd"}, {"layer_lr_decay": 0.5}]
)
def test_an_option_changes_what_is_learnt(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, change: dict[str, object]
) -> None:
    recipe = Recipe(3, 0.01, batch_size=8)
    _, plain = _train(tiny, small_dataset, ctx, recipe)
    _, other = _train(tiny, small_dataset, ctx, replace(recipe, **change))

    assert _changed(plain, other)
    assert all(v.isfinite().all() for v in other.values())


def test_deeper_stages_learn_faster_under_layer_decay(tiny: Backbone, ctx: RunContext) -> None:
    network = _network(tiny, ctx)
    stage = stages(network.body.net, tiny)
    recipe = Recipe(1, 0.01, layer_lr_decay=0.5)
    made = optimiser.make_optimiser(network.body, network.head, stage, recipe)

    peak = {id(p): g["peak"] for g in made.param_groups for p in g["params"]}
    for name, parameter in network.body.net.named_parameters():
        above = tiny.n_depths - stage[name.rpartition(".")[0]]
        assert peak[id(parameter)] == pytest.approx(0.01 * 0.5**above)


class _Short:
    """A network's forward pass that has memory for so many images only."""

    def __init__(self, network: Network, most: int, error: type[RuntimeError], said: str) -> None:
        self.sizes: list[int] = []
        self.most, self.error, self.said = most, error, said
        network.body.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        if module.training:
            self.sizes.append(len(inputs[0]))
            if len(inputs[0]) > self.most:
                raise self.error(self.said)


@pytest.mark.parametrize("most", [32, 16, 5])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory."),
        (RuntimeError, "DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    ],
)
def test_short_memory_splits_batches_and_changes_nothing_else(
    tiny: Backbone,
    small_dataset: Dataset,
    ctx: RunContext,
    most: int,
    error: type[RuntimeError],
    said: str,
) -> None:
    recipe = Recipe(2, 0.003, batch_size=64, optimiser="sgd")
    dataset = replace(small_dataset, val=())
    whole, split = _network(tiny, ctx), _network(tiny, ctx)
    short = _Short(split, most, error, said)

    train(whole, dataset, tiny, recipe, ctx)
    train(split, dataset, tiny, recipe, ctx)

    assert short.sizes[0] == 64
    assert sum(s for s in short.sizes if s <= most) == 2 * 64
    for name, value in _state(whole).items():
        torch.testing.assert_close(split.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_memory_too_short_for_one_image_is_told(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = _network(tiny, ctx)
    _Short(network, 0, torch.OutOfMemoryError, "CUDA out of memory.")

    with pytest.raises(TransferError, match="one image at a time"):
        train(network, small_dataset, tiny, Recipe(2, 0.01, batch_size=8), ctx)


def test_a_device_that_failed_is_not_tried_again(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = _network(tiny, ctx)
    short = _Short(network, 0, torch.AcceleratorError, "CUDA error: an illegal memory access")

    with pytest.raises(TransferError, match=r"illegal memory access.*start again"):
        train(network, small_dataset, tiny, Recipe(2, 0.01, batch_size=8), ctx)
    assert len(short.sizes) == 1


def test_other_errors_of_a_network_are_not_taken_for_short_memory(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = _network(tiny, ctx)
    _Short(network, 0, RuntimeError, "shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        train(network, small_dataset, tiny, Recipe(2, 0.01, batch_size=8), ctx)


def test_networks_with_depthwise_convolutions_train_in_full_precision_on_a_cpu(
    tiny: Backbone, backbone: Backbone, ctx: RunContext
) -> None:
    half = replace(ctx, precision=torch.bfloat16)

    assert training_precision(backbone.build(), half) == torch.float32
    assert training_precision(_network(tiny, ctx), half) == torch.bfloat16


def test_every_round_is_told_with_its_accuracy_on_val(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    told: list[tuple[int, float]] = []
    ctx = replace(ctx, on_epoch=lambda epoch, accuracy: told.append((epoch, accuracy)))
    network = _network(tiny, ctx)
    labels = [p.label for p in small_dataset.val]
    before = np.mean(scores_of(network, small_dataset.val, tiny, ctx).argmax(1) == labels)

    train(network, small_dataset, tiny, Recipe(13, 0.003, batch_size=8), ctx)

    assert [epoch for epoch, _ in told] == list(range(1, ROUNDS + 1))
    found = scores_of(network, small_dataset.val, tiny, ctx).argmax(1)
    final = np.mean(found == labels)
    assert final in {accuracy for _, accuracy in told} | {before}


def test_an_exception_of_on_epoch_ends_the_training(
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
            replace(ctx, on_epoch=prune),
        )


def test_a_near_deadline_shortens_a_training_and_still_cools_it_down(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = training._TrainingLoop.take_step

    def watch(learner: training._TrainingLoop, *args: object) -> None:
        step(learner, *args)
        rates.append(learner.optimiser.param_groups[0]["lr"])

    monkeypatch.setattr(training._TrainingLoop, "take_step", watch)
    start = time.monotonic()

    train(
        _network(tiny, ctx),
        replace(small_dataset, val=()),
        tiny,
        Recipe(10**6, 0.01, batch_size=8),
        replace(ctx, deadline_s=start + 2),
    )

    assert time.monotonic() - start < 4
    assert 2 <= len(rates) < 10**4
    assert max(rates) <= 0.01
    assert rates[-1] < 0.5 * max(rates)


@pytest.mark.parametrize("left_s", [-1.0, 1e-4])
def test_no_time_for_a_single_step_raises(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, left_s: float
) -> None:
    told: list[int] = []
    late = replace(
        ctx, deadline_s=time.monotonic() + left_s, on_epoch=lambda epoch, _: told.append(epoch)
    )

    with pytest.raises(OutOfTime):
        train(_network(tiny, ctx), small_dataset, tiny, Recipe(5, 0.01), late)

    assert not told


def test_time_that_runs_out_while_the_starting_point_is_judged_raises(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(training.ProgressSchedule, "progress", lambda self, step: 1.5)

    with pytest.raises(OutOfTime):
        train(
            _network(tiny, ctx),
            small_dataset,
            tiny,
            Recipe(5, 0.01),
            replace(ctx, on_epoch=lambda epoch, _: told.append(epoch)),
        )

    assert not told


def test_the_learning_rate_warms_up_to_its_peak_and_cools_to_zero() -> None:
    rates = [optimiser.warmup_cosine(p, 0.1) for p in np.linspace(0, 1, 101)]

    assert max(rates) == pytest.approx(1)
    assert np.argmax(rates) == 10
    assert (np.diff(rates[:11]) > 0).all()
    assert (np.diff(rates[10:]) < 0).all()
    assert 0 < rates[0] < 0.1
    assert rates[-1] == pytest.approx(0)


def test_every_image_is_seen_equally_often_in_a_new_order() -> None:
    drawn = loader.row_batches(10, 4, seed=0)
    rows = [next(drawn) for _ in range(5)]

    assert [len(r) for r in rows] == [4] * 5
    flat = np.concatenate(rows)
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10].tolist() != flat[10:].tolist()


def test_a_batch_may_be_larger_than_the_train_split() -> None:
    assert sorted(next(loader.row_batches(3, 7, seed=0))).count(0) in (2, 3)


def _drawn(
    dataset: Dataset, backbone: Backbone, ctx: RunContext, n: int = 3, **settings: object
) -> list[tuple[list[int], np.ndarray]]:
    recipe = Recipe(1, 0.1, batch_size=5, **settings)
    batches = loader.train_batches(dataset.train, backbone, recipe, ctx)
    return [next(batches) for _ in range(n)]


def test_the_same_seed_draws_the_same_crops_with_any_number_of_threads(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    one = _drawn(small_dataset, tiny, replace(ctx, n_workers=1), hflip=True)
    many = _drawn(small_dataset, tiny, replace(ctx, n_workers=4), hflip=True)
    other = _drawn(small_dataset, tiny, replace(ctx, seed=1), hflip=True)

    for (rows, pixels), (their_rows, their_pixels) in zip(one, many, strict=True):
        assert rows == their_rows
        np.testing.assert_array_equal(pixels, their_pixels)
    assert any((a[1] != b[1]).any() for a, b in zip(one, other, strict=True))


def test_crops_of_one_image_differ_from_round_to_round(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    one = replace(small_dataset, train=small_dataset.train[:1])

    first, second, _ = (pixels for _, pixels in _drawn(one, tiny, ctx))

    assert (first[0] != first[1]).any()
    assert (first != second).any()


def test_mirroring_mirrors_about_half_of_the_same_crops(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    plain = np.concatenate([p for _, p in _drawn(small_dataset, tiny, ctx, n=12)])
    mirrored = np.concatenate([p for _, p in _drawn(small_dataset, tiny, ctx, n=12, hflip=True)])

    same = (plain == mirrored).all((1, 2, 3))
    flipped = (plain[:, :, ::-1] == mirrored).all((1, 2, 3))
    assert (same | flipped).all()
    assert 0.25 < flipped.mean() < 0.75


def test_images_that_do_not_fit_into_memory_are_read_again(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = _drawn(small_dataset, tiny, ctx)
    monkeypatch.setattr(loader, "KEPT_BYTES", 0)

    for (_, a), (_, b) in zip(kept, _drawn(small_dataset, tiny, ctx), strict=True):
        np.testing.assert_array_equal(a, b)


def test_scores_follow_the_order_of_the_split(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = _network(tiny, ctx)

    forth = scores_of(network, small_dataset.val, tiny, ctx)
    back = scores_of(network, small_dataset.val[::-1], tiny, ctx)

    assert forth.shape == (len(small_dataset.val), 3)
    np.testing.assert_allclose(forth, back[::-1], rtol=1e-4, atol=1e-5)


def test_a_resumed_training_spreads_its_schedule_over_the_time_that_is_left(
    ctx: RunContext,
) -> None:
    recipe = Recipe(100, 0.1)
    hurried = optimiser.ProgressSchedule(recipe, ctx, step=20, progress=0.6)

    found = [hurried.progress(step) for step in (20, 60, 100)]

    assert found == pytest.approx([0.6, 0.8, 1.0])


def test_the_last_judgement_and_one_more_step_fit_before_the_deadline(ctx: RunContext) -> None:
    soon = replace(ctx, deadline_s=time.monotonic() + 10.0)
    schedule = optimiser.ProgressSchedule(Recipe(10**6, 0.1), soon, judging_s=4.0)
    assert schedule.progress(0) == 0

    assert schedule.seconds == pytest.approx(10.0 - 1.15 * 4.0 - 0.2, abs=0.1)
    schedule.start_s -= 4.0  # four seconds for two steps: the next one would end too late
    assert schedule.progress(2) > 1
    assert schedule.progress(400) < 1


def test_a_short_training_is_judged_less_often_but_at_its_end(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    listening = replace(ctx, on_epoch=lambda epoch, _: told.append(epoch))
    monkeypatch.setattr(training._TrainingLoop, "affordable_rounds", lambda self, seconds: 2)

    train(_network(tiny, ctx), small_dataset, tiny, Recipe(12, 0.01, batch_size=8), listening)

    assert told == [3, ROUNDS]


def test_rounds_take_at_most_a_quarter_of_the_time_to_be_judged() -> None:
    learner = object.__new__(training._TrainingLoop)
    learner.judging_s = 1.0
    rounds = [learner.affordable_rounds(seconds) for seconds in (0.0, 4.0, 12.0, np.inf)]
    assert rounds == [1, 2, 4, ROUNDS]


def test_training_returns_what_the_kept_weights_say_of_val(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = _network(tiny, ctx)
    said = train(network, small_dataset, tiny, Recipe(ROUNDS, 0.003, batch_size=8), ctx)

    assert said is not None
    np.testing.assert_allclose(said, scores_of(network, small_dataset.val, tiny, ctx), atol=1e-4)
    unjudged = replace(small_dataset, val=())
    assert train(network, unjudged, tiny, Recipe(2, 0.003, batch_size=8), ctx) is None


def test_steps_that_set_the_pace_are_counted_without_rounding(ctx: RunContext) -> None:
    recipe = Recipe(13, 0.1)
    fresh, resumed = (
        optimiser.ProgressSchedule(recipe, ctx),
        optimiser.ProgressSchedule(recipe, ctx, 5, 5 / 13),
    )

    assert [fresh.progress(s) for s in range(5, 14)] == [resumed.progress(s) for s in range(5, 14)]


def test_where_there_is_time_enough_it_does_not_set_the_pace(ctx: RunContext) -> None:
    timed = replace(ctx, deadline_s=time.monotonic() + 1000.0)
    fresh = optimiser.ProgressSchedule(Recipe(13, 0.1), timed)
    resumed = optimiser.ProgressSchedule(Recipe(13, 0.1), timed, 5, 5 / 13)
    for schedule in (fresh, resumed):
        schedule.start_s -= 1.0  # inputs were read for a second

    assert [fresh.progress(s) for s in range(14)] == [s / 13 for s in range(14)]
    assert [resumed.progress(s) for s in range(5, 14)] == [s / 13 for s in range(5, 14)]
    assert resumed.seconds == pytest.approx(999.0 - optimiser.LEAVING_S, abs=0.1)


def test_time_that_is_over_before_the_first_step_ends_the_training(ctx: RunContext) -> None:
    schedule = optimiser.ProgressSchedule(
        Recipe(13, 0.1), replace(ctx, deadline_s=time.monotonic() + 10.0)
    )
    schedule.start_s -= 10.0

    assert schedule.progress(0) >= 1


def test_time_that_is_short_is_not_spent_on_judging_after_every_step(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = iter([0.0, 0.4, 0.55, 0.9, 0.95, 1.2])
    monkeypatch.setattr(training.ProgressSchedule, "progress", lambda self, step: next(shares))
    told: list[int] = []
    listening = replace(ctx, on_epoch=lambda epoch, _: told.append(epoch))

    train(_network(tiny, ctx), small_dataset, tiny, Recipe(50, 0.01, batch_size=8), listening)

    assert told == [2, 3, 5, 6]
