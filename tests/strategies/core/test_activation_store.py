"""Evaluation crops in memory: read once, within a size limit, from any thread."""

import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from strategies.core.activation_store import EvalCrops

PATHS = [Path(f"{i}.png") for i in range(8)]
SIZE = 12


class Reader:
    """Reads made-up crops of `SIZE` bytes, and notes which."""

    def __init__(self, wait_s: float = 0.0) -> None:
        self.read: list[Path] = []
        self.wait_s = wait_s

    def __call__(self, path: Path) -> np.ndarray:
        self.read.append(path)
        time.sleep(self.wait_s)
        return np.full((2, 2, 3), int(path.stem), dtype=np.uint8)

    def pass_over(self, crops: EvalCrops, kind: object, n: int) -> int:
        """Get the first `n` crops; return how many were read."""
        before = len(self.read)
        for path in PATHS[:n]:
            np.testing.assert_array_equal(crops.get(kind, path, self), int(path.stem))
        return len(self.read) - before


def test_an_image_is_read_once_for_each_kind_of_crop() -> None:
    crops, reader = EvalCrops(), Reader()
    assert [reader.pass_over(crops, px, 5) for px in (96, 96, 224, 96, 224)] == [5, 0, 5, 0, 0]


def test_crops_that_fit_stay_however_often_all_are_read() -> None:
    crops, reader = EvalCrops(max_bytes=5 * SIZE + 1), Reader()
    assert [reader.pass_over(crops, 96, 8) for _ in range(3)] == [8, 3, 3]


def test_the_kind_that_was_not_used_for_longest_is_dropped_first() -> None:
    crops, reader = EvalCrops(max_bytes=6 * SIZE), Reader()
    for kind in ("a", "b", "a"):
        reader.pass_over(crops, kind, 2)
    assert reader.pass_over(crops, "c", 3) == 3  # for which "b" is dropped
    assert [reader.pass_over(crops, kind, n) for kind, n in (("a", 2), ("c", 3))] == [0, 0]
    assert reader.pass_over(crops, "b", 2) == 2


@pytest.mark.parametrize("max_bytes", [0, SIZE - 1])
def test_a_crop_larger_than_the_limit_is_not_kept(max_bytes: int) -> None:
    crops, reader = EvalCrops(max_bytes), Reader()
    assert [reader.pass_over(crops, 96, 2) for _ in range(2)] == [2, 2]


def test_the_limit_counts_a_crop_once_if_threads_read_it_at_the_same_time() -> None:
    crops, reader = EvalCrops(max_bytes=2 * SIZE), Reader(wait_s=0.05)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: crops.get(96, PATHS[0], reader), range(8)))
    assert len(reader.read) > 1
    assert reader.pass_over(crops, 96, 2) == 1
    assert reader.pass_over(crops, 96, 2) == 0


def test_the_seconds_saved_are_those_that_reading_took() -> None:
    crops, reader = EvalCrops(), Reader(wait_s=0.02)
    reader.pass_over(crops, 96, 2)
    assert crops.saved_s == 0
    reader.pass_over(crops, 96, 3)
    once_s = crops.saved_s
    assert once_s >= 2 * reader.wait_s
    reader.pass_over(crops, 96, 2)
    assert crops.saved_s == pytest.approx(2 * once_s)


def test_a_copy_in_another_process_starts_empty_with_the_same_limit() -> None:
    crops, reader = EvalCrops(max_bytes=2 * SIZE), Reader()
    reader.pass_over(crops, 96, 3)
    copied = pickle.loads(pickle.dumps(crops))
    assert [reader.pass_over(copied, 96, 3) for _ in range(2)] == [3, 1]
