"""Command-line options that tl-advise and tl-auto share, and their parsing.

Heavy modules are imported inside functions, so that ``--help`` and the error for a wrong path
appear at once.
"""

import functools
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import typer
from typer.core import TyperCommand

from advisor.cli.config import config_parameter, parse_assignments
from advisor.cli.console import errors, fail, log_lines
from advisor.types.durations import limit_argument, parse_duration_s
from advisor.types.flags import Declared, Flag, Panel, declared, declared_in
from strategies.core.errors import TransferError

logger = logging.getLogger(__name__)

EPILOG = (
    "Every option can also be set in a TOML file (--config) or by an environment variable: "
    "--max-images is TL_ADVISOR_MAX_IMAGES. The command line comes first, then the environment, "
    "then the file. A switch such as --json is turned off by --no-json."
)
F = TypeVar("F", bound=Callable[..., Any])
MAX_NAME = 24
"""Longest option that has its help on the same line."""


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"tl-advisor {version('tl-advisor')}")
        raise typer.Exit


DATASET = (
    "Dataset: a folder with one subfolder per class, or with train/ [val/] [test/]; a CSV, TSV or "
    "Parquet manifest; a .tar archive; or hfds/NAME."
)
Data = Annotated[Path | None, typer.Argument(help=DATASET)]
Demo = Annotated[bool, Flag("Use scikit-learn's handwritten digits as the dataset.", panel="Data")]
Run = Annotated[Path, typer.Argument(help="Run folder.")]
Json = Annotated[
    bool, Flag("Print JSON to stdout, and nothing else.", name="--json", panel="Output")
]
Quiet = Annotated[bool, Flag("Print only the result, no progress.", alias="-q", panel="Output")]
Verbose = Annotated[
    int,
    Flag(
        "Log to stderr what is read, cached and chosen; -vv: also the validation accuracy of "
        "every round of training.",
        name="--verbose",
        alias="-v",
        is_count=True,
    ),
]
Version = Annotated[
    bool,
    typer.Option(
        "--version", is_eager=True, callback=_show_version, help="Show the version and exit."
    ),
]
_VERBOSE = declared(Verbose, "verbose", 0)


@dataclass(frozen=True)
class Output:
    """What a command prints."""

    json: Json = False
    quiet: Quiet = False


class App(typer.Typer):
    """A program whose commands list their options by panel, and know ``-h``.

    Help and errors are plain text: typer's boxes leave 20 of 80 columns for the help of an option,
    and break paths.
    """

    def __init__(self, **settings: Any) -> None:
        names = {"help_option_names": ["-h", "--help"]}
        super().__init__(rich_markup_mode=None, context_settings=names, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[F], F]:
        """Register a command, see typer."""
        return super().command(name, cls=PanelCommand, epilog=EPILOG, **settings)


class PanelCommand(TyperCommand):
    """A command whose help lists the options by panel."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, a section per panel."""
        rows: dict[str, list[tuple[str, str]]] = {n: [] for n in ("Arguments", *get_args(Panel))}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            panel = getattr(parameter, "rich_help_panel", None) or "Options"
            if row is not None:
                is_argument = parameter.param_type_name == "argument"
                rows["Arguments" if is_argument else panel].append(_shown(parameter, row))
        names = [name for listed in rows.values() for name, _ in listed]
        width = max(len(name) for name in names if len(name) <= MAX_NAME)
        for title, listed in rows.items():
            if listed:
                with formatter.section(title):
                    aligned = [(name.ljust(width), about) for name, about in listed]
                    formatter.write_dl(aligned, col_max=width)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments; an error in an environment variable names it."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            parameter: Any = error.param
            if parameter is not None and _source(ctx, parameter.name) == "ENVIRONMENT":
                origin = f"It comes from the environment variable {parameter.envvar}."
                error.message = f"{error.message.rstrip('.')}. {origin}"
            raise


def _shown(parameter: Any, row: tuple[str, str]) -> tuple[str, str]:
    """Return a row of the help without the --no- form of a switch that is off anyway."""
    is_off = getattr(parameter, "is_bool_flag", False) and not parameter.default
    return (row[0].split(" / ")[0], row[1]) if is_off else row


def _source(ctx: typer.Context, name: str) -> str:
    """Return where the value of an option comes from, as click calls it."""
    source = ctx.get_parameter_source(name)
    return "DEFAULT" if source is None else source.name


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags that its parameters declare, as typer reads them.

    A parameter with a `Flag` becomes one option. A parameter that is a dataclass of fields with
    flags becomes one option per field, and the command gets the dataclass. Other parameters stay
    as they are. Every command also has ``--config`` and ``--verbose``. The attribute
    ``declared_options`` of the result holds all options that can be set.
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
    assert _VERBOSE is not None
    settable = [*options, _VERBOSE]
    parameters += [config_parameter(settable), _typer_option(_VERBOSE)]
    parameters.append(
        inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    )

    @functools.wraps(command)
    def flattened(*, context: typer.Context, config: Path | None, **given: Any) -> None:
        with log_lines(given.pop("verbose")):
            if config is not None:
                logger.info("config file: %s", config)
            with errors():
                given |= {o.name: _value(o, given[o.name], context) for o in options}
                for name, kind in groups.items():
                    own = {option.name: given.pop(option.name) for option in declared_in(kind)}
                    given[name] = kind(**own)
            command(**given)

    flattened.__annotations__ = {p.name: p.annotation for p in parameters}
    vars(flattened)["__signature__"] = inspect.Signature(parameters)
    vars(flattened)["declared_options"] = tuple(settable)
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
    metavar = None
    if flag.is_duration:
        kind, default, metavar = str | None, default and limit_argument(default), "<time>"
    elif option.is_mapping:
        kind, metavar = list[str] | None, "<name=value>"
    elif option.value_kind in (int, float):
        metavar = f"<{option.value_kind.__name__}>"
    name = option.flag_name
    names = [f"{name}/--no-{option.key}" if option.value_kind is bool else name]
    about = typer.Option(
        *names,
        *([flag.alias] if flag.alias else []),
        help=flag.help,
        min=flag.min,
        max=flag.max,
        count=flag.is_count,
        metavar=metavar,
        envvar=option.environment_variable,
        show_envvar=False,
        show_default=default is not False and not flag.is_count,
        rich_help_panel=flag.panel,
    )
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, about],
    )


def _value(option: Declared, given: Any, ctx: typer.Context) -> Any:
    """Return the value of an option from what typer read."""
    source = _source(ctx, option.name)
    if source in ("ENVIRONMENT", "DEFAULT_MAP"):
        place = option.environment_variable if source == "ENVIRONMENT" else "the config file"
        logger.info("%s is %s: from %s", option.flag_name, given, place)
    try:
        if option.flag.is_duration and given is not None:
            return parse_duration_s(option.flag_name, given)
        if option.is_mapping and given is not None:
            return parse_assignments(option.flag_name, given)
    except TransferError as error:
        if source != "ENVIRONMENT":
            raise
        raise TransferError(
            f"{error} It comes from the environment variable {option.environment_variable}."
        ) from error
    return None if option.flag.zero_is_none and given == 0 else given


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


def check_run(run: Path) -> None:
    """Refuse what is no folder before heavy imports."""
    if not run.is_dir():
        fail(f"{run} is not a folder. Give the folder that tl-auto run wrote (--out).")
