"""Store of frozen-stage activations on disk, shared by several training runs (LRU eviction)."""

from collections.abc import Callable, Hashable
from typing import Any

from numpy.typing import NDArray


class ActivationStore:
    """Arrays by key, backed by unnamed files on disk; the least recently used is evicted first.

    The file of an evicted array disappears from the disk once nothing reads it any more.
    """

    def __init__(self) -> None:
        self._rows: dict[Hashable, NDArray[Any]] = {}

    def get(self, key: Hashable, fill: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return the array of a key; on a miss or after eviction, compute it with `fill`."""
        rows = self._rows.pop(key, None)
        if rows is None:
            rows = fill()
        self._rows[key] = rows  # the order of the dict is the order of use
        return rows

    def evict(self, n_bytes: int, most: int) -> None:
        """Evict arrays until `n_bytes` more fit into a total of `most` bytes."""
        while self._rows and n_bytes + sum(r.nbytes for r in self._rows.values()) > most:
            del self._rows[next(iter(self._rows))]
