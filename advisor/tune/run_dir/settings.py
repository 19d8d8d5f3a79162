"""Settings of a run, as JSON in ``run.json``: what a process needs to resume or join it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from advisor.tune.run_dir.directory import RunDir
from advisor.types.flags import declared_in
from advisor.types.options import Options, RunOptions
from strategies.core.errors import StorageError, TransferError

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """Settings of a run: what a process needs to resume or join it.

    Attributes
    ----------
    data
        Path of the images.
    prefix
        Prefix of the study names in the database.
    options, run
        The options that the run was started with. `run.storage` is the database as reached from
        this process, perhaps with its password; ``run.json`` never holds the password.
    """

    data: Path
    prefix: str
    options: Options
    run: RunOptions

    def with_storage(self, storage: str | None) -> "Settings":
        """Return the settings with the database as reached from this process; None: unchanged."""
        return replace(self, run=replace(self.run, storage=storage or self.run.storage))


def settings_record(settings: Settings) -> dict[str, Any]:
    """Return the settings as JSON values: paths become absolute, the password is left out."""
    run = replace(settings.run, storage=without_password(settings.run.storage))
    return {
        "data": str(absolute(settings.data)),
        "prefix": settings.prefix,
        "options": _record(settings.options),
        "run": _record(run),
        "versions": versions(),
    }


def read_settings(folder: RunDir) -> Settings:
    """Return the settings of a run.

    Raises
    ------
    StorageError
        If ``run.json`` is incomplete.
    """
    record = folder.settings()
    try:
        return Settings(
            Path(record["data"]),
            record["prefix"],
            _read(Options, record["options"]),
            _read(RunOptions, record["run"]),
        )
    except (LookupError, TypeError) as error:
        raise StorageError(f"{folder.path / 'run.json'} is incomplete: {error}.") from error


def _record(options: Options | RunOptions) -> dict[str, Any]:
    """Return the declared options as JSON values; paths become absolute."""
    values = {option.name: getattr(options, option.name) for option in declared_in(options)}
    return {k: str(absolute(v)) if isinstance(v, Path) else v for k, v in values.items()}


def _read(kind: type[T], record: Mapping[str, Any]) -> T:
    """Return options from their JSON values (the inverse of `_record`)."""
    values = {}
    for option in declared_in(kind):
        value = record[option.name]
        values[option.name] = Path(value) if option.is_path and value is not None else value
    return kind(**values)


def absolute(path: Path) -> Path:
    """Return an existing path as absolute, to be valid in any working directory; else as given."""
    return path.absolute() if path.exists() else path


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
    return url._replace(password=None).render_as_string()  # `URL.set` ignores None


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
