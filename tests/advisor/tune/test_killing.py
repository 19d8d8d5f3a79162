"""Runs that are killed with kill -9 at random moments and resumed: benchmarks/kill.py."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "kill.py"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["layer_svm", "partial_fine_tune"])
def test_a_killed_and_resumed_run_has_the_result_of_an_uninterrupted_one(
    make_folder: Callable[..., Path], tmp_path: Path, strategy: str
) -> None:
    limits = ["--kills", "3", "--trials", "3", "--input-px", "32", "--strategy", strategy]
    data, out = str(make_folder("data", 12)), str(tmp_path / "out")
    command = [sys.executable, str(SCRIPT), data, *limits, "--out", out]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count('"same": true') == 3
