from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from strategies.core.context import RunContext
from strategies.core.errors import DataError, TransferError
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.training import dataloader as loader
from strategies.training.dataloader import result_of, train_batches
from strategies.training.recipe import Recipe

RECIPE = Recipe(5, 0.1, batch_size=6)


@pytest.mark.parametrize("death", [ValueError("odd"), MemoryError(), SystemExit(1)])
def test_a_worker_that_dies_is_an_error_with_a_sentence(
    small_dataset: Dataset,
    backbone: Backbone,
    ctx: RunContext,
    monkeypatch: pytest.MonkeyPatch,
    death: BaseException,
) -> None:
    read, left = loader.read_image, [7]

    def die(path: Path) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise death
        return read(path)

    monkeypatch.setattr(loader, "read_image", die)

    with pytest.raises(TransferError, match=f"worker.*died.*{type(death).__name__}"):
        list(islice(train_batches(small_dataset.train, backbone, RECIPE, ctx), 5))


def test_an_interruption_is_not_taken_for_a_worker_that_died() -> None:
    def interrupted() -> np.ndarray:
        raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyboardInterrupt):
        result_of(pool.submit(interrupted))


def test_a_image_that_has_gone_is_named(
    make_folder: Callable[..., Path], small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    gone = replace(small_dataset.train[2], path=make_folder("f", 1) / "gone.png")
    split = (*small_dataset.train[:2], gone)

    with pytest.raises(DataError, match=r"gone\.png could be read before"):
        next(train_batches(split, backbone, RECIPE, ctx))


def test_a_resumed_loader_goes_on_with_the_batch_that_comes_next(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    whole = list(islice(train_batches(small_dataset.train, backbone, RECIPE, ctx), 9))
    rest = list(islice(train_batches(small_dataset.train, backbone, RECIPE, ctx, first=4), 5))

    for (rows, pixels), (their_rows, their_pixels) in zip(whole[4:], rest, strict=True):
        assert rows == their_rows
        np.testing.assert_array_equal(pixels, their_pixels)
