"""Prefetching: apply a function in threads, ahead of the loop that uses the results."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

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
