"""Workers with access to the database and the artifact store, but not to the run directory."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from advisor.cli.app import auto_app
from advisor.tune.distributed.artifacts import SharedRecords
from advisor.tune.distributed.shared_folder import SharedRunDir, open_for_worker
from advisor.tune.run_dir.directory import RunDir
from strategies.core.errors import StorageError
from strategies.models.classifier import ImageClassifier
from strategies.training.trainer import ROUNDS
from tests.advisor.searching import Runner
from tests.advisor.tune.test_resume import Killed, kill_at

NAME = "shared-1/"
COMMAND = [sys.executable, "-c", "from advisor.cli.app import tl_auto; tl_auto()"]


@pytest.fixture
def pair(
    make_runner: Callable[[Path], Runner], tmp_path: Path, short_training_runs: None
) -> tuple[Runner, Runner]:
    """A coordinator and a worker, each with its own folder."""
    url, store = f"sqlite:///{tmp_path / 'trials.db'}", str(tmp_path / "store")
    coordinator, worker = make_runner(tmp_path / "run"), make_runner(tmp_path / "scratch")
    for runner, is_guest in ((coordinator, False), (worker, True)):
        records = SharedRecords(url, NAME, store, new=not is_guest)
        runner.folder = SharedRunDir(runner.folder.path, records, is_guest=is_guest)
        runner.url, runner.heartbeat_s = url, 1
    return coordinator, worker


def test_the_coordinator_gets_what_a_worker_finds(pair: tuple[Runner, Runner]) -> None:
    coordinator, worker = pair
    search = coordinator.prepare(max_trials=1)
    worker(max_trials=1)
    found = search.result()
    assert [r.number for r in found.trials] == [0]
    local = RunDir(coordinator.folder.path)
    assert local.best() == worker.folder.best() == (found.best, True)
    ImageClassifier.load(local.path / "classifier")
    assert not list(local.path.glob("*.tar"))


def test_two_machines_share_the_trials_and_none_runs_twice(pair: tuple[Runner, Runner]) -> None:
    searches = [
        runner.prepare(max_trials=4, only="layer_svm", owner=name)
        for name, runner in zip(("one", "two"), pair, strict=True)
    ]
    for _ in range(2):
        for search in searches:
            claim, _ = search._claim()
            assert claim is not None
            search._run_trial(claim)
    for search in searches:
        assert search._claim()[0] is None
        assert [r.number for r in search.trials.snapshot().done] == [0, 1, 2, 3]
        assert search.result().best == search.scheduler.best(search.trials.snapshot().done)


def test_the_coordinator_continues_the_training_run_of_a_killed_worker(
    pair: tuple[Runner, Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator, worker = pair
    helping = worker.prepare(max_trials=1, only="partial_fine_tune", owner="worker")
    with monkeypatch.context() as patch:
        kill_at(patch, SharedRunDir, "share_checkpoint", call=3, before=False)
        with pytest.raises(Killed):
            helping.run()
    seen = [e.step for e in worker.events if e.kind == "round"]
    assert seen == [1, 2, 3]
    time.sleep(7)  # six missed heartbeats
    found = coordinator(max_trials=1, only="partial_fine_tune")
    seen = [e.step for e in coordinator.events if e.kind == "round"]
    assert seen == list(range(4, ROUNDS + 1))
    assert [r.number for r in found.trials] == [0]
    assert found.best.val_accuracy is not None


def test_every_fold_of_a_trial_has_its_own_checkpoint(pair: tuple[Runner, Runner]) -> None:
    local, remote = (runner.folder for runner in pair)
    for fold in (0, 1):
        remote.checkpoint(3, fold).write_text(f"fold {fold}")
        remote.share_checkpoint(3, fold)
    assert [local.checkpoint(3, fold).read_text() for fold in (0, 1)] == ["fold 0", "fold 1"]
    remote.drop_checkpoint(3, 1)
    local.drop_checkpoint(3, 0)
    assert not local.checkpoint(3, 0).exists()
    assert not remote.checkpoint(3, 1).exists()


def test_the_store_is_empty_after_the_run(pair: tuple[Runner, Runner], tmp_path: Path) -> None:
    coordinator, _ = pair
    found = coordinator(max_trials=1)
    assert list((tmp_path / "store").iterdir())
    coordinator.folder.clear_checkpoints()
    assert not list((tmp_path / "store").iterdir())
    # If it is killed before it is marked as done, the run still has its result.
    assert coordinator.prepare().result().best == found.best


def test_after_the_search_phase_the_classifier_is_not_replaced(
    pair: tuple[Runner, Runner],
) -> None:
    coordinator, worker = pair
    search = worker.prepare(max_trials=1)
    claim, _ = search._claim()
    assert claim is not None
    coordinator.folder.set_phase("judging", time.time())
    search._run_trial(claim)
    assert coordinator.folder.best() is None
    assert search._claim() == (None, False)


def test_the_error_of_a_full_store_names_the_command_to_continue(
    pair: tuple[Runner, Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise StorageError("--artifacts there cannot be written: no room")

    for runner, command in zip(pair, ("tl-auto resume", "tl-auto worker shared-1"), strict=True):
        monkeypatch.setattr(SharedRecords, "put_file", full)
        with pytest.raises(StorageError, match=f"no room.*{command}"):
            runner(max_trials=1, only="layer_svm")


def test_artifacts_without_a_shared_database_are_refused(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    arguments = ["run", str(make_folder("data", 4)), "--out", str(tmp_path / "run")]
    found = CliRunner().invoke(auto_app, [*arguments, "--artifacts", str(tmp_path / "store")])
    assert found.exit_code == 2
    assert "Give --storage" in " ".join(found.stderr.split())
    assert not (tmp_path / "run").exists()


def test_an_unknown_run_is_reported(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match="no folder"),
        open_for_worker(str(tmp_path / "run"), None, None),
    ):
        pass
    url, store = f"sqlite:///{tmp_path / 'trials.db'}", str(tmp_path / "store")
    SharedRecords(url, NAME, store, new=True)
    with (
        pytest.raises(StorageError, match="Its runs are: shared-1"),
        open_for_worker("shared", url, store),
    ):
        pass
    with open_for_worker("shared-1", url, store) as folder:
        assert folder.path != tmp_path
        assert folder.state() == {}
    assert not folder.path.exists()


@pytest.mark.slow
def test_the_trial_of_a_killed_worker_without_the_run_directory_is_continued(
    make_folder: Callable[..., Path], small_network: str, tmp_path: Path
) -> None:
    """Two processes: the worker has a copy of the images elsewhere, and is killed -9."""
    data, copy, run = make_folder("data", 12), make_folder("copy", 12), tmp_path / "run"
    url, store = f"sqlite:///{tmp_path / 'trials.db'}", str(tmp_path / "store")
    shared = ["--storage", url, "--artifacts", store]
    arguments = ["run", str(data), "--out", str(run), "--trials", "6", "--time", "30m", *shared]
    arguments += ["--strategy", "full_fine_tune", "--no-control", "--heartbeat", "1"]
    arguments += ["--backbone", small_network, "--input-px", "64", "--pilot", "off"]
    log = (tmp_path / "log").open("wb")
    both = {"stdout": log, "stderr": log}
    start = [*COMMAND, *arguments, "--cache-dir", str(tmp_path / "cache")]
    coordinator = subprocess.Popen(start, **both)
    deadline_s = time.monotonic() + 300
    while not (run / "run.json").exists():
        assert coordinator.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    name = json.loads((run / "run.json").read_text())["prefix"].rstrip("/")
    there = ["--data", str(copy), "--cache-dir", str(tmp_path / "other cache")]
    worker = subprocess.Popen([*COMMAND, "worker", name, *shared, *there], **both)
    records = SharedRecords(url, f"{name}/", store)

    def shared_checkpoint() -> str | None:
        """Return the record name of a shared checkpoint, or None."""
        attributes = records._study.user_attrs
        return next((k for k, v in attributes.items() if k.startswith("checkpoint") and v), None)

    own = None
    while own is None:
        assert time.monotonic() < deadline_s
        assert coordinator.poll() is None, (tmp_path / "log").read_text()
        events = [e for e in RunDir(run).events() if e["event"].startswith("trial")]
        mine = {e["number"] for e in events}
        found = shared_checkpoint()
        own = found if found and int(found.split("-")[1]) not in mine else None
    worker.send_signal(signal.SIGKILL)
    assert worker.wait() == -signal.SIGKILL
    assert coordinator.wait(600) == 0, (tmp_path / "log").read_text()[-2000:]
    log.close()
    trials = [json.loads(x) for x in (run / "trials.jsonl").read_text().splitlines()]
    assert [t["number"] for t in trials] == list(range(6))
    steps = [
        e["step"]
        for e in RunDir(run).events()
        if e["event"] == "trial round" and e["number"] == int(own.split("-")[1])
    ]
    assert steps
    assert steps[0] > 1
    ImageClassifier.load(run / "classifier")
    assert not list((tmp_path / "store").iterdir())
