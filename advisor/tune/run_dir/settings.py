"""Settings of a run, as JSON in ``run.json``: what a process needs to resume or join it."""

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
    """Settings of a run: what a process needs to resume or join it.

    Attributes
    ----------
    data
        Path of the images.
    options
        The options as JSON values.
    time_s, max_trials
        Time limit in seconds, and limit of the number of trials or None.
    storage
        SQLAlchemy URL of a database, without its password; None: ``study.db`` in the run
        directory.
    prefix
        Prefix of the study names in the database.
    heartbeat_s
        Seconds between the heartbeats of a process.
    control
        Whether the best trial is compared with a control without pretrained weights.
    devices
        The value of ``--devices``; None: one process, on the device of the options.
    artifacts
        A folder or s3://BUCKET/PREFIX, for machines that cannot access the run directory; or None.
    soup
        Whether the weights of the best training runs are averaged at the end.
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
        """Return the options that the run was started with."""
        given: dict[str, Any] = {
            k: Path(v) if k in _PATHS and v else v for k, v in self.options.items()
        }
        return Options(**given, on_progress=on_progress, on_note=on_note)


def read_settings(folder: RunDir) -> Settings:
    """Return the settings of a run."""
    record = folder.settings()
    try:
        return Settings(**{f.name: record[f.name] for f in fields(Settings) if f.name in record})
    except TypeError as error:
        raise StorageError(f"{folder.path / 'run.json'} is incomplete: {error}.") from error


def options_record(options: Options) -> dict[str, Any]:
    """Return the options as JSON values; paths become absolute."""
    values = {f.name: getattr(options, f.name) for f in fields(options) if f.compare}
    return {k: absolute(v) if isinstance(v, Path) else v for k, v in values.items()}


def absolute(path: Path) -> str:
    """Return an existing path as absolute, to be valid in any working directory; else as given."""
    return str(path.absolute()) if path.exists() else str(path)


def without_password(storage: str | None) -> str | None:
    """Return a database URL without its password, which must not be written to a file."""
    if storage is None:
        return None
    try:
        url = make_url(storage)
    except ArgumentError as error:
        raise TransferError(
            f"--storage {storage!r} is not a database URL. Give postgresql://user@host/database."
        ) from error
    return url.set(password=None).render_as_string()


def artifacts_name(artifacts: str | None, storage: str | None) -> str | None:
    """Return the name of an artifact store, valid in any working directory.

    Raises
    ------
    TransferError
        If there is no database that other machines can reach.
    """
    if artifacts is None:
        return None
    if storage is None:
        raise TransferError(
            "--artifacts is for machines that cannot access the run directory, which also holds "
            "the database of the trials. Give --storage postgresql://user@host/database as well."
        )
    return artifacts if "://" in artifacts else str(Path(artifacts).absolute())


def versions() -> dict[str, str]:
    """Return the versions of this program and its main dependencies."""
    return {name: version(name) for name in ("tl-advisor", "torch", "timm", "optuna")}
