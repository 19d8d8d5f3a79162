"""Config files: TOML whose keys are the flags of a command, and ``NAME=VALUE`` of ``--set``.

An eager option reads the file into ``ctx.default_map``. So the precedence is that of click:
command line, environment variable, file, default.
"""

import inspect
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

import typer

from advisor.cli.console import errors
from advisor.types.durations import parse_duration_s
from advisor.types.flags import ENVIRONMENT_PREFIX, Declared, declared_in
from advisor.types.options import Options, RunOptions
from strategies.core.errors import TransferError, unknown_name

logger = logging.getLogger(__name__)

_OTHER_COMMANDS = ((Options, "tl-advise and tl-auto run"), (RunOptions, "tl-auto run"))
_KINDS: Mapping[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "text in quotes"),
    Path: ((str,), "a path in quotes"),
}
"""Types of the values in a file for every type of option, and what a message calls them."""
_LITERALS = {"true": True, "false": False, "none": None, "null": None}


def config_parameter(options: Sequence[Declared]) -> inspect.Parameter:
    """Return the option ``--config`` of a command that has these options."""

    def read(ctx: typer.Context, file: Path | None) -> Path | None:
        if file is not None and not ctx.resilient_parsing:
            with errors():
                ctx.default_map = read_config(file, options, ctx.command_path)
        return file

    about = typer.Option(
        "--config",
        help="Read options from this TOML file. The command line and the environment override it.",
        is_eager=True,
        callback=read,
        envvar=f"{ENVIRONMENT_PREFIX}CONFIG",
        show_envvar=False,
        metavar="<file>",
    )
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(
        "config", kind, default=None, annotation=Annotated[Path | None, about]
    )


def read_config(file: Path, options: Sequence[Declared], command: str) -> dict[str, Any]:
    """Return the values of a config file by the names of the options, as click takes them.

    Parameters
    ----------
    options
        The options of the command.
    command
        The command as the user types it, for messages.

    Raises
    ------
    TransferError
        If the file cannot be read, or has a key or a value that the command does not take.
    """
    by_key = {option.key: option for option in options}
    found: dict[str, Any] = {}
    for key, value in _parsed(file).items():
        option = by_key.get(key.replace("_", "-"))
        if option is None:
            raise TransferError(f"{file}: {_unknown(key, by_key, command)}")
        if option.name in found:
            raise TransferError(f"{file}: {option.key} is given twice. Give it once.")
        try:
            found[option.name] = _value(option, key, value)
        except TransferError as error:
            raise TransferError(f"{file}: {error}") from error
    return found


def parse_assignments(flag: str, given: Iterable[str]) -> dict[str, Any]:
    """Parse ``["lr=3e-4", "hflip=true"]`` into values by name.

    Numbers, true, false and none become what they say, and everything else is text.

    Raises
    ------
    TransferError
        If there is no ``=``, or a name is given twice.
    """
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise TransferError(f"{flag} {text!r} must be NAME=VALUE, for example lr=3e-4.")
        if name in found:
            raise TransferError(f"{flag} {name} is given twice. Give it once.")
        found[name] = _literal(value)
    return found


def _literal(text: str) -> Any:
    if text.lower() in _LITERALS:
        return _LITERALS[text.lower()]
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float | str) else text


def _parsed(file: Path) -> dict[str, Any]:
    import tomllib

    if (file / "settings.toml").is_file():
        raise TransferError(f"{file} is a folder. Give the file {file / 'settings.toml'}.")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise TransferError(f"--config {file} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise TransferError(f"--config {file} is not a TOML file: {error}.") from error


def _unknown(key: str, known: Iterable[str], command: str) -> str:
    """Return the message for a key that a command does not take."""
    for kind, commands in _OTHER_COMMANDS:
        if key.replace("_", "-") in [option.key for option in declared_in(kind)]:
            return f"{key} is an option of {commands}, and {command} would ignore it. Remove it."
    return f"{unknown_name(f'option of {command}', key, known)} See {command} --help."


def _value(option: Declared, key: str, value: Any) -> Any:
    """Return the value of a key as click takes it, after a check of its type and bounds."""
    if option.is_mapping:
        return _assignments(key, value)
    if option.flag.is_duration:
        _check(key, value, (int, float, str), "a duration, for example '10m'")
        parse_duration_s(key, str(value))
        return str(value)
    _check(key, value, *_kind(option.value_kind))
    option.check(value)
    return value


def _kind(kind: Any) -> tuple[tuple[type, ...], str]:
    return _KINDS[str if get_origin(kind) is Literal else kind]


def _check(key: str, value: Any, types: tuple[type, ...], words: str) -> None:
    """Raise TransferError unless a value has one of these types; true is no number."""
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise TransferError(f"{key} must be {words}, got {value!r}.")


def _assignments(key: str, table: Any) -> list[str]:
    """Return a table as ``NAME=VALUE``, which is how the command line gives it."""
    _check(key, table, (dict,), f"a table, for example {key}.lr = 3e-4")
    for name, value in table.items():
        types = (bool, int, float, str)
        _check(f"{key}.{name}", value, types, "a number, true, false or text in quotes")
    return [f"{name}={json.dumps(value)}" for name, value in table.items()]
