"""How a run was started, as JSON: all that a process needs to go on with it or to join it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from advisor.tune.run_dir.directory import RunDir
from advisor.types.options import Options
from strategies.core.errors import StorageError, TransferError
from strategies.core.progress import OnNote, OnProgress, ignore_note

_PATHS = ("val", "test", "cache_dir", "root", "reference")


@dataclass(frozen=True)
class Settings:
    """How a run was started: all that a process needs to go on with it or to join it.

    Attributes
    ----------
    storage
        SQLAlchemy's name of a database, without its password; None: ``study.db`` in the folder.
    prefix
        What the studies' names begin with there.
    artifacts
        A folder or s3://BUCKET/PREFIX, for machines that do not see the run folder; or None.
    heartbeat_s
        How often a process gives a sign of life.
    control
        Whether the best trial is compared with a control without pretrained weights.
    soup
        Whether the weights of the best training runs are averaged at the end.
    devices
        What ``--devices`` said; None: one process, on the device of the options.
    """

    data: str
    options: Mapping[str, Any]
    time_s: float
    max_trials: int | None
    storage: str | None
    prefix: str
    heartbeat_s: int
    control: bool
    devices: str | None
    artifacts: str | None = None
    soup: bool = True

    def options_of(self, on_progress: OnProgress | None, on_note: OnNote = ignore_note) -> Options:
        """Return the options as they were given."""
        given: dict[str, Any] = {
            k: Path(v) if k in _PATHS and v else v for k, v in self.options.items()
        }
        return Options(**given, on_progress=on_progress, on_note=on_note)


def read_settings(folder: RunDir) -> Settings:
    """Return how a run was started."""
    record = folder.settings()
    try:
        return Settings(**{f.name: record[f.name] for f in fields(Settings) if f.name in record})
    except TypeError as error:
        raise StorageError(f"{folder.path / 'run.json'} is not complete: {error}.") from error


def options_record(options: Options) -> dict[str, Any]:
    """Return the options as JSON values; paths become absolute."""
    values = {f.name: getattr(options, f.name) for f in fields(options) if f.compare}
    return {k: absolute(v) if isinstance(v, Path) else v for k, v in values.items()}


def absolute(path: Path) -> str:
    """Return a path that means the same in another working folder."""
    return str(path.absolute()) if path.exists() else str(path)


def without_password(storage: str | None) -> str | None:
    """Return a database's name without its password, which does not belong into a file."""
    if storage is None:
        return None
    try:
        url = make_url(storage)
    except ArgumentError as error:
        raise TransferError(
            f"--storage {storage!r} names no database. Give postgresql://user@host/database."
        ) from error
    return url.set(password=None).render_as_string()


def artifacts_name(artifacts: str | None, storage: str | None) -> str | None:
    """Return an artifact store's name, which means the same in another working folder.

    Raises
    ------
    TransferError
        If there is no database that other machines reach.
    """
    if artifacts is None:
        return None
    if storage is None:
        raise TransferError(
            "--artifacts is for machines that do not see the run folder, and the trials lie there "
            "too. Give --storage postgresql://user@host/database."
        )
    return artifacts if "://" in artifacts else str(Path(artifacts).absolute())


def versions() -> dict[str, str]:
    """Return the versions that a run was started with."""
    return {name: version(name) for name in ("tl-advisor", "torch", "timm", "optuna")}
