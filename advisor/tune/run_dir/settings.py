"""Settings of a run: ``run.json`` to resume it, and ``settings.toml`` to repeat it."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from advisor.report.to_json import versions
from advisor.tune.run_dir.directory import SETTINGS_FILE, RunDir
from advisor.types.flags import declared_in, file_values
from advisor.types.options import Options, RunOptions
from strategies.core.atomic_files import write_text
from strategies.core.errors import StorageError
from strategies.models.backbone import Backbone

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
        "versions": {**versions(), "optuna": version("optuna")},
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


def write_settings_file(folder: RunDir, settings: Settings, backbone: Backbone) -> None:
    """Write ``settings.toml``: every option that decides the trials, for ``--config``.

    Backbone and input size are those that were chosen.
    """
    options = replace(settings.options, backbone=backbone.name, input_px=backbone.input_px)
    values = file_values(_with_absolute_paths(options))
    values |= file_values(_with_absolute_paths(settings.run))
    path = folder.path / SETTINGS_FILE
    data, file = (shlex.quote(str(absolute(p))) for p in (settings.data, path))
    with folder.storage_errors(path):
        write_text(
            path,
            "# Settings of this run. The same trials in a new run folder:\n"
            f"# tl-auto run {data} --config {file}\n\n{tomli_w.dumps(values)}",
        )


def _with_absolute_paths(options: T) -> T:
    """Return options whose paths are valid in any working directory."""
    paths = {o.name: getattr(options, o.name) for o in declared_in(options) if o.is_path}
    given = {name: absolute(path) for name, path in paths.items() if path is not None}
    return replace(options, **given)  # type: ignore[type-var]


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
