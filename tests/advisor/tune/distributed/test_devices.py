"""Worker processes per device: parsing, commands, start and stop, without a GPU."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from advisor.cli.app import auto_app
from advisor.tune.distributed import devices
from advisor.tune.distributed.devices import (
    devices_of,
    worker_command,
    worker_environment,
    workers_on,
)
from advisor.tune.driver import _note_unused_ddp
from advisor.tune.run_dir.settings import Settings
from advisor.types.options import Options, RunOptions
from strategies.core.errors import TransferError
from strategies.core.progress import ignore_note

SLEEP = (sys.executable, "-c", "import time; time.sleep(300)")
FAIL = (sys.executable, "-c", "raise SystemExit(3)")


def test_all_means_every_gpu_and_other_names_are_kept() -> None:
    assert devices_of(None, 4) == ()
    assert devices_of("all", 3) == ("cuda:0", "cuda:1", "cuda:2")
    assert devices_of("cuda:0, cuda:2", 4) == ("cuda:0", "cuda:2")
    assert devices_of("cpu,cpu", 0) == ("cpu", "cpu")


@pytest.mark.parametrize("given", ["all", "", "cpu,,cpu"])
def test_missing_devices_and_empty_names_are_refused(given: str) -> None:
    with pytest.raises(TransferError, match="--devices"):
        devices_of(given, 0)


def test_a_worker_command_names_the_device_and_no_password() -> None:
    command = worker_command(Path("runs/a"), "cuda:1")
    assert command[-5:] == ["worker", "runs/a", "--device", "cuda:1", "--quiet"]
    found = worker_environment("postgresql://me:secret@host/db", {"HOME": "h"})
    assert found == {"HOME": "h", "PGPASSWORD": "secret"}
    assert worker_environment("postgresql://me@host/db", {"HOME": "h"}) == {"HOME": "h"}


def test_no_worker_outlives_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    original = subprocess.Popen

    def start(*args: object, **kwargs: object) -> subprocess.Popen[bytes]:
        started.append(original(*args, **kwargs))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(devices.subprocess, "Popen", start)
    monkeypatch.setattr(devices, "COMMAND", SLEEP)
    with workers_on(tmp_path, ["cpu", "cpu"], None, ignore_note):
        assert [worker.poll() for worker in started] == [None, None]
    assert [worker.returncode is not None for worker in started] == [True, True]


def test_a_failed_worker_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    monkeypatch.setattr(devices, "COMMAND", FAIL)
    with workers_on(tmp_path, ["cuda:1"], None, notes.append):
        time.sleep(3)
    (note,) = notes
    assert "cuda:1" in note
    assert "exit code 3" in note
    assert str(tmp_path / "worker-1.log") in note


def test_device_and_devices_together_are_refused(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    def run(*options: str) -> str:
        arguments = ["run", str(make_folder("data", 4)), "--out", str(tmp_path / "run"), *options]
        found = CliRunner().invoke(auto_app, arguments)
        assert found.exit_code == 2
        assert not (tmp_path / "run").exists()
        return " ".join(found.stderr.split())

    assert "both given" in run("--device", "cpu", "--devices", "cpu,cpu")
    assert "empty device name" in run("--devices", "cpu,")
    assert "both given" in run("--ddp", "2", "--devices", "cpu,cpu")


def test_ddp_has_no_effect_on_a_probe_and_a_note_says_so() -> None:
    notes: list[str] = []
    for strategy in ("linear_probe", "full_fine_tune", "auto"):
        options = Options(strategy=strategy, on_note=notes.append)
        _note_unused_ddp(Settings(Path("data"), "", options, RunOptions(ddp=2)))
    assert notes == ["--ddp has no effect: linear_probe trains no network."]


def owners(lines: Sequence[str]) -> set[str]:
    events = [json.loads(line) for line in lines]
    return {e["owner"] for e in events if e["event"] == "trial ended"}


@pytest.mark.slow
def test_two_devices_share_the_trials_of_a_run(
    make_folder: Callable[..., Path], small_network: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ["run", str(make_folder("data", 12)), "--out", str(run), "--trials", "8"]
    arguments += ["--devices", "cpu,cpu", "--strategy", "full_fine_tune", "--no-control"]
    arguments += ["--backbone", small_network, "--input-px", "64", "--pilot", "off"]
    arguments += ["--time", "30m", "--cache-dir", str(tmp_path / "cache")]
    found = CliRunner().invoke(auto_app, arguments)
    assert found.exit_code == 0, found.output
    trials = [json.loads(x) for x in (run / "trials.jsonl").read_text().splitlines()]
    assert [t["number"] for t in trials] == list(range(8))
    assert len(owners((run / "metrics.jsonl").read_text().splitlines())) == 2
    assert (run / "worker-1.log").read_text() == ""
