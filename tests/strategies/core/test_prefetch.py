import time
from itertools import count, islice

import pytest

from strategies.core.prefetch import chunks, prefetch


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
