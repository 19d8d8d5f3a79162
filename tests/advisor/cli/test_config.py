"""Config files, environment variables and the command line: what they take, and who wins."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import tomli_w
import typer
from typer.testing import CliRunner

from advisor.cli.app import advise_app, auto_app
from advisor.cli.config import parse_assignments, read_config
from advisor.cli.options import EPILOG, PanelCommand, with_flags
from advisor.types.flags import Declared, Panel, declared_in, file_values
from advisor.types.options import DEFAULTS, RUN_DEFAULTS, Options, RunOptions
from strategies.core.errors import TransferError

runner = CliRunner()
UNSETTABLE = {"help", "version", "config", "install_completion", "show_completion"}


def leaves(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command below a program or group, with the words that call it."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, below in command.commands.items():
        yield from leaves(below, (*path, name))


COMMANDS = dict(
    (
        *leaves(typer.main.get_command(advise_app), ("tl-advise",)),
        *leaves(typer.main.get_command(auto_app), ("tl-auto",)),
    )
)
OPTIONS = [
    (path, option)
    for path, command in COMMANDS.items()
    for option in vars(command.callback).get("declared_options", ())
]
each_option = pytest.mark.parametrize(
    ("path", "option"), OPTIONS, ids=[f"{' '.join(path)} {o.flag_name}" for path, o in OPTIONS]
)


def three_values(option: Declared) -> tuple[Any, Any, Any]:
    """Return three values of an option, as a file has them: neighbours differ."""
    kind = option.value_kind
    if kind is bool:
        return (not option.default, option.default, not option.default)
    if option.flag.is_duration:
        return ("11s", "12m", "13h")
    if option.is_mapping:
        return ({"a": 1}, {"b": 2.5, "c": True}, {"d": "text"})
    if get_origin(kind) is Literal:
        choices = [c for c in get_args(kind) if c != option.default]
        return (choices[0], [*choices, option.default][1], choices[0])
    if kind is int:
        low = max(1, int(option.flag.min or 0))
        return (low + 1, low + 2, low + 3)
    if kind is float:
        return (0.25, 0.5, 0.75)
    if get_origin(kind) is list:
        return (["a"], ["b"], ["c"])
    return ("first", "second", "third")


def words(option: Declared, value: Any) -> list[str]:
    """Return a value as the command line takes it."""
    if option.value_kind is bool:
        return [option.flag_name if value else f"--no-{option.key}"]
    if option.flag.is_count:
        return [option.flag_name] * value
    if option.is_mapping:
        value = [f"{name}={json.dumps(v)}" for name, v in value.items()]
    values = value if isinstance(value, list) else [value]
    return [word for each in values for word in (option.flag_name, str(each))]


def in_environment(option: Declared, value: Any) -> str:
    """Return a value as an environment variable has it."""
    if option.is_mapping:
        return " ".join(f"{name}={json.dumps(v)}" for name, v in value.items())
    return " ".join(value) if isinstance(value, list) else str(value)


def parsed(path: tuple[str, ...], option: Declared, *given: str) -> Any:
    """Return the value of an option after a command line was parsed; nothing is run."""
    command = COMMANDS[path]
    required = ["x" for p in command.params if p.param_type_name == "argument" and p.required]
    value = command.make_context(path[-1], [*required, *given]).params[option.name]
    return parse_assignments("--set", value) if option.is_mapping and value else value


def as_read(option: Declared, value: Any) -> Any:
    return Path(value) if option.is_path else value


@each_option
def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    path: tuple[str, ...], option: Declared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_file, in_env, on_line = three_values(option)
    file = tmp_path / "options.toml"
    file.write_text(tomli_w.dumps({option.key: in_file}), encoding="utf-8")
    config = ("--config", str(file))

    assert parsed(path, option) not in (in_file, as_read(option, in_file))
    assert parsed(path, option, *config) == as_read(option, in_file)
    monkeypatch.setenv(option.environment_variable, in_environment(option, in_env))
    assert parsed(path, option) == as_read(option, in_env)
    assert parsed(path, option, *config) == as_read(option, in_env)
    line = words(option, on_line)
    assert parsed(path, option, *config, *line) == as_read(option, on_line)


@each_option
def test_a_key_may_have_underscores(
    path: tuple[str, ...], option: Declared, tmp_path: Path
) -> None:
    value = three_values(option)[0]
    file = tmp_path / "options.toml"
    file.write_text(tomli_w.dumps({option.key.replace("-", "_"): value}), encoding="utf-8")
    assert parsed(path, option, "--config", str(file)) == as_read(option, value)


@each_option
def test_a_value_of_a_wrong_type_is_refused_with_file_and_key(
    path: tuple[str, ...], option: Declared, tmp_path: Path
) -> None:
    wrong: Any = 3 if option.is_mapping or option.value_kind in (bool, str, Path) else [True]
    wrong = 3 if get_origin(option.value_kind) in (Literal, list) else wrong
    file = tmp_path / "options.toml"
    file.write_text(tomli_w.dumps({option.key: wrong}), encoding="utf-8")
    with pytest.raises(TransferError, match=f"options.toml: {option.key} must be"):
        read_config(file, [option], "tl-advise")


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_of_a_command_is_declared(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    assert isinstance(command, PanelCommand), "make the program with App"
    declared = {o.name: o for o in vars(command.callback)["declared_options"]}
    options = {p.name: p for p in command.params if p.param_type_name == "option"}
    assert options.keys() - UNSETTABLE == declared.keys()
    assert "config" in options
    for name, option in declared.items():
        assert options[name].envvar == option.environment_variable
        assert options[name].rich_help_panel in get_args(Panel)


def test_options_with_the_same_flag_take_the_same_values_in_every_command() -> None:
    kinds: dict[str, Any] = {}
    for path, option in OPTIONS:
        kind = "duration" if option.flag.is_duration else option.value_kind
        assert kinds.setdefault(option.environment_variable, kind) == kind, path


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_options_by_panel_in_80_columns(path: tuple[str, ...], flag: str) -> None:
    program = advise_app if path[0] == "tl-advise" else auto_app
    found = runner.invoke(program, [*path[1:], flag])
    assert found.exit_code == 0
    lines = found.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    titles = [line[:-1] for line in lines if line.endswith(":") and not line.startswith(" ")]
    panels = [title for title in titles if title != "Arguments"]
    assert panels == [name for name in get_args(Panel) if name in panels]
    assert "--json / --no-json" not in found.stdout
    assert " ".join(EPILOG.split()) in " ".join(found.stdout.split())


@pytest.mark.parametrize("program", [advise_app, auto_app])
def test_version_is_that_of_the_package(program: typer.Typer) -> None:
    found = runner.invoke(program, ["--version"])
    assert found.exit_code == 0
    assert found.stdout.startswith("tl-advisor ")


@pytest.mark.parametrize("arguments", [["-h"], ["--version"]])
@pytest.mark.parametrize("program", ["tl_advise", "tl_auto"])
def test_help_and_version_import_no_heavy_library(program: str, arguments: list[str]) -> None:
    code = (
        "import os, sys; from advisor.cli import app\n"
        "def end(code):\n"
        "    heavy = ('torch', 'timm', 'optuna', 'sklearn', 'scipy', 'numpy', 'rich')\n"
        "    print([m for m in heavy if m in sys.modules], file=sys.stderr)\n"
        f"os._exit = end; sys.argv[1:] = {arguments}; app.{program}()"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stderr.strip() == "[]"
    assert found.stdout


SEED = [o for o in declared_in(Options) if o.key in ("seed", "prefer", "max-images")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeed = 3", "Unknown option of tl-advise 'seeed'. Did you mean 'seed'?"),
        ("trials = 3", "trials is an option of tl-auto run, and tl-advise would ignore it."),
        ('config = "other.toml"', "Unknown option of tl-advise 'config'."),
        ("[run]\nseed = 3", "Unknown option of tl-advise 'run'."),
        ("max_images = 1\nmax-images = 2", "max-images is given twice. Give it once."),
        ('seed = "3"', "seed must be a whole number, got '3'."),
        ("seed = true", "seed must be a whole number, got True."),
        ("seed = -1", "--seed must be at least 0, got -1."),
        ('prefer = "cheep"', "Unknown --prefer 'cheep'. Did you mean 'cheap'?"),
        ("seed = ;", "is not a TOML file: Invalid value (at line 1, column 8)"),
        ("seed = 3\nseed = 4", "is not a TOML file: "),
    ],
)
def test_a_wrong_file_is_refused_with_its_name(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(TransferError) as found:
        read_config(file, SEED, "tl-advise")
    assert message in str(found.value)
    assert str(file) in str(found.value)


def test_a_key_of_another_command_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text("input_px = 96", encoding="utf-8")
    found = runner.invoke(auto_app, ["cache", "info", "--config", str(file)], prog_name="tl-auto")
    assert found.exit_code == 2
    assert found.stderr == (
        f"Error: {file}: input_px is an option of tl-advise and tl-auto run, and tl-auto cache "
        "info would ignore it. Remove it.\n"
    )


def test_a_missing_file_a_folder_and_a_run_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("seed = 1", encoding="utf-8")
    (tmp_path / "latin.toml").write_bytes(b"strategy = '\xe4'")
    for name, message in (
        ("missing.toml", "cannot be read: No such file or directory."),
        (".", "is a folder. Give the file "),
        ("latin.toml", "is not a TOML file: 'utf-8' codec"),
    ):
        with pytest.raises(TransferError) as found:
            read_config(tmp_path / name, SEED, "tl-advise")
        assert message in str(found.value)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("TL_ADVISOR_SEED", "three", "Invalid value for '--seed'"),
        ("TL_ADVISOR_TIME", "soon", "--time 'soon' is not a duration."),
        ("TL_ADVISOR_DETERMINISTIC", "perhaps", "Invalid value for '--deterministic'"),
        ("TL_ADVISOR_SET", "lr", "--set 'lr' must be NAME=VALUE"),
    ],
)
def test_an_error_in_the_environment_names_the_variable(
    variable: str, value: str, message: str, tmp_path: Path
) -> None:
    found = runner.invoke(auto_app, ["run", str(tmp_path)], env={variable: value})
    assert found.exit_code == 2
    assert message in found.stderr
    assert f"It comes from the environment variable {variable}." in found.stderr


def test_the_file_may_be_named_in_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text('explain = "TL003"', encoding="utf-8")
    found = runner.invoke(advise_app, [], env={"TL_ADVISOR_CONFIG": str(file)})
    assert found.exit_code == 0, found.output
    assert found.stdout.startswith("## TL003: ")


def test_options_that_contradict_each_other_are_refused_wherever_they_come_from(
    tmp_path: Path,
) -> None:
    file = tmp_path / "options.toml"
    file.write_text("gpus = 2", encoding="utf-8")
    found = runner.invoke(auto_app, ["run", str(tmp_path), "--config", str(file)])
    assert found.exit_code == 2
    assert found.stderr == "Error: --gpus has an effect only with --ray or --ray-address.\n"


def test_a_settings_file_gives_the_options_that_it_was_made_from(tmp_path: Path) -> None:
    options, run = made_different(DEFAULTS), made_different(RUN_DEFAULTS)
    run = replace(run, ray=False, gpus=9, gpus_per_trial=2)
    file = tmp_path / "settings.toml"
    file.write_text(tomli_w.dumps(file_values(options) | file_values(run)), encoding="utf-8")
    found: list[tuple[Options, RunOptions]] = []

    def command(*, options: Options, run: RunOptions) -> None:
        found.append((options, run))

    app = typer.Typer()
    app.command()(with_flags(command))
    done = runner.invoke(app, ["--config", str(file)])
    assert done.exit_code == 0, done.output
    neutral = {o.name: o.default for o in declared_in(options) if o.flag.is_neutral}
    assert found == [(replace(options, **neutral), run)]
    assert neutral.keys() == {"workers", "cache_dir"}


def made_different(options: Any) -> Any:
    """Return options that all differ from their defaults."""
    values: dict[str, Any] = {}
    for option in declared_in(options):
        value = three_values(option)[0]
        values[option.name] = 11.0 if option.flag.is_duration else as_read(option, value)
        assert values[option.name] != option.default
    if "max_images" in values:
        values["max_images"] = None
        values["hold_out_test"] = True  # cannot be used with test images of one's own
    return replace(options, **(values | {"ray": False} if "ray" in values else values))


@pytest.mark.parametrize(
    ("given", "values"),
    [
        (["lr=3e-4", "steps=1e3"], {"lr": 3e-4, "steps": 1000.0}),
        (["hflip=true", "depth=None"], {"hflip": True, "depth": None}),
        (["batch_norm=frozen", "optimiser = sgd"], {"batch_norm": "frozen", "optimiser": "sgd"}),
        (['a="3"', "b=[1]", "c=x=y"], {"a": "3", "b": "[1]", "c": "x=y"}),
    ],
)
def test_assignments_are_parsed(given: list[str], values: Mapping[str, Any]) -> None:
    assert parse_assignments("--set", given) == values


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["lr"], "--set 'lr' must be NAME=VALUE, for example lr=3e-4."),
        (["=3"], "must be NAME=VALUE"),
        (["lr="], "must be NAME=VALUE"),
        (["lr=1", "lr=2"], "--set lr is given twice."),
    ],
)
def test_assignments_without_name_or_value_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(TransferError, match=message):
        parse_assignments("--set", given)


def test_a_run_is_repeated_from_its_settings(
    make_folder: Callable[..., Path], tmp_path: Path, warm_cache: Path
) -> None:
    data, cache = make_folder("data", 8), ["--cache-dir", str(warm_cache)]
    first = ["run", str(data), "--out", str(tmp_path / "a"), "--strategy", "layer_svm"]
    first += ["--set", "class_weight=balanced", "--trials", "3", "--seed", "5"]
    first += ["--no-control", "--no-report"]
    done = runner.invoke(auto_app, [*first, "--input-px", "64", "--json", *cache])
    assert done.exit_code == 0, done.output

    settings = tmp_path / "a" / "settings.toml"
    comment = settings.read_text(encoding="utf-8").splitlines()[1].removeprefix("# tl-auto ")
    assert shlex.split(comment) == ["run", str(data), "--config", str(settings)]
    again = runner.invoke(auto_app, [*shlex.split(comment), "--out", str(tmp_path / "b"), *cache])
    assert again.exit_code == 0, again.output

    trials, repeated = (trials_of(tmp_path / name) for name in "ab")
    assert len(trials) == 3
    assert repeated == trials
    assert {t["hyperparameters"]["class_weight"] for t in trials} == {"balanced"}
    changed = runner.invoke(
        auto_app, [*shlex.split(comment), "--out", str(tmp_path / "c"), "--trials", "1", *cache]
    )
    assert changed.exit_code == 0, changed.output
    assert trials_of(tmp_path / "c") == trials[:1]


def trials_of(folder: Path) -> list[dict[str, Any]]:
    """Return the trials of a run without the seconds that they took."""
    lines = (folder / "trials.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in lines]


def test_settings_of_a_run_are_refused_by_tl_advise(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(tomli_w.dumps(file_values(DEFAULTS) | file_values(RUN_DEFAULTS)))
    found = runner.invoke(advise_app, [str(tmp_path), "--config", str(file)])
    assert found.exit_code == 2
    assert "would ignore it. Remove it." in found.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--set", "lr=3e-4"], "no strategy was given. Add --strategy NAME"),
        (["--set", "depht=1", "--strategy", "layer_svm"], "Did you mean 'depth'?"),
        (["--set", "depth=99", "--strategy", "layer_svm"], "depth of layer_svm must be one of"),
        (
            ["--set", "lr=9", "--strategy", "full_fine_tune"],
            "lr of full_fine_tune must be a number from 3e-05 to 0.003, got 9",
        ),
    ],
)
def test_hyperparameters_that_a_run_cannot_fix_are_refused(
    given: list[str],
    message: str,
    make_folder: Callable[..., Path],
    tmp_path: Path,
    warm_cache: Path,
) -> None:
    out = tmp_path / "run"
    common = ["--out", str(out), "--input-px", "64", "--cache-dir", str(warm_cache)]
    found = runner.invoke(auto_app, ["run", str(make_folder("data", 8)), *given, *common])
    assert found.exit_code == 2, found.output
    assert message in found.stderr
    assert not (out / "run.json").exists()
    assert not (out / "settings.toml").exists()
