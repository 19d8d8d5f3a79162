"""A store by content: what was computed once for an image is not computed again."""

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
"""The file is kept below this: what was used longest ago goes first."""
ROOM = 0.1
"""So much of the limit is freed at once, so that not every write has to make room."""
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
    """What a cache holds: bytes on disk, rows, and the damaged files that were set aside."""

    path: Path
    n_bytes: int
    n_rows: int
    damaged: tuple[Path, ...]


class ArrayCache:
    """One SQLite file of float32 rows and of JSON values, keyed by (space, digest).

    A space names how a row was computed (weights, transform, precision), so that rows of two
    spaces never mix. Every row carries a checksum: a damaged row counts as absent. A damaged file
    is set aside, never deleted, and a new one begun. Safe for several processes at once; a killed
    writer loses at most its open batch.

    Parameters
    ----------
    max_bytes
        Limit of the file's size; the rows used longest ago (by the hour) are dropped first.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.path = folder / "cache.sqlite"
        self.max_bytes = max_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"The cache folder {folder} cannot be made: {error}. Choose another one with "
                "--cache-dir."
            ) from error

    def get(self, space: str, digests: Sequence[str]) -> dict[str, Rows]:
        """Return the stored rows of these digests; damaged and absent ones are missing."""
        found = self._read(space, digests)
        return {digest: np.frombuffer(data, dtype=np.float32) for digest, data in found.items()}

    def put(self, space: str, rows: Mapping[str, Rows]) -> None:
        """Store rows; one transaction, so either all of them are there or none."""
        self._write(space, {k: v.astype(np.float32).tobytes() for k, v in rows.items()})

    def kept_open(self) -> contextlib.AbstractContextManager[object]:
        """Keep the file open for a block of many writes: opening it costs more than each of them.

        Nothing is locked by that.
        """
        return self._transaction()

    def get_json(self, space: str, digests: Sequence[str]) -> dict[str, Any]:
        """Return the values that were remembered under these digests; absent ones are missing."""
        return {digest: json.loads(data) for digest, data in self._read(space, digests).items()}

    def put_json(self, space: str, values: Mapping[str, Any]) -> None:
        """Store JSON values; one transaction."""
        self._write(space, {k: json.dumps(v).encode() for k, v in values.items()})

    def info(self) -> CacheInfo:
        """Say how much there is."""
        n_rows = 0
        with self._transaction() as db:
            (n_rows,) = db.execute("SELECT count(*) FROM rows").fetchone()
        n_bytes = sum(p.stat().st_size for p in self.path.parent.glob(f"{self.path.name}*"))
        aside = sorted(self.path.parent.glob(f"{self.path.name}.damaged-*"))
        return CacheInfo(self.path, n_bytes, n_rows, tuple(aside))

    def clear(self) -> None:
        """Forget everything; the file stays, for others may have it open."""
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
                marks = ",".join("?" * len(page))
                where = f"WHERE space = ? AND digest IN ({marks})"
                query = f"SELECT digest, used, crc, data FROM rows {where}"
                aged = False
                for digest, used, crc, data in db.execute(query, (space, *page)):
                    aged |= used != hour
                    if isinstance(data, bytes) and zlib.crc32(data) == crc:
                        found[digest] = data
                if aged:
                    db.execute(f"UPDATE rows SET used = ? {where}", (hour, space, *page))
        return found

    def _write(self, space: str, rows: Mapping[str, bytes]) -> None:
        hour = int(time.time()) // _HOUR_S
        records = [(space, key, hour, zlib.crc32(data), data) for key, data in rows.items()]
        insert = "INSERT OR REPLACE INTO rows (space, digest, used, crc, data) VALUES (?,?,?,?,?)"
        with self._transaction() as db:
            db.executemany(insert, records)
            self._make_room(db)

    def _make_room(self, db: sqlite3.Connection) -> None:
        """Drop what was used longest ago, once the file is larger than its limit."""
        sizes = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in _SIZES]
        excess = sizes[0] * (sizes[1] - sizes[2]) - self.max_bytes
        if excess <= 0:
            return
        excess += int(ROOM * self.max_bytes)
        doomed = []
        for row, n_bytes in db.execute("SELECT id, length(data) FROM rows ORDER BY used, id"):
            if excess <= 0:
                break
            doomed.append((row,))
            excess -= n_bytes
        db.executemany("DELETE FROM rows WHERE id = ?", doomed)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Open the file for one transaction: committed at the end, undone by an error.

        A damaged file is set aside and a new one begun: what was to be read counts as absent.
        """
        try:
            try:
                db = self._open()
            except sqlite3.Error as error:
                self._set_aside(error)
                db = self._open()
            with contextlib.closing(db), db:
                yield db
        except sqlite3.Error as error:
            self._set_aside(error)

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=60)
        try:
            for setting in (*_SETTINGS, _SCHEMA):
                db.execute(setting)
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _set_aside(self, error: sqlite3.Error) -> None:
        """Rename a damaged file; any other trouble is the user's to mend.

        Raises
        ------
        StorageError
            If the file is not damaged but, for example, locked, or its disk full.
        """
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGE:
            raise StorageError(
                f"The cache {self.path} cannot be used: {error}. Mend that, or choose another "
                "folder with --cache-dir."
            ) from error
        name = f"{self.path.name}.damaged-{time.time_ns()}"
        for end in ("-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):  # not there, or another process was first
                part = self.path.with_name(self.path.name + end)
                part.rename(part.with_name(name + end))
        logger.warning(
            "The cache %s is damaged (%s): set aside as %s; what it held is computed again.",
            self.path,
            error,
            name,
        )


# Readers and one writer at once; a commit is not waited for until it is on the disk, so that a
# power cut may undo the last ones, but never half of one; room is given back to the system; pages
# are read from a memory map.
_SETTINGS = (
    "PRAGMA auto_vacuum = INCREMENTAL",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    f"PRAGMA mmap_size = {MAX_BYTES}",
)
_SIZES = ("page_size", "page_count", "freelist_count")


def space_name(parts: Iterable[object]) -> str:
    """Name a space by what determines its rows."""
    return hashlib.sha256("|".join(map(repr, parts)).encode()).hexdigest()[:32]
