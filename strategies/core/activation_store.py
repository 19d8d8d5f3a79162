"""Activations of frozen stages that several training runs share, in nameless files on disk."""

from collections.abc import Callable, Hashable
from typing import Any

from numpy.typing import NDArray


class ActivationStore:
    """Arrays on disk under a key, the least lately used dropped for others.

    What is dropped is gone from the disk once nobody reads it any more.
    """

    def __init__(self) -> None:
        self._rows: dict[Hashable, NDArray[Any]] = {}

    def get(self, key: Hashable, fill: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return the array of a key; fill it and keep it, if it is not kept, or not any more."""
        rows = self._rows.pop(key, None)
        if rows is None:
            rows = fill()
        self._rows[key] = rows  # the last is the one used last
        return rows

    def make_room(self, n_bytes: int, most: int) -> None:
        """Drop arrays until so many bytes more would be `most` at most."""
        while self._rows and n_bytes + sum(r.nbytes for r in self._rows.values()) > most:
            del self._rows[next(iter(self._rows))]
