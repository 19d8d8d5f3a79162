"""Data loading: errors of worker threads, and resuming at a batch."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from strategies.core.context import RunContext
from strategies.core.errors import DataError, TransferError
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.models.classifier import make_network
from strategies.models.features import batches, to_input
from strategies.training import dataloader
from strategies.training.dataloader import ImageInputs, row_batches, train_batches
from strategies.training.recipe import Recipe

RECIPE = Recipe(5, 0.1, batch_size=6)


@pytest.mark.parametrize("error", [ValueError("odd"), MemoryError(), SystemExit(1)])
def test_a_worker_thread_that_fails_raises_a_transfer_error(
    small_dataset: Dataset,
    backbone: Backbone,
    ctx: RunContext,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    read, remaining = dataloader.read_image, [7]

    def fail(path: Path) -> object:
        remaining[0] -= 1
        if remaining[0] < 0:
            raise error
        return read(path)

    monkeypatch.setattr(dataloader, "read_image", fail)

    with pytest.raises(TransferError, match=f"worker.*failed.*{type(error).__name__}"):
        list(islice(train_batches(small_dataset.train, backbone, RECIPE, ctx), 5))


def test_a_keyboard_interrupt_is_not_reported_as_a_worker_failure(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(dataloader, "read_image", interrupted)

    with pytest.raises(KeyboardInterrupt):
        next(train_batches(small_dataset.train, backbone, RECIPE, ctx))


def test_an_image_that_is_gone_is_named(
    make_folder: Callable[..., Path], small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    gone = replace(small_dataset.train[2], path=make_folder("f", 1) / "gone.png")
    split = (*small_dataset.train[:2], gone)

    with pytest.raises(DataError, match=r"gone\.png was readable when the dataset was loaded"):
        next(train_batches(split, backbone, RECIPE, ctx))


def test_a_resumed_loader_continues_with_the_next_batch(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    whole = list(islice(train_batches(small_dataset.train, backbone, RECIPE, ctx), 9))
    rest = list(islice(train_batches(small_dataset.train, backbone, RECIPE, ctx, first=4), 5))

    for (rows, pixels), (their_rows, their_pixels) in zip(whole[4:], rest, strict=True):
        assert rows == their_rows
        np.testing.assert_array_equal(pixels, their_pixels)


@pytest.mark.parametrize(("n", "size"), [(10, 3), (10, 10), (4, 11), (7, 1)])
def test_every_epoch_is_a_permutation_of_all_rows(n: int, size: int) -> None:
    batches = list(islice(row_batches(n, size, seed=0), 5 * n))
    rows = [row for batch in batches for row in batch]

    assert {len(batch) for batch in batches} == {size}
    for start in range(0, len(rows) - n, n):
        assert sorted(rows[start : start + n]) == list(range(n))
    assert rows[:n] != rows[n : 2 * n]


def _inputs(dataset: Dataset, backbone: Backbone, ctx: RunContext) -> ImageInputs:
    network = make_network(backbone, (backbone.n_depths,), dataset.n_classes)
    return ImageInputs(network, dataset, backbone, RECIPE, ctx)


def test_batches_of_images_are_the_normalised_pixels(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    inputs = _inputs(small_dataset, backbone, ctx)
    drawn = train_batches(small_dataset.train, backbone, RECIPE, ctx, first=1)
    for (rows, images), (known, pixels) in islice(zip(inputs.batches(1), drawn, strict=True), 3):
        assert rows == known
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(images, to_input(pixels, backbone, ctx.device))
    found = batches([p.path for p in small_dataset.val], backbone, 1)
    for images, pixels in zip(inputs.val(), found, strict=True):
        assert torch.equal(images, to_input(pixels, backbone, ctx.device))


@pytest.mark.parametrize("read", [lambda inputs: inputs.batches(0), ImageInputs.val])
def test_the_threads_that_read_images_end_with_the_loop(
    small_dataset: Dataset,
    backbone: Backbone,
    ctx: RunContext,
    read: Callable[[ImageInputs], Iterator[object]],
) -> None:
    before = threading.active_count()
    found: Any = read(_inputs(small_dataset, backbone, ctx))
    next(found)
    assert threading.active_count() > before
    found.close()
    assert threading.active_count() == before


@pytest.mark.gpu
def test_images_on_cuda_equal_those_on_the_cpu(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, cuda: torch.device
) -> None:
    here = _inputs(small_dataset, backbone, ctx)
    there = _inputs(small_dataset, backbone, replace(ctx, device=cuda))
    pairs = zip(here.batches(0), there.batches(0), strict=True)
    for (rows, images), (known, moved) in islice(pairs, 4):
        assert rows == known
        assert moved.device.type == "cuda"
        torch.testing.assert_close(moved.cpu(), images, rtol=0, atol=1e-6)
    for images, moved in zip(here.val(), there.val(), strict=True):
        torch.testing.assert_close(moved.cpu(), images, rtol=0, atol=1e-6)
