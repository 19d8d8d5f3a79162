"""The commands on a GPU and on the CPU: equal measurements, and a classifier for any machine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from strategies.data.dataset import load_dataset
from strategies.models.classifier import ImageClassifier, evaluate
from tests.conftest import BENCHMARKS, write_folder

pytestmark = pytest.mark.gpu

ADVISE, AUTO = (f"from advisor.cli.app import tl_{n}; tl_{n}()" for n in ("advise", "auto"))
N_PER_CLASS = 40


def command(program: str, *arguments: object) -> str:
    """Run a command in a process of its own; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=BENCHMARKS.parent,
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def striped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "striped", N_PER_CLASS)


def advice(data: Path, device: torch.device, cache: Path) -> dict[str, Any]:
    options = ["--device", device, "--cache-dir", cache, "--input-px", 64, "--json"]
    found: dict[str, Any] = json.loads(command(ADVISE, data, *options))
    return found


def test_the_advice_rests_on_the_same_measurements(
    device: torch.device, striped: Path, tmp_path: Path
) -> None:
    there = advice(striped, device, tmp_path / "there")
    here = advice(striped, torch.device("cpu"), tmp_path / "here")
    profiles = there["profile"], here["profile"]
    scores = [p["similarity"]["score"]["mid"] for p in profiles]
    assert scores[0] == pytest.approx(scores[1], abs=0.03)
    probes = [
        {(r["depth"], r["loss"]): r["accuracy"]["mid"] for r in p["probes"]} for p in profiles
    ]
    shared = probes[0].keys() & probes[1].keys()
    assert (profiles[0]["backbone"], len(shared) > 0) == (profiles[1]["backbone"], True)
    for key in shared:
        assert probes[0][key] == pytest.approx(probes[1][key], abs=0.06), key
    ranked = [{r["strategy"] for r in found["recommendations"]} for found in (there, here)]
    assert ranked[0] == ranked[1]


def test_a_run_ends_with_a_classifier_for_any_machine(
    device: torch.device, striped: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    options = ["--device", device, "--cache-dir", tmp_path / "cache", "--input-px", 64]
    options += ["--trials", 3, "--no-control", "--quiet", "--out", out]
    command(AUTO, "run", striped, *options)
    outcome = json.loads((out / "outcome.json").read_text(encoding="utf-8"))
    classifier = ImageClassifier.load(out / "classifier", torch.device("cpu"))
    test = load_dataset(striped).test
    assert test is not None
    accuracy = evaluate(classifier, test).accuracy.mid
    assert accuracy == pytest.approx(outcome["test_accuracy"]["mid"], abs=1.5 / len(test))
    assert accuracy > 0.6


def test_a_saved_classifier_predicts_the_same_by_the_command_on_both_devices(
    device: torch.device, striped: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    options = ["--device", "cpu", "--cache-dir", tmp_path / "cache", "--input-px", 64, "--quiet"]
    options += ["--strategy", "linear_probe", "--trials", 1, "--no-control", "--out", out]
    command(AUTO, "run", striped, *options)
    found = []
    for d in (device, "cpu"):
        answer = json.loads(command(AUTO, "predict", out, striped, "--device", d, "--json"))
        rows = sorted(answer["predictions"], key=lambda row: row["path"])
        by_class = [{c["class"]: c["probability"] for c in row["classes"]} for row in rows]
        found.append([[p for _, p in sorted(row.items())] for row in by_class])
    assert np.shape(found[0]) == (3 * N_PER_CLASS, 3)
    np.testing.assert_allclose(found[0], found[1], atol=0.1)
