"""Persistent cache of feature rows and JSON values, keyed by content, in one SQLite file."""

import contextlib
import hashlib
import json
import logging
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from strategies.core.errors import StorageError

Rows = NDArray[np.float32]
MAX_BYTES = 5 << 30
"""Limit of the file's size in bytes; the least recently used rows are evicted first."""
ROOM = 0.1
"""Share of the limit that one eviction frees, so that not every write evicts."""
_PAGE, _HOUR_S = 500, 3600
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS rows (
    id INTEGER PRIMARY KEY, space TEXT, digest TEXT, used INTEGER, crc INTEGER, data BLOB,
    UNIQUE (space, digest))
"""

logger = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """Return the user's cache folder for this program."""
    return Path(platformdirs.user_cache_dir("tl-advisor"))


@dataclass(frozen=True)
class CacheInfo:
    """State of a cache: bytes on disk, rows, and the damaged files that were quarantined."""

    path: Path
    n_bytes: int
    n_rows: int
    damaged: tuple[Path, ...]


class ArrayCache:
    """One SQLite file of float32 rows and of JSON values, keyed by (space, digest).

    A space identifies how a row was computed (weights, transform, precision), so that rows of two
    spaces never mix. Every row carries a checksum: a damaged row is a cache miss. A damaged file
    is renamed, never deleted, and a new one is created. Several processes may use one cache at
    once; a killed writer loses at most its open transaction.

    Parameters
    ----------
    max_bytes
        Limit of the file's size; the least recently used rows (by the hour) are evicted first.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.path = folder / "cache.sqlite"
        self.max_bytes = max_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"The cache folder {folder} cannot be created: {error}. Choose another one with "
                "--cache-dir."
            ) from error

    def get(self, space: str, digests: Sequence[str]) -> dict[str, Rows]:
        """Return the stored rows of these digests; damaged and absent rows are left out."""
        found = self._read(space, digests)
        return {digest: np.frombuffer(data, dtype=np.float32) for digest, data in found.items()}

    def put(self, space: str, rows: Mapping[str, Rows]) -> None:
        """Store rows in one transaction: either all of them or none."""
        self._write(space, {k: v.astype(np.float32).tobytes() for k, v in rows.items()})

    def keep_open(self) -> contextlib.AbstractContextManager[object]:
        """Keep the file open for a block of many writes.

        Opening the file costs more than one write. The open file holds no lock.
        """
        return self._transaction()

    def get_json(self, space: str, digests: Sequence[str]) -> dict[str, Any]:
        """Return the values stored under these digests; absent ones are left out."""
        return {digest: json.loads(data) for digest, data in self._read(space, digests).items()}

    def put_json(self, space: str, values: Mapping[str, Any]) -> None:
        """Store JSON values in one transaction."""
        self._write(space, {k: json.dumps(v).encode() for k, v in values.items()})

    def info(self) -> CacheInfo:
        """Return the size of the cache and its quarantined files."""
        n_rows = 0
        with self._transaction() as db:
            (n_rows,) = db.execute("SELECT count(*) FROM rows").fetchone()
        n_bytes = sum(p.stat().st_size for p in self.path.parent.glob(f"{self.path.name}*"))
        damaged = sorted(self.path.parent.glob(f"{self.path.name}.damaged-*"))
        return CacheInfo(self.path, n_bytes, n_rows, tuple(damaged))

    def clear(self) -> None:
        """Delete all rows; the file stays, because other processes may have it open."""
        with self._transaction() as db:
            db.execute("DELETE FROM rows")
        with self._transaction() as db:
            db.execute("PRAGMA incremental_vacuum").fetchall()

    def _read(self, space: str, digests: Sequence[str]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        wanted = list(dict.fromkeys(digests))
        hour = int(time.time()) // _HOUR_S
        with self._transaction() as db:
            for start in range(0, len(wanted), _PAGE):
                page = wanted[start : start + _PAGE]
                placeholders = ",".join("?" * len(page))
                where = f"WHERE space = ? AND digest IN ({placeholders})"
                query = f"SELECT digest, used, crc, data FROM rows {where}"
                is_old = False
                for digest, used, crc, data in db.execute(query, (space, *page)):
                    is_old |= used != hour
                    if isinstance(data, bytes) and zlib.crc32(data) == crc:
                        found[digest] = data
                if is_old:
                    db.execute(f"UPDATE rows SET used = ? {where}", (hour, space, *page))
        return found

    def _write(self, space: str, rows: Mapping[str, bytes]) -> None:
        hour = int(time.time()) // _HOUR_S
        records = [(space, key, hour, zlib.crc32(data), data) for key, data in rows.items()]
        insert = "INSERT OR REPLACE INTO rows (space, digest, used, crc, data) VALUES (?,?,?,?,?)"
        with self._transaction() as db:
            db.executemany(insert, records)
            self._evict(db)

    def _evict(self, db: sqlite3.Connection) -> None:
        """Evict the least recently used rows once the file exceeds its limit."""
        sizes = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in _SIZES]
        excess = sizes[0] * (sizes[1] - sizes[2]) - self.max_bytes
        if excess <= 0:
            return
        excess += int(ROOM * self.max_bytes)
        evicted = []
        for row, n_bytes in db.execute("SELECT id, length(data) FROM rows ORDER BY used, id"):
            if excess <= 0:
                break
            evicted.append((row,))
            excess -= n_bytes
        db.executemany("DELETE FROM rows WHERE id = ?", evicted)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Open the file for one transaction: commit at the end, roll back on an error.

        A damaged file is quarantined and a new one is created; its rows are cache misses.
        """
        try:
            try:
                db = self._open()
            except sqlite3.Error as error:
                self._quarantine(error)
                db = self._open()
            with contextlib.closing(db), db:
                yield db
        except sqlite3.Error as error:
            self._quarantine(error)

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=60)
        try:
            for setting in (*_SETTINGS, _SCHEMA):
                db.execute(setting)
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _quarantine(self, error: sqlite3.Error) -> None:
        """Quarantine a damaged file: rename it, so that a new one can be created.

        Raises
        ------
        StorageError
            If the file is not damaged: for example, it is locked, or the disk is full.
        """
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGE:
            raise StorageError(
                f"The cache {self.path} cannot be used: {error}. Fix the cause, or choose "
                "another folder with --cache-dir."
            ) from error
        name = f"{self.path.name}.damaged-{time.time_ns()}"
        for end in ("-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):  # absent, or renamed by another process
                part = self.path.with_name(self.path.name + end)
                part.rename(part.with_name(name + end))
        logger.warning(
            "The cache %s is damaged (%s). It was renamed to %s; its contents are recomputed.",
            self.path,
            error,
            name,
        )


# WAL lets one writer and many readers work at once. NORMAL does not wait until a commit is on the
# disk: a power failure may undo the last commits, but never half of one. The incremental vacuum
# returns freed pages to the file system, and pages are read from a memory map.
_SETTINGS = (
    "PRAGMA auto_vacuum = INCREMENTAL",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    f"PRAGMA mmap_size = {MAX_BYTES}",
)
_SIZES = ("page_size", "page_count", "freelist_count")


def space_name(parts: Iterable[object]) -> str:
    """Return the name of a space: a hash of everything that determines its rows."""
    return hashlib.sha256("|".join(map(repr, parts)).encode()).hexdigest()[:32]
