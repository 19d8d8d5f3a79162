"""Declared options: fields of a frozen dataclass, annotated with their command-line flags.

A field such as ``input_px: Annotated[int | None, Flag("Input resolution.", min=16)] = None``
declares an option once. The options of the commands, the check of bounds, the printed command and
the settings of a run are made from it. This module imports no command-line library.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from advisor.types.durations import limit_argument
from strategies.core.errors import TransferError, unknown_name

ENVIRONMENT_PREFIX = "TL_ADVISOR_"
Panel = Literal["Data", "Backbone", "Decision", "Budget", "Machine", "Output", "Options"]
"""Section of ``--help`` that lists an option, in the order of the sections."""


@dataclass(frozen=True)
class Flag:
    """How the command line takes an option.

    Attributes
    ----------
    help
        Text for ``--help``.
    name
        The flag; None: made from the field's name (``input_px``: ``--input-px``).
    panel
        Section of ``--help`` that lists it.
    alias
        A second flag, such as ``-v``.
    min, max
        Bounds of a number, both inclusive; None: unbounded.
    zero_is_none
        Whether the command line gives 0 for None.
    is_duration
        Whether the command line gives the seconds as text: 90s, 10m or 2h.
    is_local
        Whether the option is about this machine: its devices, threads or folders. The printed
        command leaves such options out.
    is_neutral
        Whether no result depends on it. The settings of a run leave such options out.
    is_count
        Whether the number is how often the flag is given: ``-vv`` is 2.
    """

    help: str
    name: str | None = None
    panel: Panel = "Options"
    alias: str | None = None
    min: float | None = None
    max: float | None = None
    zero_is_none: bool = False
    is_duration: bool = False
    is_local: bool = False
    is_neutral: bool = False
    is_count: bool = False


@dataclass(frozen=True)
class Declared:
    """A declared option: name, type and default of its field, and its flag."""

    name: str
    kind: Any
    default: Any
    flag: Flag

    @property
    def flag_name(self) -> str:
        """The flag as the user types it."""
        return self.flag.name or "--" + self.name.replace("_", "-")

    @property
    def key(self) -> str:
        """Its key in a config file: the flag without dashes at the start."""
        return self.flag_name.removeprefix("--")

    @property
    def environment_variable(self) -> str:
        """The environment variable that sets it."""
        return ENVIRONMENT_PREFIX + self.key.upper().replace("-", "_")

    @property
    def value_kind(self) -> Any:
        """The type of its values other than None."""
        is_optional = NoneType in get_args(self.kind)
        return get_args(self.kind)[0] if is_optional else self.kind

    @property
    def is_path(self) -> bool:
        """Whether its values are paths."""
        return self.value_kind is Path

    @property
    def is_mapping(self) -> bool:
        """Whether the flag may be given several times, each time with NAME=VALUE."""
        return get_origin(self.value_kind) is Mapping

    def check(self, value: Any) -> None:
        """Check that a value is one of the choices, and within the bounds.

        Raises
        ------
        TransferError
            If it is not; the message names the flag.
        """
        choices = get_args(self.kind) if get_origin(self.kind) is Literal else ()
        if choices and value not in choices:
            raise TransferError(unknown_name(self.flag_name, str(value), choices))
        low, high = self.flag.min, self.flag.max
        if value is None or ((low is None or low <= value) and (high is None or value <= high)):
            return
        must = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
        raise TransferError(f"{self.flag_name} must be {' and '.join(must)}, got {value}.")


def declared(kind: Any, name: str, default: Any) -> Declared | None:
    """Return the option that a field or parameter declares; None if it has no flag."""
    for flag in getattr(kind, "__metadata__", ()):
        if isinstance(flag, Flag):
            return Declared(name, get_args(kind)[0], default, flag)
    return None


def declared_in(options: Any) -> tuple[Declared, ...]:
    """Return the options that a dataclass, or an instance of it, declares."""
    found = (declared(f.type, f.name, f.default) for f in fields(options))
    return tuple(option for option in found if option is not None)


def file_values(options: Any) -> dict[str, Any]:
    """Return the values of an instance as a config file has them, by key.

    Options that are None are left out: None is what a file without them means. So are those that
    no result depends on.
    """
    found = {}
    for option in declared_in(options):
        value = getattr(options, option.name)
        if value is None and option.flag.zero_is_none:
            value = 0
        if value is None or option.flag.is_neutral:
            continue
        if option.flag.is_duration:
            value = limit_argument(value)
        found[option.key] = str(value) if option.is_path else value
    return found


def check_values(options: Any) -> None:
    """Check the values of all declared options.

    Raises
    ------
    TransferError
        If a value is out of bounds or not one of the choices; the message names the flag.
    """
    for option in declared_in(options):
        option.check(getattr(options, option.name))


def arguments(options: Any, always: Sequence[str] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words, flag and value, of the options that differ from their defaults.

    Parameters
    ----------
    always
        Names of the fields to yield even with their defaults.
    """
    for option in declared_in(options):
        value = getattr(options, option.name)
        differs = value != option.default and not option.flag.is_local
        if (differs or option.name in always) and isinstance(value, bool):
            yield (option.flag_name if value else "--no-" + option.flag_name.removeprefix("--"),)
        elif differs or option.name in always:
            yield option.flag_name, str(0 if value is None else value)
