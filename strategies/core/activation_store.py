"""What training runs share: activations of frozen stages on disk, evaluation crops in memory."""

import threading
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

EVAL_CROPS_BYTES = 1 << 30
"""Size up to which evaluation crops are kept in memory: 7,100 of them at 224 px."""


class EvalCrops:
    """Evaluation crops in memory: images that are validated again and again are read once.

    A file that changes later is not read again: the crop stays as it was. If the size limit is
    reached, the crops of the kind (input size and preprocessing) that was not used for longest are
    dropped, and if there is no other kind, further crops are not kept. A copy in another process
    starts empty.

    Single crops are never replaced by others of their kind. Validation reads all images in the
    same order: the least recently used one is always the next one that is needed.
    """

    def __init__(self, max_bytes: int = EVAL_CROPS_BYTES) -> None:
        self.max_bytes = max_bytes
        self._kinds: dict[Hashable, dict[Path, tuple[NDArray[Any], float]]] = {}
        self._n_bytes, self._saved_s = 0, 0.0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["EvalCrops"], tuple[int]]:
        return EvalCrops, (self.max_bytes,)

    @property
    def saved_s(self) -> float:
        """Seconds that all crops returned from memory took to read, summed over the threads."""
        return self._saved_s

    def get(
        self, kind: Hashable, path: Path, read: Callable[[Path], NDArray[Any]]
    ) -> NDArray[Any]:
        """Return the crop of an image, which `read` reads unless it is in memory. Thread-safe.

        Parameters
        ----------
        kind
            All that decides about the crop besides the image.
        """
        with self._lock:
            crops = self._kinds.pop(kind, {})
            self._kinds[kind] = crops  # the order of the dict is the order of use
            if path in crops:
                crop, seconds = crops[path]
                self._saved_s += seconds
                return crop
        start = time.perf_counter()
        crop = read(path)
        with self._lock:
            self._keep(kind, path, crop, time.perf_counter() - start)
        return crop

    def _keep(self, kind: Hashable, path: Path, crop: NDArray[Any], seconds: float) -> None:
        others = [other for other in self._kinds if other != kind]
        while others and self._n_bytes + crop.nbytes > self.max_bytes:
            dropped = self._kinds.pop(others.pop(0))
            self._n_bytes -= sum(old.nbytes for old, _ in dropped.values())
        crops = self._kinds.setdefault(kind, {})
        if path not in crops and self._n_bytes + crop.nbytes <= self.max_bytes:
            crops[path] = crop, seconds
            self._n_bytes += crop.nbytes


class ActivationStore:
    """Arrays by key, backed by unnamed files on disk; the least recently used is evicted first.

    The file of an evicted array disappears from the disk once nothing reads it any more.

    Attributes
    ----------
    eval_crops
        Evaluation crops of the same training runs.
    """

    def __init__(self) -> None:
        self._rows: dict[Hashable, NDArray[Any]] = {}
        self.eval_crops = EvalCrops()

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
