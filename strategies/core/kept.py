"""Activations of frozen stages that several trainings share, in nameless files on disk."""

from collections.abc import Hashable
from typing import Any

from numpy.typing import NDArray


class KeptFiles:
    """Arrays on disk under a key, the least lately used dropped for others.

    What is dropped is gone from the disk once nobody reads it any more.
    """

    def __init__(self) -> None:
        self._rows: dict[Hashable, NDArray[Any]] = {}

    def find(self, key: Hashable) -> NDArray[Any] | None:
        """Return an array, None if it is not kept, or not any more."""
        if key not in self._rows:
            return None
        self._rows[key] = self._rows.pop(key)  # the last is the one used last
        return self._rows[key]

    def keep(self, key: Hashable, rows: NDArray[Any]) -> None:
        """Keep an array until there is need of its room."""
        self._rows[key] = rows

    def make_room(self, n_bytes: int, most: int) -> None:
        """Drop arrays until so many bytes more would be `most` at most."""
        while self._rows and n_bytes + sum(r.nbytes for r in self._rows.values()) > most:
            del self._rows[next(iter(self._rows))]
