"""Data-parallel training gives the weights that a single process gives."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from strategies.core.context import RunContext, TrainingResources
from strategies.core.errors import OutOfTime, TransferError
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset
from strategies.models.architectures.efficientnet_lite import NormAct
from strategies.models.architectures.timm_zoo import timm_module
from strategies.models.backbone import Backbone
from strategies.models.body import Body
from strategies.models.classifier import make_network
from strategies.models.network import Network
from strategies.training.data_parallel import DataParallelGroup, launch, synchronised
from strategies.training.recipe import Recipe
from strategies.training.trainer import train
from tests.stingy import make_stingy

SGD = Recipe(6, 0.01, batch_size=8, optimiser="sgd")
"""Adam's first steps amplify rounding errors where a gradient is nearly zero."""


def on_gpus(ctx: RunContext, n_gpus: int, reporter: Reporter | None = None) -> RunContext:
    """Return a context of training runs on some GPUs, which are processes on the CPU here."""
    training = replace(ctx.training, n_gpus=n_gpus)
    return replace(ctx, training=training, reporter=reporter or ctx.reporter)


def trained(
    backbone: Backbone,
    dataset: Dataset,
    recipe: Recipe,
    ctx: RunContext,
    change: Callable[[Network], object] = lambda network: None,
) -> dict[str, Tensor]:
    with ctx.seeded():
        network = make_network(backbone, (backbone.n_depths,), 3)
        change(network)
        train(network, dataset, backbone, recipe, ctx)
    assert not multiprocessing.active_children()
    return {name: value.cpu() for name, value in network.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize(("n", "world_size"), [(8, 2), (32, 3), (7, 3), (10, 5), (5, 1)])
def test_shards_hold_every_row_once_and_keep_mixup_pairs_together(n: int, world_size: int) -> None:
    shards = [DataParallelGroup(rank, world_size).shard(n) for rank in range(world_size)]
    assert sorted(np.concatenate(shards).tolist()) == list(range(n))
    for shard in shards:
        assert np.array_equal(n - 1 - shard, shard[::-1])  # row i with its partner in mixup
    assert max(map(len, shards)) - min(map(len, shards)) <= 3


def assert_two_processes_train_as_one(
    backbone: Backbone,
    dataset: Dataset,
    recipe: Recipe,
    ctx: RunContext,
    change: Callable[[Network], object] = lambda network: None,
) -> None:
    accuracies: dict[int, list[float | None]] = {1: [], 2: []}
    states = []
    for size, found in accuracies.items():
        reporter = Reporter(on_epoch=lambda _, accuracy, found=found: found.append(accuracy))
        states.append(trained(backbone, dataset, recipe, on_gpus(ctx, size, reporter), change))
    assert_same(*states)
    assert len(accuracies[1]) == 6
    assert accuracies[1] == accuracies[2]


def test_two_processes_give_the_weights_of_one_with_mixup_and_micro_batches(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    recipe = replace(SGD, mixup=0.3, ema=0.5, blend=0.8)
    assert_two_processes_train_as_one(tiny, small_dataset, recipe, ctx, make_stingy)


def test_an_odd_batch_and_faster_convolutions_do_not_change_the_weights(
    backbone: Backbone,
    small_dataset: Dataset,
    ctx: RunContext,
    capfd: pytest.CaptureFixture[str],
) -> None:
    recipe = replace(SGD, lr=1e-3, batch_size=7)  # shares of four and three images
    assert_two_processes_train_as_one(backbone, small_dataset, recipe, ctx)
    assert capfd.readouterr() == (
        "",
        "",
    )  # the processes print nothing, and torch warns of nothing


class Stopped(Exception):
    """Raised by a callback to stop a training run."""


@pytest.mark.slow
def test_a_stopped_run_resumes_with_any_number_of_processes(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    expected = trained(tiny, small_dataset, SGD, ctx)
    path = ctx.cache.path.parent / "checkpoint"
    rounds: list[int] = []

    def stop(number: int, _: float | None) -> None:
        rounds.append(number)
        if number in (2, 4) and rounds.count(number) == 1:
            raise Stopped

    context = replace(ctx, training=TrainingResources(path))
    for size in (2, 2, 1):
        if size == 2:
            with pytest.raises(Stopped):
                trained(tiny, small_dataset, SGD, on_gpus(context, size, Reporter(on_epoch=stop)))
            assert not multiprocessing.active_children()
        else:
            stopped = on_gpus(context, size, Reporter(on_epoch=stop))
            assert_same(expected, trained(tiny, small_dataset, SGD, stopped))
    assert rounds == [1, 2, 3, 4, 5, 6]
    assert not path.exists()


def test_an_error_in_one_process_ends_the_run_with_that_error(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    gone = replace(small_dataset.train[0], path=small_dataset.root / "gone.png")
    # One image in a batch is missing, so one process of two cannot read its share.
    dataset = replace(small_dataset, train=(gone, *small_dataset.train[1:]), val=())
    with pytest.raises(TransferError, match=r"gone\.png was readable"):
        trained(tiny, dataset, replace(SGD, batch_size=4), on_gpus(ctx, 2))
    assert not multiprocessing.active_children()


class DyingBody(Body):
    """A body whose second process is killed in the first training step."""

    def forward(self, images: Tensor) -> Tensor:
        if self.training and torch.distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    def change(network: Network) -> None:
        network.body.__class__ = DyingBody

    with pytest.raises(TransferError, match=r"Process 1 .* without a result \(exit code -9\)"):
        trained(tiny, small_dataset, SGD, on_gpus(ctx, 2), change)
    assert not multiprocessing.active_children()


def record_and_sleep(group: DataParallelGroup, ctx: RunContext, folder: Path) -> None:
    (folder / str(group.rank)).write_text(str(os.getpid()))
    time.sleep(600)


def is_running(process: str) -> bool:
    try:
        return bool(Path(f"/proc/{process}/cmdline").read_bytes())  # empty once it has ended
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_the_processes_end_with_the_one_that_started_them(ctx: RunContext, tmp_path: Path) -> None:
    arguments = (record_and_sleep, (tmp_path,), on_gpus(ctx, 2))
    parent = multiprocessing.get_context("spawn").Process(target=launch, args=arguments)
    parent.start()
    ends_s = time.monotonic() + 300
    while len(processes := [f.read_text() for f in tmp_path.glob("[01]")]) < 2 or not all(
        processes
    ):
        assert time.monotonic() < ends_s
        time.sleep(0.1)
    assert all(map(is_running, processes))
    parent.kill()
    parent.join()
    while any(map(is_running, processes)):
        assert time.monotonic() < ends_s
        time.sleep(0.1)


class NanBody(Body):
    """A body that gives NaN in the second process in the second and the third training step."""

    step = 0

    def forward(self, images: Tensor) -> Tensor:
        features = super().forward(images)
        self.step += self.training
        is_second = self.training and torch.distributed.get_rank() == 1
        return features * torch.nan if is_second and self.step in (2, 3) else features


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_in_one_process_is_skipped_by_all(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    def change(network: Network) -> None:
        network.body.__class__ = NanBody

    accuracies: list[float | None] = []
    reporter = Reporter(on_epoch=lambda _, accuracy: accuracies.append(accuracy))
    state = trained(tiny, small_dataset, SGD, on_gpus(ctx, 2, reporter), change)
    assert all(value.isfinite().all() for value in state.values())
    assert accuracies[0] == accuracies[1] == accuracies[2]  # two steps were skipped
    assert len(accuracies) == 6


@pytest.mark.slow
def test_the_deadline_holds_in_all_processes(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    late = on_gpus(ctx, 2).with_deadline(0.0)
    with pytest.raises(OutOfTime):
        trained(tiny, small_dataset, SGD, late)


def test_with_cached_frozen_stages_one_process_trains_and_a_note_is_given(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    notes: list[str] = []
    recipe = Recipe(12, 0.01, batch_size=16, frozen_stages=2)
    trained(tiny, small_dataset, recipe, on_gpus(ctx, 2, Reporter(on_note=notes.append)))
    assert ["one GPU trains the rest" in note for note in notes] == [True]


def test_more_processes_than_a_batch_has_pairs_of_images_are_refused(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    with pytest.raises(TransferError, match="5 GPUs: a batch of 8 images is too small"):
        trained(tiny, small_dataset, SGD, on_gpus(ctx, 5))


def test_batch_norm_statistics_are_not_trained_on_several_cpus() -> None:
    norm = nn.BatchNorm2d(4)
    with pytest.raises(TransferError, match="BatchNorm statistics needs GPUs"):
        DataParallelGroup(0, 2).parallel(nn.Sequential(norm), fixed_norms=())


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.BatchNorm2d(4),
        lambda: NormAct(4),
        lambda: timm_module("timm.layers").BatchNormAct2d(4),
    ],
)
def test_a_synchronised_layer_computes_what_the_layer_does_from_the_same_parameters(
    make: Callable[[], nn.Module],
) -> None:
    norm = make().eval()
    expected = norm(torch.linspace(-9, 9, 64).reshape(1, 4, 4, 4))
    state = {name: value.clone() for name, value in norm.state_dict().items()}
    found = synchronised(norm)
    assert isinstance(found, nn.SyncBatchNorm)
    assert found.weight is norm.weight
    assert torch.equal(found(torch.linspace(-9, 9, 64).reshape(1, 4, 4, 4)), expected)
    assert found.state_dict().keys() == state.keys()


@pytest.mark.gpu
def test_two_gpus_train_batch_norm_statistics_as_one_does(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    recipe = replace(SGD, batch_norm="trained", mixup=0.3)
    ctx = replace(ctx, device=torch.device("cuda"))
    one, two = (trained(tiny, small_dataset, recipe, on_gpus(ctx, size)) for size in (1, 2))
    assert any("running_mean" in name for name in one)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4, msg=name)
