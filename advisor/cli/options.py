"""Command-line options that tl-advise and tl-auto share, and their parsing.

Heavy modules are imported inside functions, so that ``--help`` and the error for a wrong path
appear at once.
"""

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from advisor.cli.console import errors, fail
from advisor.types.flags import Declared, Flag, declared, declared_in

Data = Annotated[
    Path | None,
    typer.Argument(
        help="Dataset: a folder with one subfolder per class, or with train/ [val/] [test/]; a "
        "CSV, TSV or Parquet manifest; a .tar archive; or hfds/NAME."
    ),
]
Demo = Annotated[
    bool, Flag("Use scikit-learn's handwritten digits as the dataset.", name="--demo")
]
Run = Annotated[Path, typer.Argument(help="Run folder.")]
Json = Annotated[bool, Flag("Print JSON to stdout, and nothing else.", name="--json")]
Quiet = Annotated[bool, Flag("Print only the result, no progress.", name="--quiet")]


@dataclass(frozen=True)
class Output:
    """What a command prints."""

    json: Json = False
    quiet: Quiet = False


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags that its parameters declare, as typer reads them.

    A parameter with a `Flag` becomes one option. A parameter that is a dataclass of fields with
    flags becomes one option per field, and the command gets the dataclass. Other parameters stay
    as they are.
    """
    kinds = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in kinds.items() if is_dataclass(kind)}
    options: list[Declared] = []
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        found = _options(kinds[name], parameter)
        options += found
        parameters += map(_typer_option, found)
        if not found:
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def flattened(**given: Any) -> None:
        given |= {option.name: _value(option, given[option.name]) for option in options}
        for name, kind in groups.items():
            own = {option.name: given.pop(option.name) for option in declared_in(kind)}
            given[name] = kind(**own)
        command(**given)

    flattened.__annotations__ = {p.name: p.annotation for p in parameters}
    vars(flattened)["__signature__"] = inspect.Signature(parameters)
    return flattened


def _options(kind: Any, parameter: inspect.Parameter) -> tuple[Declared, ...]:
    """Return the options that a parameter declares: one, those of a dataclass, or none."""
    if is_dataclass(kind):
        return declared_in(kind)
    option = declared(kind, parameter.name, parameter.default)
    return () if option is None else (option,)


def _typer_option(option: Declared) -> inspect.Parameter:
    """Return an option as the parameter of a typer command."""
    flag, kind, default = option.flag, option.kind, option.default
    if flag.is_duration:
        kind, default = str | None, default and _duration(default)
    names = [flag.name] if flag.name else []
    about = typer.Option(*names, help=flag.help, min=flag.min, max=flag.max)
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, about],
    )


def _value(option: Declared, given: Any) -> Any:
    """Return the value of an option from what typer read."""
    if option.flag.is_duration and given is not None:
        return parse_duration_s(option.flag_name, given)
    return None if option.flag.zero_is_none and given == 0 else given


def _duration(seconds: float) -> str:
    """Return seconds as text that `parse_duration_s` reads."""
    return f"{seconds / 60:g}m" if seconds % 60 == 0 else f"{seconds:g}s"


def parse_duration_s(flag: str, text: str) -> float:
    """Parse ``"90s"``, ``"10m"``, ``"1.5h"`` or plain seconds into seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)?", text.strip())
    if not found or float(found[1]) <= 0:
        fail(f"{flag} {text!r} is not a duration. Give for example 90s, 10m or 2h.")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, None: 1}[found[2]]


def data_folder(data: Path | None, demo: bool, cache_dir: Path | None) -> Path:
    """Return the path of the dataset; reject a wrong one before heavy imports."""
    if demo:
        if data is not None:
            fail(f"{data} and --demo cannot be used together. Each names a dataset; give one.")
        with errors():
            from advisor.cli.demo import write_digits
            from strategies.core.cache import default_cache_dir

            return write_digits(cache_dir or default_cache_dir())
    if data is None:
        fail("No dataset was given. Give a folder with one subfolder per class, or --demo.")
    if not data.exists() and data.parts[:1] != ("hfds",):
        fail(
            f"{data} does not exist. Give a folder with one subfolder per class, a CSV manifest "
            "(path,label[,split]), a .tar archive, or hfds/NAME."
        )
    if data.is_file() and data.suffix.lower() not in (".csv", ".tsv", ".parquet", ".tar"):
        fail(
            f"{data} is a file of an unknown type. Give a folder with one subfolder per class, a "
            "CSV, TSV or Parquet manifest (path,label[,split]), or an uncompressed .tar archive."
        )
    return data
