"""A store of arrays by content: what was computed once for a picture is not computed again."""

import contextlib
import hashlib
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from strategies.core.errors import StorageError

Rows = NDArray[np.float32]
_PAGE = 500


class ArrayCache:
    """One SQLite file of float32 rows, keyed by (space, picture digest).

    A space names how a row was computed (weights, transform, precision), so that rows of two
    spaces never mix. Every row carries a checksum: a damaged row counts as absent. Safe for
    several processes at once; a killed writer loses at most its open batch.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "features.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._connect() as db:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute(
                    "CREATE TABLE IF NOT EXISTS rows (space TEXT, digest TEXT, crc INTEGER, "
                    "data BLOB, PRIMARY KEY (space, digest)) WITHOUT ROWID"
                )
        except (OSError, sqlite3.Error) as error:
            raise StorageError(
                f"The feature cache {self.path} cannot be opened: {error}. "
                "Choose another folder with --cache-dir, or delete the file if it is damaged."
            ) from error

    @contextlib.contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        """Open the file for one transaction: committed at the end, undone by an error."""
        with contextlib.closing(sqlite3.connect(self.path, timeout=60)) as db, db:
            yield db

    def get(self, space: str, digests: Sequence[str]) -> dict[str, Rows]:
        """Return the stored rows of these digests; damaged and absent ones are missing."""
        found: dict[str, Rows] = {}
        wanted = list(dict.fromkeys(digests))
        try:
            with self._connect() as db:
                for start in range(0, len(wanted), _PAGE):
                    page = wanted[start : start + _PAGE]
                    marks = ",".join("?" * len(page))
                    query = (
                        "SELECT digest, crc, data FROM rows "
                        f"WHERE space = ? AND digest IN ({marks})"
                    )
                    for digest, crc, data in db.execute(query, (space, *page)):
                        if isinstance(data, bytes) and zlib.crc32(data) == crc:
                            found[digest] = np.frombuffer(data, dtype=np.float32)
        except sqlite3.Error as error:
            raise self._broken(error) from error
        return found

    def put(self, space: str, rows: Mapping[str, Rows]) -> None:
        """Store rows; one transaction, so either all of them are there or none."""
        records = [
            (space, digest, zlib.crc32(data), data)
            for digest, data in ((k, v.astype(np.float32).tobytes()) for k, v in rows.items())
        ]
        try:
            with self._connect() as db:
                db.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)", records)
        except sqlite3.Error as error:
            raise self._broken(error) from error

    def _broken(self, error: sqlite3.Error) -> StorageError:
        return StorageError(
            f"The feature cache {self.path} cannot be used: {error}. Delete it (it is rebuilt), "
            "or choose another folder with --cache-dir."
        )


def space_name(parts: Iterable[object]) -> str:
    """Name a space by what determines its rows."""
    return hashlib.sha256("|".join(map(repr, parts)).encode()).hexdigest()[:32]
