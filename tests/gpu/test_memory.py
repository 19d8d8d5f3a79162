"""A GPU that is out of memory: batches are split, and what is computed stays the same."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from strategies.core.cache import ArrayCache
from strategies.core.errors import TransferError
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone, resized
from strategies.models.features import extract_features
from strategies.training.recipe import Recipe
from tests.gpu.conftest import Devices
from tests.gpu.loops import changed, make_loop, noise, relative_error, state_of, step

pytestmark = pytest.mark.gpu

PX, BATCH = 128, 64
"""Side and number of the images of a step: activations need far more than weights."""
SHARE = 0.6
"""Share that is allowed of the memory that the whole batch needs."""
RECIPE = Recipe(100, 1e-2, batch_size=BATCH, optimiser="sgd")


@contextlib.contextmanager
def at_most(n_bytes: float) -> Iterator[None]:
    """Context in which torch may take this much memory of the GPU beyond what it holds."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties().total_memory
    share = (torch.cuda.memory_reserved() + n_bytes) / total
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the most memory that some work takes beyond what is held before."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def test_a_training_step_is_split_and_gives_the_same_weights(
    devices: Devices, small_dataset: Dataset, backbone: Backbone
) -> None:
    ctx, backbone = devices.gpu, resized(backbone, PX)
    images = noise(BATCH, backbone, ctx)
    whole, split = (make_loop(backbone, small_dataset, RECIPE, ctx) for _ in range(2))
    before = state_of(whole)
    needed = peak_bytes(lambda: step(whole, images))
    assert whole.n_parts == 1
    with at_most(SHARE * needed):
        step(split, images)
    assert split.n_parts > 1
    expected, found = state_of(whole), state_of(split)
    weights = [name for name in changed(before, expected) if name.startswith("network/")]
    assert weights
    steps = [
        torch.cat([(state[name] - before[name]).flatten() for name in weights])
        for state in (found, expected)
    ]
    assert relative_error(*steps) < 1e-2


def test_the_next_step_fits_at_once(
    devices: Devices, small_dataset: Dataset, backbone: Backbone
) -> None:
    ctx, backbone = devices.gpu, resized(backbone, PX)
    images = noise(BATCH, backbone, ctx)
    loop = make_loop(backbone, small_dataset, RECIPE, ctx)
    needed = peak_bytes(lambda: step(loop, images))
    with at_most(SHARE * needed):
        step(loop, images)
        n_parts = loop.n_parts
        step(loop, images)
    assert loop.n_parts == n_parts > 1


def test_too_little_memory_for_one_image_is_reported(
    devices: Devices, small_dataset: Dataset, backbone: Backbone
) -> None:
    ctx, backbone = devices.gpu, resized(backbone, 4 * PX)
    loop = make_loop(backbone, small_dataset, RECIPE, ctx)
    images = noise(4, backbone, ctx)
    with at_most(0), pytest.raises(TransferError, match="even with one image at a time"):
        step(loop, images)
    step(loop, images)  # the loop is still usable
    assert loop.lr_cuts == 0


def test_a_feature_pass_gives_the_same_features(
    devices: Devices, small_dataset: Dataset, backbone: Backbone
) -> None:
    ctx, backbone = devices.gpu, resized(backbone, 2 * PX)
    images = small_dataset.train[:32]
    expected = []
    needed = peak_bytes(lambda: expected.append(extract_features(images, backbone, ctx)))
    again = replace(ctx, cache=ArrayCache(ctx.cache.path.parent / "again"))
    n_before = torch.cuda.memory_stats()["num_ooms"]
    with at_most(SHARE * needed):
        found = extract_features(images, backbone, again)
    assert torch.cuda.memory_stats()["num_ooms"] > n_before  # there was too little memory
    for rows, others in zip(found.pooled, expected[0].pooled, strict=True):
        assert relative_error(rows, others) < 2e-3
