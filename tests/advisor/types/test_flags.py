"""Declared options: their flags, the check of their values, and the printed arguments."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from advisor.types.flags import arguments, declared_in
from advisor.types.options import DEFAULTS, Options, RunOptions
from strategies.core.errors import TransferError


@pytest.mark.parametrize("options", [Options, RunOptions])
def test_every_field_but_a_callback_has_a_flag_with_a_help(options: type) -> None:
    declared = declared_in(options)
    callbacks = [f.name for f in fields(options) if f.name.startswith("on_")]
    assert [o.name for o in declared] + callbacks == [f.name for f in fields(options)]
    assert all(o.flag.help.endswith(".") for o in declared)


def test_a_flag_is_named_after_its_field_unless_it_has_a_name() -> None:
    names = {o.name: o.flag_name for o in (*declared_in(Options), *declared_in(RunOptions))}
    assert names["input_px"] == "--input-px"
    assert names["time_s"] == "--time"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"input_px": 15}, "--input-px must be at least 16, got 15."),
        ({"seed": -1}, "--seed must be at least 0, got -1."),
        ({"max_quarantine": 1.5}, "--max-quarantine must be at least 0 and at most 1, got 1.5."),
        ({"max_quarantine": float("nan")}, "got nan"),
        ({"prefer": "cheep"}, "Unknown --prefer 'cheep'. Did you mean 'cheap'?"),
    ],
    ids=str,
)
def test_python_refuses_the_values_that_the_command_line_refuses(
    wrong: dict[str, object], message: str
) -> None:
    with pytest.raises(TransferError) as found:
        Options(**wrong)  # type: ignore[arg-type]
    assert message in str(found.value)


def test_run_options_are_checked_too() -> None:
    with pytest.raises(TransferError, match="--trials must be at least 1, got 0"):
        RunOptions(max_trials=0)
    assert RunOptions(max_trials=1, gpus_per_trial=1).max_trials == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gpus": 2}, "--gpus has an effect only with --ray"),
        ({"storage_path": Path("there")}, "--storage-path has an effect only with --ray"),
        (
            {"ray": True, "gpus": 1, "gpus_per_trial": 2},
            "--gpus 1 is less than --gpus-per-trial 2",
        ),
        ({"ray": True, "ray_address": "auto"}, "--ray and --ray-address were both given"),
    ],
)
def test_options_of_ray_without_effect_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TransferError, match=message):
        RunOptions(**given)


def test_held_out_test_images_are_refused_where_test_images_are_given() -> None:
    with pytest.raises(TransferError, match="--no-hold-out-test cannot be used together"):
        Options(test=Path("test"), hold_out_test=False)


def test_only_options_that_differ_from_their_defaults_are_printed() -> None:
    assert list(arguments(DEFAULTS)) == []
    options = Options(max_images=None, reference=Path("photos"), prefer="cheap")
    assert list(arguments(options, always=["seed"])) == [
        ("--max-images", "0"),
        ("--reference", "photos"),
        ("--prefer", "cheap"),
        ("--seed", "0"),
    ]


def test_options_of_this_machine_are_not_printed() -> None:
    assert list(arguments(Options(device="cuda:1", workers=3, cache_dir=Path("cache")))) == []
