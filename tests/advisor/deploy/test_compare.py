"""Finished runs side by side."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from advisor.deploy.compare import compare_runs
from advisor.deploy.tables import group_words
from advisor.measure.paired import mcnemar, paired_gain
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.run_dir.images import image_rows
from strategies.core.context import RunContext
from strategies.core.errors import StorageError
from tests.advisor.deploy.conftest import TlAuto, json_of


def with_predictions(run: Path, copy: Path, n_wrong: int, *, drop: int = 0) -> Path:
    """Copy a run whose classifier has `n_wrong` errors on test, and tested `drop` images less."""
    shutil.copytree(run, copy)
    with (run / "images.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file))
    tested = [row for row in rows if row[2] == "test"]
    for number, row in enumerate(tested):
        others = sorted({r[1] for r in rows} - {row[1]})
        row[4] = others[0] if number < n_wrong else row[1]
        if number >= len(tested) - drop:
            row[4] = ""
    with (copy / "images.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    outcome = json.loads((copy / "outcome.json").read_text(encoding="utf-8"))
    n = len(tested) - drop
    right = (n - n_wrong) / n
    outcome["test_accuracy"] = {"low": right - 0.01, "mid": right, "high": min(right + 0.01, 1)}
    outcome["test"]["n"] = n
    (copy / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")
    return copy


def test_runs_on_the_same_test_images_are_compared_in_pairs_best_first(
    finished: Path, tmp_path: Path, ctx: RunContext
) -> None:
    bad = with_predictions(finished, tmp_path / "bad", 4)
    good = with_predictions(finished, tmp_path / "good", 1)
    first, second = compare_runs([bad, good], ctx)
    assert (first.run, second.run) == (good, bad)
    assert first.difference is None
    n = sum(row.split == "test" for row in image_rows(RunDir(finished)))
    hits = [np.arange(n) >= k for k in (4, 1)]
    assert second.difference is not None
    assert second.difference.to == good
    assert second.difference.accuracy == paired_gain(*hits)
    assert second.difference.p_value == mcnemar(*hits)
    assert group_words([first, second])[0].startswith("All runs have the same test images.")
    assert first.strategy == "linear_probe"
    assert first.input_px == 64
    assert first.n_trials == 1
    weights = finished / "classifier" / "classifier.safetensors"
    assert first.n_bytes == weights.stat().st_size
    assert 0 < first.ms_per_image < 5000


def test_other_test_images_are_said_and_not_compared_in_pairs(
    finished: Path, tmp_path: Path, ctx: RunContext
) -> None:
    whole = with_predictions(finished, tmp_path / "whole", 1)
    fewer = with_predictions(finished, tmp_path / "fewer", 2, drop=1)
    unlisted = with_predictions(finished, tmp_path / "unlisted", 3)
    (unlisted / "images.csv").unlink()
    found = compare_runs([whole, fewer, unlisted], ctx)
    assert [run.group for run in found] == [1, 2, None]
    assert [run.difference for run in found] == [None, None, None]
    said = group_words(found)
    assert said[0] == "Runs with the same test images: 1; 2."
    assert "Test images differ" in said[1]
    assert said[2] == "No list of evaluated test images: run 3."


def test_the_command_prints_80_columns_and_json(
    tl_auto: TlAuto, on_terminal: Callable[..., str], finished: Path, tmp_path: Path
) -> None:
    other = with_predictions(finished, tmp_path / "a run with a name that goes on and on", 2)
    printed = on_terminal("compare", finished, other)
    assert max(map(len, printed.splitlines())) <= 80
    assert "linear_probe" in printed
    assert "difference" in printed
    record = json_of(tl_auto("compare", finished, other, "--json"))
    assert {Path(run["run"]).name for run in record["runs"]} == {"run", other.name}
    assert sum(run["difference"] is not None for run in record["runs"]) == 1


def test_an_unfinished_run_and_another_folder_are_refused(
    finished: Path, tmp_path: Path, ctx: RunContext
) -> None:
    shutil.copytree(finished, tmp_path / "stopped")
    RunDir(tmp_path / "stopped").set_phase("searching", 0.0)
    with pytest.raises(StorageError, match="tl-auto resume"):
        compare_runs([finished, tmp_path / "stopped"], ctx)
    with pytest.raises(StorageError, match="not a run directory"):
        compare_runs([tmp_path], ctx)
