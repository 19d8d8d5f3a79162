"""Data loading: errors of worker threads, and resuming at a batch."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from strategies.core.context import RunContext
from strategies.core.errors import DataError, TransferError
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.training import dataloader
from strategies.training.dataloader import row_batches, train_batches
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
