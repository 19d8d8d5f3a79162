"""Flags of the commands, made from the declared options."""

import pytest
import typer
from typer.testing import CliRunner

from advisor.cli.app import advise_app, auto_app
from advisor.cli.options import Output, with_flags
from advisor.types.flags import arguments, declared_in
from advisor.types.options import (
    DEFAULTS,
    RUN_DEFAULTS,
    Options,
    RunOptions,
)

runner = CliRunner()
DIFFERENT = {
    "backbone": "resnet18,resnet34",
    "input_px": 96,
    "strategy": "layer_svm",
    "val": "a folder",
    "test": "test",
    "root": "root",
    "group_by": "(cow|dog)[0-9]+",
    "max_images": 0,
    "max_quarantine": 0.25,
    "reference": "reference",
    "pretrained_on": "laion2b",
    "prefer": "cheap",
    "seed": 3,
}


def read(*words: str) -> tuple[Options, RunOptions, Output]:
    """Return the options that a command gets from its arguments."""
    found: list[tuple[Options, RunOptions, Output]] = []

    def command(*, run: RunOptions, options: Options, output: Output) -> None:
        found.append((options, run, output))

    app = typer.Typer()
    app.command()(with_flags(command))
    done = runner.invoke(app, words)
    assert done.exit_code == 0, done.output
    return found[0]


def test_a_command_without_arguments_gets_the_declared_defaults() -> None:
    assert read() == (DEFAULTS, RUN_DEFAULTS, Output())


def test_printed_arguments_are_read_back_as_the_same_options() -> None:
    words = [word for name, value in DIFFERENT.items() for word in (flag(name), str(value))]
    options, _, _ = read(*words)
    switches = {o.name for o in declared_in(Options) if o.kind is bool}
    assert {o.name for o in declared_in(Options)} - DIFFERENT.keys() - switches == {
        o.name for o in declared_in(Options) if o.flag.is_local and o.name not in switches
    }
    assert all(getattr(options, name) != getattr(DEFAULTS, name) for name in DIFFERENT)
    printed = [word for pair in arguments(options) for word in pair]
    assert printed == words
    assert read(*printed)[0] == options


def test_a_printed_switch_is_read_back() -> None:
    options = Options(hold_out_test=False)
    assert list(arguments(options)) == [("--no-hold-out-test",)]
    assert read("--no-hold-out-test")[0] == options
    assert read("--hold-out-test")[0] == DEFAULTS


def flag(name: str) -> str:
    return next(o.flag_name for o in declared_in(Options) if o.name == name)


def test_durations_switches_and_0_images_are_read() -> None:
    words = (
        "--time",
        "1.5h",
        "--no-soup",
        "--no-report",
        "--advised-only",
        "--max-images",
        "0",
        "--trials",
        "2",
        "--json",
    )
    options, run, output = read(*words)
    assert run == RunOptions(
        time_s=5400, soup=False, max_trials=2, report=False, advised_only=True
    )
    assert options == Options(max_images=None)
    assert output == Output(json=True)


@pytest.mark.parametrize(
    ("app", "command", "options"),
    [
        (advise_app, [], DEFAULTS),
        (auto_app, ["run"], DEFAULTS),
        (auto_app, ["run"], RUN_DEFAULTS),
    ],
)
def test_help_shows_every_declared_option(
    app: typer.Typer, command: list[str], options: object
) -> None:
    found = runner.invoke(app, [*command, "--help"])
    assert found.exit_code == 0
    shown = " ".join(found.stdout.split())
    for option in declared_in(options):
        assert option.flag_name in shown
        assert " ".join(option.flag.help.split()) in shown
