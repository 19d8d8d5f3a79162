"""A run shared by three processes over a real PostgreSQL server, which is restarted meanwhile."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from advisor.tune.distributed.database import Lock, open_storage, retry_if_lock_lost

pytestmark = pytest.mark.postgres
COMMAND = [sys.executable, "-c", "from advisor.cli.app import tl_auto; tl_auto()"]
RETRY_FOR_S = 900
N_TRIALS = 5


class Server:
    """A PostgreSQL server in a temporary folder, on a free port."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder = programs, folder
        # PostgreSQL refuses to run as root.
        self.user = {"user": "postgres"} if os.geteuid() == 0 else {}
        if self.user:
            shutil.chown(folder, "postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._do("initdb", "-A", "trust", "-U", "tester", "-D", str(folder / "data"))
        self.control("start")

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://tester@127.0.0.1:{self.port}/postgres"

    def control(self, what: str) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1"
        log = str(self.folder / "log")
        data = str(self.folder / "data")
        self._do("pg_ctl", what, "-w", "-m", "fast", "-D", data, "-l", log, "-o", options)

    def _do(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self.programs / program), *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
            **self.user,
        )


@pytest.fixture
def server() -> Iterator[Server]:
    found = shutil.which("initdb")
    known = [Path(found).resolve().parent] if found else []
    known += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if not known:
        pytest.skip(
            "PostgreSQL is not installed: initdb is neither on the PATH nor below "
            "/usr/lib/postgresql (Debian: apt install postgresql)"
        )
    with tempfile.TemporaryDirectory() as name:
        server = Server(known[0], Path(name))
        try:
            yield server
        finally:
            server.control("stop")


def wait_for(what: Callable[[], Any], process: subprocess.Popen[bytes]) -> Any:
    deadline_s = time.monotonic() + RETRY_FOR_S
    while not (found := what()):
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline_s, "nothing happened"
        time.sleep(0.05)
    return found


def running_trial(run: Path, owner_ends_with: str) -> int | None:
    """Return the number of the trial that a process has reported a round of, or None."""
    path = run / "metrics.jsonl"
    begun = None
    for line in path.read_text().splitlines() if path.exists() else ():
        event = json.loads(line)
        if str(event.get("owner", "")).endswith(owner_ends_with):
            begun = event["number"] if event["event"] == "trial round" else None
    return begun


def test_one_process_holds_a_lock_and_loses_it_when_the_server_restarts(server: Server) -> None:
    one, two = (Lock(open_storage(server.url, 1), "a/") for _ in range(2))
    other_run = Lock(open_storage(server.url, 1), "b/")
    order: list[str] = []

    def wait() -> None:
        with two.held():
            order.append("two")

    waiting = threading.Thread(target=wait)
    with one.held():
        with other_run.held():  # runs do not wait for each other
            waiting.start()
        time.sleep(0.5)
        one.check_held()
        order.append("one")
    waiting.join()
    assert order == ["one", "two"]
    tries: list[int] = []

    def critical_section() -> str:
        with one.held():
            tries.append(len(tries))
            if len(tries) == 1:
                server.control("restart")
            one.check_held()
            return "done"

    assert retry_if_lock_lost(critical_section) == "done"
    assert tries == [0, 1]
    for lock in (one, two, other_run):
        lock._storage.remove_session()
        lock._storage.engine.dispose()


def test_three_processes_finish_a_run_after_one_is_killed_and_the_server_restarts(
    server: Server, small_network: str, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    data, run = make_folder("data", 12), tmp_path / "run"
    log = (tmp_path / "log").open("wb")
    shared = {"stdout": log, "stderr": log}
    limits = ["--trials", str(N_TRIALS), "--time", "30m", "--heartbeat", "1", "--no-control"]
    options = ["--strategy", "full_fine_tune", "--backbone", small_network, "--input-px", "32"]
    options += ["--pilot", "off"]
    options += ["--cache-dir", str(tmp_path / "cache"), "--storage", server.url]
    arguments = ["run", str(data), "--out", str(run), *limits, *options]
    coordinator = subprocess.Popen([*COMMAND, *arguments], **shared)
    wait_for(lambda: (run / "run.json").exists(), coordinator)
    workers = [subprocess.Popen([*COMMAND, "worker", str(run)], **shared) for _ in range(2)]
    victim = workers[0]
    killed = wait_for(lambda: running_trial(run, f"-{victim.pid}"), coordinator)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    server.control("restart")
    assert coordinator.wait(RETRY_FOR_S) == 0, (tmp_path / "log").read_text()[-2000:]
    assert workers[1].wait(RETRY_FOR_S) == 0, (tmp_path / "log").read_text()[-2000:]

    lines = [json.loads(x) for x in (run / "trials.jsonl").read_text().splitlines()]
    assert [t["number"] for t in lines] == list(range(N_TRIALS))
    assert lines[killed]["val_accuracy"] is not None or lines[killed]["reason"].startswith("prun")
    prefix = json.loads((run / "run.json").read_text())["prefix"]
    storage = optuna.storages.RDBStorage(server.url)
    study = optuna.load_study(study_name=f"{prefix}full_fine_tune", storage=storage)
    ended = [t for t in study.trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert sorted(t.user_attrs["number"] for t in ended) == list(range(N_TRIALS))
    assert [t.user_attrs["number"] for t in study.trials if t not in ended] == [killed]
    assert len({t.user_attrs["owner"] for t in study.trials}) == 3
    storage.remove_session()
    storage.engine.dispose()
    log.close()
