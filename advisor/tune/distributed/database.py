"""Optuna's database: opened for many processes, asked with patience, sampled by seed."""

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
"""Trials of a strategy before TPE models them; until then draws are uniform."""
RETRY_FOR_S = 120.0
"""A database that does not answer is asked again for this long."""
CLAIM_TIMEOUT_S = 600.0
"""Claims take milliseconds, or as long as a classifier takes to an artifact store; who waits
longer than this waits for a machine that hangs."""
# What a database says that waiting does not mend.
_LASTING = (
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
    """TPE whose draws depend on the seed, the trial's number and its history alone.

    A killed process takes its random state with it; this way a resumed search draws what the
    uninterrupted one would have drawn.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Leave every parameter to `sample_independent`."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw nothing."""
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw one parameter."""
        number = trial.user_attrs.get("number", trial.number)
        seed = zlib.crc32(f"{self.seed}/{number}/{param_name}".encode())
        sampler = TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
        return sampler.sample_independent(study, trial, param_name, param_distribution)


def retry_transient(ask: Callable[[], T]) -> T:
    """Ask a database; once more, and again, while its server restarts or is busy.

    Raises
    ------
    StorageError
        If it does not answer for `RETRY_FOR_S`, or says something that waiting does not mend.
    """
    begun, wait_s = time.monotonic(), 0.1
    while True:
        try:
            return ask()
        except DATABASE_ERRORS as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            if _is_lasting(reason) or time.monotonic() - begun > RETRY_FOR_S:
                raise StorageError(
                    f"The trials' database cannot be used: {reason}. Nothing that was finished "
                    "is lost; go on with tl-auto resume."
                ) from error
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, 5.0)


def _is_lasting(reason: str) -> bool:
    """Whether a database's complaint stays true however long one waits."""
    return any(said in reason for said in _LASTING)


def open_storage(url: str, heartbeat_s: int) -> RDBStorage:
    """Open Optuna's storage; who gives no sign of life for six heartbeats is held for dead.

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
            raise ValueError(f"{name.render_as_string()} is no database that processes can share")
        if kind == "sqlite":
            arguments: dict[str, Any] = {"connect_args": {"timeout": 60}}
        else:
            arguments = {"pool_pre_ping": True}
        if name.drivername == "postgresql":
            name = name.set(drivername="postgresql+psycopg")
        with experimental():
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
def experimental() -> Iterator[None]:
    """Use what Optuna calls experimental (heartbeats, Wilcoxon) without its remark on that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


class LockLost(StorageError):
    """The database went away meanwhile, and with it the right to be the only one."""


def retry_if_lock_lost(decide: Callable[[], T]) -> T:
    """Decide something under a lock; again from its start, where the lock was lost."""
    while True:
        with contextlib.suppress(LockLost):
            return decide()


class Lock:
    """Lets one process at a time decide something, for all that share a database.

    It lives where the trials do: beside an SQLite file, which takes its own locks there too, or in
    the PostgreSQL server. What dies lets go of it.
    """

    def __init__(self, storage: RDBStorage, name: str) -> None:
        self._storage, self._name = storage, name
        self._connection: Connection | None = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Be the only one in this block.

        Raises
        ------
        StorageError
            If another process does not let go of it.
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
            with contextlib.suppress(*DATABASE_ERRORS):  # a server that restarts lets go as well
                self._connection.close()
            self._connection = None

    def check(self) -> None:
        """Make sure that this process is still the only one: to be asked before it writes.

        Raises
        ------
        LockLost
            If the server restarted meanwhile.
        """
        if self._connection is None:
            return
        try:
            self._connection.execute(text("SELECT 1"))
        except DATABASE_ERRORS as error:
            raise LockLost("The trials' database went away in the midst of a claim.") from error

    @contextlib.contextmanager
    def _file_lock(self, path: str) -> Iterator[None]:
        try:
            with filelock.FileLock(path, timeout=CLAIM_TIMEOUT_S):
                yield
        except filelock.Timeout as error:
            raise StorageError(_held_too_long(path)) from error

    def _acquire(self) -> Connection:
        connection = self._storage.engine.connect()
        try:
            connection.execute(text(f"SET LOCAL lock_timeout = '{CLAIM_TIMEOUT_S:.0f}s'"))
            key = zlib.crc32(self._name.encode())
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
        except DBAPIError as error:
            connection.close()
            if "lock timeout" in str(error):
                said = _held_too_long(f"The lock of {self._name}")
                raise StorageError(said) from error
            raise
        return connection


def _held_too_long(lock: str) -> str:
    return f"{lock} has been held for {CLAIM_TIMEOUT_S:.0f} s. A worker hangs; end it."
