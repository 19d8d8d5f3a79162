"""Optuna storage for many processes: retries of transient errors, locks, a seeded sampler."""

import contextlib
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import filelock
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial
from sqlalchemy import text
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from strategies.core.errors import StorageError

T = TypeVar("T")

STARTUP_TRIALS = 5
"""Trials of a strategy before TPE models them; until then it samples at random."""
RETRY_FOR_S = 120.0
"""Seconds for which an operation is retried while the database does not answer."""
LOCK_TIMEOUT_S = 600.0
"""Timeout of `Lock`, in seconds. A lock is held for milliseconds, or for as long as a classifier
takes to upload to an artifact store. If it is held for longer, its process hangs."""
# Parts of messages of errors that a retry does not fix.
_PERMANENT = (
    "is full",
    "readonly",
    "malformed",
    "not a database",
    "password",
    "no such",
    "does not exist",
)
DATABASE_ERRORS = (StorageInternalError, DBAPIError)


class SeededTPE(BaseSampler):
    """TPE sampler whose draws depend only on the seed, the trial's number and earlier trials.

    A killed process loses its random state. With this sampler a resumed search draws what the
    uninterrupted one would have drawn.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return no parameters: `sample_independent` draws all of them."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return no parameters."""
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw one parameter with TPE."""
        number = trial.user_attrs.get("number", trial.number)
        seed = zlib.crc32(f"{self.seed}/{number}/{param_name}".encode())
        sampler = TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
        return sampler.sample_independent(study, trial, param_name, param_distribution)


def retry_transient(operation: Callable[[], T]) -> T:
    """Run a database operation; retry it while the server restarts or is busy.

    Raises
    ------
    StorageError
        If it still fails after `RETRY_FOR_S`, or fails with an error that is not transient.
    """
    begun, wait_s = time.monotonic(), 0.1
    while True:
        try:
            return operation()
        except DATABASE_ERRORS as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            if _is_permanent(reason) or time.monotonic() - begun > RETRY_FOR_S:
                raise StorageError(
                    f"The database of the trials cannot be used: {reason}. Finished trials are "
                    "kept; continue with tl-auto resume."
                ) from error
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, 5.0)


def _is_permanent(reason: str) -> bool:
    """Return whether a database error cannot be fixed by a retry."""
    return any(part in reason for part in _PERMANENT)


def open_storage(url: str, heartbeat_s: int) -> RDBStorage:
    """Open Optuna's storage; after six missed heartbeats a worker is presumed dead.

    Raises
    ------
    StorageError
        If there is no such database, or its driver is not installed.
    """
    try:
        name = make_url(url)
        kind = name.get_backend_name()
        if kind not in ("sqlite", "postgresql") or (
            kind == "sqlite" and name.database in (None, "", ":memory:")
        ):
            raise ValueError(
                f"{name.render_as_string()} is not a database that processes can share"
            )
        if kind == "sqlite":
            arguments: dict[str, Any] = {"connect_args": {"timeout": 60}}
        else:
            arguments = {"pool_pre_ping": True}
        if name.drivername == "postgresql":
            name = name.set(drivername="postgresql+psycopg")
        with ignore_experimental_warnings():
            return retry_transient(
                lambda: RDBStorage(
                    name.render_as_string(hide_password=False),
                    engine_kwargs=arguments,
                    heartbeat_interval=heartbeat_s,
                    grace_period=6 * heartbeat_s,
                )
            )
    except (ArgumentError, NoSuchModuleError, ImportError, RuntimeError, ValueError) as error:
        raise StorageError(
            f"--storage cannot be used: {error}. Give postgresql://user@host/database and "
            "install the extra: pip install 'tl-advisor[postgres]'."
        ) from error


@contextlib.contextmanager
def ignore_experimental_warnings() -> Iterator[None]:
    """Silence Optuna's ExperimentalWarning for heartbeats and the Wilcoxon pruner."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


class LockLost(StorageError):
    """The connection to the database was lost, and with it the lock."""


def retry_if_lock_lost(decide: Callable[[], T]) -> T:
    """Run a function that takes the lock; run it again from its start if the lock was lost."""
    while True:
        with contextlib.suppress(LockLost):
            return decide()


class Lock:
    """Mutual exclusion of all processes that share a database.

    For SQLite it is a lock file beside the database file; for PostgreSQL it is an advisory lock in
    the server. A process that dies releases it.
    """

    def __init__(self, storage: RDBStorage, name: str) -> None:
        self._storage, self._name = storage, name
        self._connection: Connection | None = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock in this block.

        Raises
        ------
        StorageError
            If another process holds it for longer than `LOCK_TIMEOUT_S`.
        """
        engine = self._storage.engine
        if engine.dialect.name == "sqlite":
            with self._file_lock(f"{engine.url.database}.lock"):
                yield
            return
        self._connection = retry_transient(self._acquire)
        try:
            yield
        finally:
            with contextlib.suppress(*DATABASE_ERRORS):  # a restart of the server releases it too
                self._connection.close()
            self._connection = None

    def check_held(self) -> None:
        """Check that this process still holds the lock; call it before writing.

        Raises
        ------
        LockLost
            If the server has restarted since.
        """
        if self._connection is None:
            return
        try:
            self._connection.execute(text("SELECT 1"))
        except DATABASE_ERRORS as error:
            raise LockLost(
                "The connection to the database was lost while the lock was held."
            ) from error

    @contextlib.contextmanager
    def _file_lock(self, path: str) -> Iterator[None]:
        try:
            with filelock.FileLock(path, timeout=LOCK_TIMEOUT_S):
                yield
        except filelock.Timeout as error:
            raise StorageError(_held_too_long(path)) from error

    def _acquire(self) -> Connection:
        connection = self._storage.engine.connect()
        try:
            connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S:.0f}s'"))
            key = zlib.crc32(self._name.encode())
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
        except DBAPIError as error:
            connection.close()
            if "lock timeout" in str(error):
                message = _held_too_long(f"The lock of {self._name}")
                raise StorageError(message) from error
            raise
        return connection


def _held_too_long(lock: str) -> str:
    return f"{lock} has been held for {LOCK_TIMEOUT_S:.0f} s: a worker process hangs. Stop it."
