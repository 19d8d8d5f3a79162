"""Data-parallel training gives the weights that a single process gives."""

import multiprocessing
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from strategies.core.context import RunContext, TrainingResources, make_context
from strategies.core.errors import TransferError
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset
from strategies.data.decoding import read_image
from strategies.models.backbone import Backbone
from strategies.models.body import Body
from strategies.models.classifier import make_network
from strategies.training.data_parallel import DataParallelGroup
from strategies.training.recipe import Recipe
from strategies.training.trainer import train


@pytest.fixture
def tiny(load_random: Callable[..., Backbone]) -> Backbone:
    return replace(load_random("test_resnet", input_px=64), input_px=32)


def trained(
    backbone: Backbone, dataset: Dataset, recipe: Recipe, ctx: RunContext
) -> dict[str, Tensor]:
    with ctx.seeded():
        network = make_network(backbone, (backbone.n_depths,), 3)
        train(network, dataset, backbone, recipe, ctx)
    return network.state_dict()


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize(("n", "world_size"), [(8, 2), (32, 3), (7, 3), (10, 5), (5, 1)])
def test_shards_hold_every_row_once_and_keep_mixup_pairs_together(n: int, world_size: int) -> None:
    shards = [DataParallelGroup(rank, world_size).shard(n) for rank in range(world_size)]
    assert sorted(np.concatenate(shards).tolist()) == list(range(n))
    for shard in shards:
        assert np.array_equal(n - 1 - shard, shard[::-1])  # row i with its partner in mixup
    assert max(map(len, shards)) - min(map(len, shards)) <= 3


def test_two_processes_give_the_weights_of_one(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    # SGD, because Adam's first steps amplify rounding errors where a gradient is nearly zero.
    recipe = Recipe(
        6, 0.01, batch_size=8, optimiser="sgd", batch_norm="trained", mixup=0.3, ema=0.5, blend=0.8
    )
    accuracies: list[list[float | None]] = [[], []]
    states = []
    for size in (1, 2):
        recording = replace(
            ctx,
            training=TrainingResources(n_processes=size),
            reporter=Reporter(on_epoch=lambda _, found, n=size: accuracies[n - 1].append(found)),
        )
        states.append(trained(tiny, small_dataset, recipe, recording))
    assert_same(*states)
    assert accuracies[0] == accuracies[1]
    assert len(accuracies[1]) == 6
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_out_of_memory_in_one_process_does_not_change_the_weights(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(3, 0.01, batch_size=8, optimiser="sgd")
    expected = trained(tiny, small_dataset, recipe, ctx)
    original, sizes = Body.forward, []

    def forward(self: Body, images: Tensor) -> Tensor:
        if self.training and len(images) > 2:  # not in the worker, which imports the original
            raise torch.OutOfMemoryError("out of memory")
        sizes.append(len(images))
        return original(self, images)

    monkeypatch.setattr(Body, "forward", forward)
    assert_same(
        expected,
        trained(
            tiny, small_dataset, recipe, replace(ctx, training=TrainingResources(n_processes=2))
        ),
    )
    assert 2 in sizes


class Stopped(Exception):
    """Raised by a callback to stop a training run."""


@pytest.mark.slow
def test_a_stopped_run_resumes_with_any_number_of_processes(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    recipe = Recipe(6, 0.01, batch_size=8, optimiser="sgd")
    expected = trained(tiny, small_dataset, recipe, ctx)
    path = ctx.cache.path.parent / "checkpoint"
    rounds: list[int] = []

    def stop(number: int, _: float | None) -> None:
        rounds.append(number)
        if number in (2, 4) and rounds.count(number) == 1:
            raise Stopped

    for size in (2, 2, 1):
        context = replace(
            ctx,
            training=TrainingResources(path, n_processes=size),
            reporter=Reporter(on_epoch=stop),
        )
        if size == 2:
            with pytest.raises(Stopped):
                trained(tiny, small_dataset, recipe, context)
            assert not multiprocessing.active_children()
        else:
            assert_same(expected, trained(tiny, small_dataset, recipe, context))
    assert rounds == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_the_error_of_a_worker_process_is_reported(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = replace(small_dataset.train[0], path=small_dataset.root / "gone.png")
    dataset = replace(small_dataset, train=(gone,) * len(small_dataset.train), val=())
    # Rank 0 can read every file; the worker process imports the original reader.
    image = read_image(small_dataset.train[0].path)
    monkeypatch.setattr("strategies.training.dataloader.read_image", lambda path: image)
    with pytest.raises(TransferError, match=r"process of --ddp failed: .*gone\.png was readable"):
        trained(
            tiny,
            dataset,
            Recipe(6, 0.01, batch_size=8),
            replace(ctx, training=TrainingResources(n_processes=2)),
        )
    assert not multiprocessing.active_children()


def test_with_cached_frozen_stages_one_process_trains_and_a_note_is_given(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    notes: list[str] = []
    recipe = Recipe(12, 0.01, batch_size=16, frozen_stages=2)
    trained(
        tiny,
        small_dataset,
        recipe,
        replace(
            ctx, training=TrainingResources(n_processes=2), reporter=Reporter(on_note=notes.append)
        ),
    )
    assert ["--ddp is ignored" in note for note in notes] == [True]


def test_more_processes_than_images_or_gpus_are_rejected(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TransferError, match="--ddp 5: a batch of 8"):
        trained(
            tiny,
            small_dataset,
            Recipe(6, 0.01, batch_size=8),
            replace(ctx, training=TrainingResources(n_processes=5)),
        )
    monkeypatch.setattr("strategies.core.context.make_device", lambda name: torch.device(name))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(TransferError, match=r"--ddp 3 needs 3 GPUs, counted from cuda:2; found 2"):
        make_context(device="cuda:2", ddp=3)
    with pytest.raises(TransferError, match="at least 1"):
        make_context(device="cpu", ddp=0)
