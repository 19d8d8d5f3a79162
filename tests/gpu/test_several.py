"""Several GPUs: data-parallel training, and features that are computed by any of them."""

import importlib.util
import math
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed

from advisor.tune.interrupt import Interrupt
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.time_budget import TimeBudget
from advisor.tune.trials.executor import LocalExecutor
from advisor.tune.trials.ray_executor import RayExecutor, trial_executor
from advisor.tune.trials.validation import make_validation
from advisor.types.options import RunOptions
from strategies.core.cache import ArrayCache
from strategies.core.context import RunContext, TrainingResources
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.models.classifier import make_network
from strategies.models.features import cached_rows, extract_features, not_cached
from strategies.models.network import Network
from strategies.training.data_parallel import DataParallelGroup, launch
from strategies.training.recipe import Recipe
from strategies.training.trainer import train
from tests.gpu.conftest import Devices
from tests.gpu.loops import relative_error
from tests.stingy import make_stingy

pytestmark = pytest.mark.gpu

SGD = Recipe(6, 0.01, batch_size=8, optimiser="sgd", mixup=0.3)
"""Adam's first steps amplify rounding errors where a gradient is nearly zero."""
SHARD = 12


@pytest.fixture
def two(devices: Devices) -> RunContext:
    """Return a context in float32 on the first of two GPUs."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    return replace(devices.gpu, device=torch.device("cuda", 0))


def unchanged(network: Network) -> None:
    """Change nothing."""


def _steps(
    backbone: Backbone,
    dataset: Dataset,
    ctx: RunContext,
    n_gpus: int,
    change: Callable[[Network], object] = unchanged,
) -> dict[str, Tensor]:
    """Train on some GPUs; return by how much every weight changed."""
    several = replace(ctx, training=TrainingResources(n_gpus=n_gpus))
    with ctx.seeded():
        network = make_network(backbone, (backbone.n_depths,), 3)
        start = {k: v.clone() for k, v in network.state_dict().items()}
        change(network)
        train(network, replace(dataset, val=()), backbone, SGD, several)
    assert not multiprocessing.active_children()
    return {k: v.cpu() - start[k] for k, v in network.state_dict().items()}


def backend_of(group: DataParallelGroup, ctx: RunContext) -> tuple[str, str, int]:
    """Return the backend for tensors of the GPU, this rank's device, and the sum of the ranks."""
    total = torch.tensor(group.rank, device=ctx.device)
    distributed.all_reduce(total)
    backend = str(distributed.get_backend_config())
    return backend, str(ctx.device), int(total)


def test_the_gpus_communicate_by_nccl(two: RunContext) -> None:
    backend, device, total = launch(
        backend_of, (), replace(two, training=TrainingResources(n_gpus=2))
    )
    assert "cuda:nccl" in backend
    assert (device, total) == ("cuda:0", 1)


def test_two_gpus_train_as_one_does(
    two: RunContext, small_dataset: Dataset, backbone: Backbone
) -> None:
    one, other = (_steps(backbone, small_dataset, two, n) for n in (1, 2))
    moved = [name for name, value in one.items() if value.abs().max() > 1e-5]
    assert moved
    for name in moved:
        assert relative_error(other[name], one[name]) < 5e-2, name


def test_two_gpus_start_again_with_smaller_parts_if_one_is_out_of_memory(
    two: RunContext, small_dataset: Dataset, backbone: Backbone
) -> None:
    whole = _steps(backbone, small_dataset, two, 2)
    parts = _steps(backbone, small_dataset, two, 2, make_stingy)
    assert relative_error(parts["head.weight"], whole["head.weight"]) < 5e-2


def test_features_of_another_gpu_are_the_same_and_are_not_computed_again(
    two: RunContext, small_dataset: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    images, second = small_dataset.train[: 2 * SHARD], torch.device("cuda", 1)
    other = replace(two, device=second, cache=ArrayCache(tmp_path / "second"))
    extract_features(images[:SHARD], backbone, two)
    extract_features(images[SHARD:], backbone, other)
    two.cache.put_bytes(*cached_rows(images[SHARD:], backbone, other))
    assert not_cached(images, backbone, two) == ()
    alone = replace(two, cache=ArrayCache(tmp_path / "alone"))
    expected, found = (extract_features(images, backbone, ctx) for ctx in (alone, two))
    for depth, rows in enumerate(expected.pooled):
        assert relative_error(found.pooled[depth], rows) < 2e-3, depth


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray")
def test_ray_computes_all_features_on_the_gpus(
    two: RunContext, small_dataset: Dataset, backbone: Backbone, tmp_path: Path
) -> None:
    progress: list[tuple[str, int, int]] = []
    reporter = Reporter(lambda *report: progress.append(report))
    local = LocalExecutor(
        backbone,
        replace(two, reporter=reporter),
        RunDir.create(tmp_path / "run"),
        make_validation(small_dataset.hide_test(), 1, 0),
        TimeBudget(math.inf, math.inf, 0, len(small_dataset.val), {backbone.input_px: 0.001}),
        Interrupt(),
    )
    images = local.dataset.fit_split
    with trial_executor(local, RunOptions(ray=True, gpus=2)) as executor:
        assert isinstance(executor, RayExecutor)
        assert executor.capacity == 2
        executor.compute_features(shard=SHARD)
    assert progress[-1] == ("features", len(images), len(images))
    assert not_cached(images, backbone, two) == ()
