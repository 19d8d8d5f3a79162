"""Persistent cache of feature rows and JSON values, keyed by content, in one SQLite file."""

import contextlib
import hashlib
import json
import logging
import re
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
NETWORK_FILE_SYSTEMS = frozenset(
    [
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "virtiofs", "lustre", "gpfs",
        "beegfs", "ceph", "glusterfs", "panfs", "orangefs", "gfs2", "ocfs2", "sshfs", "s3fs",
        "goofys", "gcsfuse", "rclone", "juicefs", "wekafs",
    ]
)  # fmt: skip
"""Types, in the system's list of mounts, of file systems that several machines may share."""
MAX_ROUNDING = 1e-3
"""Largest change of a feature row by float16, whose own precision is half of it."""
_OCTAL = re.compile(r"\\(\d{3})")
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
    """One SQLite file of rows of numbers and of JSON values, keyed by (space, digest).

    A space identifies how a row was computed (weights, transform, precision), so that rows of two
    spaces never mix. Every row carries a checksum: a damaged row is a cache miss. A damaged file
    is renamed, never deleted, and a new one is created. Several processes may use one cache at
    once, also on a network file system; a killed writer loses at most its open transaction.

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
        self._settings = _NETWORK if on_network(folder) else _LOCAL

    def get(self, space: str, digests: Sequence[str]) -> dict[str, Rows]:
        """Return the stored rows of these digests; damaged and absent rows are left out."""
        found = self.get_bytes(space, digests)
        return {digest: np.frombuffer(data, dtype=np.float32) for digest, data in found.items()}

    def put(self, space: str, rows: Mapping[str, Rows]) -> None:
        """Store rows in one transaction: either all of them or none."""
        self.put_bytes(space, {k: v.astype(np.float32).tobytes() for k, v in rows.items()})

    def put_features(self, space: str, rows: Mapping[str, Rows]) -> None:
        """Store rows of `as_stored` numbers in half the bytes, in one transaction."""
        self.put_bytes(space, {k: _packed(v) for k, v in rows.items()})

    def read_features(
        self,
        space: str,
        digests: Sequence[str],
        width: int,
        columns: slice | NDArray[np.int64] = slice(None),
    ) -> tuple[Rows, NDArray[np.bool_]]:
        """Read some columns of feature rows into one array, page by page.

        Parameters
        ----------
        width
            Length of a stored row.

        Returns
        -------
        rows, found
            float32 (n, columns) and (n,), in the order of the digests. Rows that are absent,
            damaged or of another length are not found; they are 0.
        """
        rows = np.zeros((len(digests), len(np.arange(width)[columns])), dtype=np.float32)
        found = np.zeros(len(digests), dtype=np.bool_)
        places: dict[str, list[int]] = {}
        for place, digest in enumerate(digests):
            places.setdefault(digest, []).append(place)
        for digest, data in self._rows(space, digests):
            if len(data) in (2 * width, 4 * width):
                kind = np.float16 if len(data) == 2 * width else np.float32
                rows[places[digest]] = np.frombuffer(data, dtype=kind)[columns]
                found[places[digest]] = True
        return rows, found

    def keep_open(self) -> contextlib.AbstractContextManager[object]:
        """Keep the file open for a block of many writes.

        Opening the file costs more than one write. The open file holds no lock.
        """
        return self._transaction()

    def get_json(self, space: str, digests: Sequence[str]) -> dict[str, Any]:
        """Return the values stored under these digests; absent ones are left out."""
        return {
            digest: json.loads(data) for digest, data in self.get_bytes(space, digests).items()
        }

    def put_json(self, space: str, values: Mapping[str, Any]) -> None:
        """Store JSON values in one transaction."""
        self.put_bytes(space, {k: json.dumps(v).encode() for k, v in values.items()})

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

    def missing(self, space: str, digests: Sequence[str]) -> set[str]:
        """Return the digests without a stored row. No row is read, so damage is not noticed."""
        absent = set(digests)
        with self._transaction() as db:
            for where, keys in _pages(space, digests):
                absent -= {digest for (digest,) in db.execute(f"SELECT digest {where}", keys)}
        return absent

    def get_bytes(self, space: str, digests: Sequence[str]) -> dict[str, bytes]:
        """Return rows as they are stored, for another cache; others are left out."""
        return dict(self._rows(space, digests))

    def _rows(self, space: str, digests: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Yield the digests and data of undamaged rows, and mark the rows as used."""
        hour = int(time.time()) // _HOUR_S
        with self._transaction() as db:
            for where, keys in _pages(space, digests):
                is_old = False
                query = f"SELECT digest, used, crc, data {where}"
                for digest, used, crc, data in db.execute(query, keys):
                    is_old |= used != hour
                    if isinstance(data, bytes) and zlib.crc32(data) == crc:
                        yield digest, data
                if is_old:
                    where_rows = where.removeprefix("FROM rows ")
                    db.execute(f"UPDATE rows SET used = ? {where_rows}", (hour, *keys))

    def put_bytes(self, space: str, rows: Mapping[str, bytes]) -> None:
        """Store rows as they are, in one transaction."""
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
            for setting in (*self._settings, _SCHEMA):
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
# returns freed pages to the file system, and pages are read from a memory map. WAL and the memory
# map need memory that all processes share, which those on several machines do not have.
_LOCAL = (
    "PRAGMA auto_vacuum = INCREMENTAL",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    f"PRAGMA mmap_size = {MAX_BYTES}",
)
_NETWORK = (
    "PRAGMA auto_vacuum = INCREMENTAL",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA synchronous = FULL",
)
_SIZES = ("page_size", "page_count", "freelist_count")


def space_name(parts: Iterable[object]) -> str:
    """Return the name of a space: a hash of everything that determines its rows."""
    return hashlib.sha256("|".join(map(repr, parts)).encode()).hexdigest()[:32]


def as_stored(rows: Rows) -> Rows:
    """Round features, (n, width), to the float16 numbers that the cache stores.

    A row that is out of float16's range stays as it is: if it changed by more than `MAX_ROUNDING`
    of its norm.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = rows.astype(np.float16).astype(np.float32)
        error = np.linalg.norm(rounded - rows, axis=1, keepdims=True)
    return np.where(
        error <= MAX_ROUNDING * np.linalg.norm(rows, axis=1, keepdims=True), rounded, rows
    )


def _packed(row: Rows) -> bytes:
    with np.errstate(over="ignore"):
        small = row.astype(np.float16)
    return (small if np.array_equal(small, row) else row.astype(np.float32)).tobytes()


def _pages(space: str, digests: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the FROM and WHERE clauses, with their parameters, of queries for some rows each."""
    wanted = list(dict.fromkeys(digests))
    for start in range(0, len(wanted), _PAGE):
        page = wanted[start : start + _PAGE]
        placeholders = ",".join("?" * len(page))
        yield f"FROM rows WHERE space = ? AND digest IN ({placeholders})", (space, *page)


def on_network(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> bool:
    """Return whether a folder is on a network file system, as far as the system tells.

    Linux lists its mounts. Elsewhere only Windows' paths of network shares are recognised.
    """
    try:
        listed = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return str(folder.absolute()).startswith("\\\\")
    here, kinds = folder.resolve(), {}
    for line in listed:
        _, point, kind, *_ = line.split(" ")
        kinds[Path(_OCTAL.sub(lambda code: chr(int(code[1], 8)), point))] = kind
    kind = next((kinds[path] for path in (here, *here.parents) if path in kinds), "")
    return kind.removeprefix("fuse.") in NETWORK_FILE_SYSTEMS
