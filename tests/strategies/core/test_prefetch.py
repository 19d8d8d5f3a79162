import contextlib
import threading
import time
from collections.abc import Iterator
from itertools import count, islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from strategies.core import prefetch as prefetching
from strategies.core.prefetch import TimedIterator, batches_on_device, chunks, prefetch
from tests.gpu.synchronisation import no_synchronisation

CPU = torch.device("cpu")


def test_results_come_in_the_order_of_the_items() -> None:
    def slower_at_first(item: int) -> int:
        time.sleep(0.02 * (item < 2))
        return 10 * item

    assert list(prefetch(slower_at_first, range(9), 3)) == [10 * i for i in range(9)]


@pytest.mark.parametrize("n_workers", [1, 3])
def test_few_items_of_an_infinite_iterable_are_taken_ahead(n_workers: int) -> None:
    taken: list[int] = []
    items = (taken.append(i) or i for i in count())

    assert list(islice(prefetch(abs, items, n_workers), 5)) == [0, 1, 2, 3, 4]
    assert len(taken) <= 5 + n_workers + 1


def test_an_error_is_raised_in_the_place_of_its_item() -> None:
    results = prefetch(lambda x: 1 / x, [1, 0, 2], 2)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_work_that_has_not_begun_is_cancelled_when_the_loop_ends_early() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.05)
        return item

    results = prefetch(work, range(100), 1)
    next(results)
    results.close()
    assert len(begun) < 4


def test_the_last_chunk_may_be_shorter() -> None:
    assert list(chunks("abcde", 2)) == ["ab", "cd", "e"]


def _numbered(n: int | None) -> Iterator[tuple[int, np.ndarray]]:
    numbers = count() if n is None else range(n)
    return ((i, np.full((2, 3), i, dtype=np.float16)) for i in numbers)


def test_batches_arrive_in_order_with_what_came_with_them() -> None:
    found = list(batches_on_device(_numbered(4), CPU))
    assert [number for number, _ in found] == [0, 1, 2, 3]
    for (_, tensor), (_, array) in zip(found, _numbered(4), strict=True):
        assert tensor.dtype == torch.float16
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_a_batch_on_a_cpu_is_not_copied() -> None:
    array = np.zeros(3, dtype=np.uint8)
    ((_, tensor),) = batches_on_device([(0, array)], CPU)
    assert np.shares_memory(tensor.numpy(), array)


@pytest.mark.gpu
@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_batches_on_cuda_equal_those_on_the_cpu(cuda: torch.device, n: int) -> None:
    found = list(batches_on_device(_numbered(n), cuda))
    assert all(tensor.device.type == "cuda" for _, tensor in found)
    for (number, tensor), (known, array) in zip(found, _numbered(n), strict=True):
        assert number == known
        np.testing.assert_array_equal(tensor.cpu().numpy(), array)


@pytest.mark.gpu
def test_batches_on_cuda_are_not_overwritten_while_the_device_is_busy(cuda: torch.device) -> None:
    rng = np.random.default_rng(0)
    batches = [(i, rng.integers(0, 256, 1 << 22, dtype=np.uint8)) for i in range(12)]
    work, sums = torch.rand(2048, 2048, device=cuda), []
    for _, batch in batches_on_device(iter(batches), cuda):
        for _ in range(20):  # so that the next copies are queued before this batch is read
            work = torch.tanh(work @ work)
        sums.append(batch.sum(dtype=torch.int64))
    assert [int(s) for s in sums] == [int(b.sum(dtype=np.int64)) for _, b in batches]


@pytest.mark.gpu
def test_copies_to_cuda_wait_for_nothing(cuda: torch.device) -> None:
    with (
        no_synchronisation(),
        contextlib.closing(batches_on_device(_numbered(None), cuda)) as moved,
    ):
        total = sum(tensor.sum() for _, tensor in islice(moved, 9))
    assert float(total) == 6 * sum(range(9))


@pytest.mark.gpu
def test_the_thread_that_pins_batches_ends_when_the_loop_ends_early(cuda: torch.device) -> None:
    before = threading.active_count()
    with contextlib.closing(batches_on_device(_numbered(None), cuda)) as moved:
        next(moved)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_only_the_time_in_which_an_item_is_waited_for_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(prefetching, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def slow() -> Iterator[int]:
        for item in range(3):
            now[0] += 2.0
            yield item

    items = TimedIterator(slow())
    for _ in items:
        now[0] += 5.0
    assert items.waited_s == 6.0
