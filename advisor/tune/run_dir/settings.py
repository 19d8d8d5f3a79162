"""Settings of a run, as JSON in ``run.json``: what is needed to resume it."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from advisor.tune.run_dir.directory import RunDir
from advisor.types.flags import declared_in
from advisor.types.options import Options, RunOptions
from strategies.core.errors import StorageError

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """Settings of a run: what is needed to resume it.

    Attributes
    ----------
    data
        Path of the images.
    options, run
        The options that the run was started with.
    """

    data: Path
    options: Options
    run: RunOptions


def settings_record(settings: Settings) -> dict[str, Any]:
    """Return the settings as JSON values; paths become absolute."""
    return {
        "data": str(absolute(settings.data)),
        "options": _record(settings.options),
        "run": _record(settings.run),
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
    """Return options from their JSON values (the inverse of `_record`).

    An option that the release which wrote them did not have gets its default.
    """
    values = {}
    for option in declared_in(kind):
        value = record.get(option.name, option.default)
        values[option.name] = Path(value) if option.is_path and value is not None else value
    return kind(**values)


def absolute(path: Path) -> Path:
    """Return an existing path as absolute, to be valid in any working directory; else as given."""
    return path.absolute() if path.exists() else path


def versions() -> dict[str, str]:
    """Return the versions of this program and its main dependencies."""
    return {name: version(name) for name in ("tl-advisor", "torch", "timm", "optuna")}
