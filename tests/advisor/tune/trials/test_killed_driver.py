"""The driver of a run on Ray is killed: a resume loses nothing, and nothing is left in memory."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from advisor.tune.run_dir.directory import RunDir
from advisor.tune.trials.ray_executor import storage_of
from strategies.models.classifier import ImageClassifier

COMMAND = (sys.executable, "-c", "from advisor.cli.app import tl_auto; tl_auto()")
PATIENCE_S = 600
"""On a busy machine Ray takes a minute to start."""


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Ray's folder of temporary files. Its path is short, as those of its sockets must be."""
    pytest.importorskip("ray")
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def until(condition: Callable[[], bool]) -> None:
    ends_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends_s
        time.sleep(0.05)


def is_left(ray_folder: Path) -> bool:
    """Return whether a process that was started with this folder of Ray still runs."""
    marker = f"RAY_TMPDIR={ray_folder}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (process / "environ").read_bytes().split(b"\0"):
                return True
        except OSError:  # it has ended
            continue
    return False


def trials_of(run: Path) -> list[dict[str, Any]]:
    """Return the trials that have ended, without their seconds."""
    file = run / "trials.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in lines]


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*COMMAND, *arguments, "--quiet"], stdout=subprocess.DEVNULL)


def assert_nothing_is_lost(
    arguments: list[str], expected: Path, ray_folder: Path, kill: Callable[[Path, Any], None]
) -> None:
    """Kill a run on Ray and resume it; compare it with an uninterrupted one without Ray."""
    run, shared_memory = expected.parent / "killed", sorted(Path("/dev/shm").iterdir())
    driver = start(*arguments, "--out", str(run), "--ray")
    until(lambda: (run / "run.json").exists() or driver.poll() is not None)
    kill(run, driver)
    driver.wait()
    until(lambda: not is_left(ray_folder))
    assert sorted(Path("/dev/shm").iterdir()) == shared_memory
    before = trials_of(run)
    assert start("resume", str(run), "--time", "1h").wait(PATIENCE_S) == 0
    assert trials_of(run)[: len(before)] == before
    assert trials_of(run) == trials_of(expected)
    found, same = (json.loads((each / "outcome.json").read_text()) for each in (run, expected))
    assert found["best"] == same["best"]
    ImageClassifier.load(run / "classifier")
    assert not storage_of(RunDir.open(run), None).path.exists()
    until(lambda: not is_left(ray_folder))
    assert sorted(Path("/dev/shm").iterdir()) == shared_memory
    shutil.rmtree(run)


def alone(arguments: list[str], out: Path) -> float:
    """Run without Ray, which fills the cache; return the seconds."""
    begun_s = time.monotonic()
    assert start(*arguments, "--out", str(out)).wait(PATIENCE_S) == 0
    return time.monotonic() - begun_s


@pytest.fixture
def arguments(make_folder: Callable[..., Path], tmp_path: Path) -> list[str]:
    found = ["run", str(make_folder("data", 12)), "--cache-dir", str(tmp_path / "cache")]
    found += ["--input-px", "32", "--trials", "3", "--time", "1h", "--no-control"]
    return [*found, "--strategy", "layer_svm"]


@pytest.mark.ray
def test_a_driver_that_is_killed_after_a_trial_loses_nothing(
    arguments: list[str], tmp_path: Path, ray_folder: Path
) -> None:
    alone(arguments, tmp_path / "alone")

    def kill(run: Path, driver: subprocess.Popen[bytes]) -> None:
        until(lambda: bool(trials_of(run)))
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        assert len(trials_of(run)) < 3

    assert_nothing_is_lost(arguments, tmp_path / "alone", ray_folder, kill)


@pytest.mark.slow
@pytest.mark.ray
def test_a_driver_that_is_killed_at_ten_random_moments_loses_nothing(
    arguments: list[str], tmp_path: Path, ray_folder: Path
) -> None:
    whole_s, rng = alone(arguments, tmp_path / "alone"), random.Random(0)

    def kill(run: Path, driver: subprocess.Popen[bytes]) -> None:
        try:
            driver.wait(rng.uniform(0, whole_s))
        except subprocess.TimeoutExpired:
            os.kill(driver.pid, signal.SIGKILL)

    for _ in range(10):  # as in benchmarks/kill.py, without Ray
        assert_nothing_is_lost(arguments, tmp_path / "alone", ray_folder, kill)
