"""Prefetching: work in threads ahead of the loop that uses it, and copies to its device ahead."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")


def prefetch(work: Callable[[T], R], items: Iterable[T], n_workers: int) -> Generator[R]:
    """Yield ``work(item)`` for every item, in order, computed in threads.

    At most ``n_workers + 2`` results are computed or held at a time, so `items` may be infinite.
    Decoding an image releases the GIL: the next images are read while the network computes.
    """
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(n_workers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > n_workers + 1:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield `size` items at a time; the last chunk may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


class TimedIterator(Iterator[T]):
    """Iterates over items, and adds up the seconds in which the next one was waited for."""

    def __init__(self, items: Iterable[T]) -> None:
        self.items, self.waited_s = iter(items), 0.0

    def __next__(self) -> T:
        """Return the next item."""
        start = time.perf_counter()
        try:
            return next(self.items)
        finally:
            self.waited_s += time.perf_counter() - start


def batches_on_device(
    batches: Iterable[tuple[T, NDArray[Any]]], device: torch.device
) -> Generator[tuple[T, Tensor]]:
    """Yield batches as tensors on a device, each with what came with it, in order.

    On CUDA, a thread copies the batches to pinned memory. From there they are copied to the
    device on a stream of their own, one batch ahead of the loop, so that the copy of the next
    batch overlaps with the computation on this one. The main thread never waits for a copy.
    Elsewhere each batch is moved when the loop asks for it; on a CPU it is not copied at all.

    Parameters
    ----------
    batches
        Writable arrays. Whoever opened them closes them.
    """
    if device.type != "cuda":
        for given, batch in batches:
            yield given, torch.from_numpy(batch).to(device)
        return
    with contextlib.closing(prefetch(_pinned, batches, 1)) as pinned:
        yield from _copied_ahead(pinned, device)


def _pinned(batch: tuple[T, NDArray[Any]]) -> tuple[T, Tensor]:
    return batch[0], torch.from_numpy(batch[1]).pin_memory()


def _copied_ahead(
    pinned: Iterable[tuple[T, Tensor]], device: torch.device
) -> Generator[tuple[T, Tensor]]:
    """Copy pinned batches to a CUDA device on a side stream, one ahead of the loop.

    Memory of a copy is allocated on the stream of the loop. The allocator reuses memory only on
    the stream that it was allocated on: that of each loop's side stream would stay reserved.
    """
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[T, Tensor] | None = None
    for given, batch in pinned:
        current = torch.cuda.current_stream(device)
        current.wait_stream(side)  # for the copy of `ahead`; that of `batch` is not queued yet
        copied = torch.empty_like(batch, device=device, pin_memory=False)
        side.wait_stream(current)  # earlier work in the queue may still use this memory
        with torch.cuda.stream(side):
            copied.copy_(batch, non_blocking=True)
        copied.record_stream(side)  # if the loop ends early, it is freed during the copy
        if ahead is not None:
            yield ahead
        ahead = given, copied
    if ahead is not None:
        torch.cuda.current_stream(device).wait_stream(side)
        yield ahead
