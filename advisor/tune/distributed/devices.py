"""Worker processes on this machine, one per device: parse ``--devices``, start, stop them."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sqlalchemy.engine import make_url

from strategies.core.errors import StorageError, TransferError
from strategies.core.progress import OnNote

ALL = "all"
COMMAND = (sys.executable, "-c", "from advisor.cli.app import tl_auto; tl_auto()")
GRACE_S = 5.0
"""Seconds that a worker may take to end after SIGTERM, before it is killed."""
_INTERRUPTED = 130


def devices_of(given: str | None, n_gpus: int) -> tuple[str, ...]:
    """Return the devices that ``--devices`` names; the first is the coordinator's own.

    Raises
    ------
    TransferError
        If it is "all" and there is no GPU, or if a name is empty.
    """
    if given is None:
        return ()
    if given == ALL:
        if not n_gpus:
            raise TransferError(
                "--devices all: this machine has no GPU. Leave it out, or name devices with "
                "commas between them: --devices cpu,cpu."
            )
        return tuple(f"cuda:{number}" for number in range(n_gpus))
    names = tuple(name.strip() for name in given.split(","))
    if not all(names):
        raise TransferError(
            f"--devices {given!r} has an empty device name. Give all, or names with commas "
            "between them: --devices cuda:0,cuda:2."
        )
    return names


def worker_command(run: Path, device: str) -> list[str]:
    """Return the command of a worker process that joins a run on one device."""
    return [*COMMAND, "worker", str(run), "--device", device, "--quiet"]


def worker_environment(storage: str | None, known: Mapping[str, str]) -> dict[str, str]:
    """Return a worker's environment, with the database's password, which no argument shows.

    Parameters
    ----------
    storage
        SQLAlchemy URL of the database, perhaps with its password.
    known
        The environment of this process.
    """
    password = None if storage is None else make_url(storage).password
    return dict(known) if password is None else {**known, "PGPASSWORD": str(password)}


@contextlib.contextmanager
def workers_on(
    run: Path, devices: Sequence[str], storage: str | None, on_note: OnNote
) -> Iterator[None]:
    """Start one worker process per device, and stop all of them at the end of the block.

    Their output goes to ``worker-N.log`` in the run directory. A worker that failed is reported
    by `on_note`.

    Raises
    ------
    StorageError
        If a log cannot be written.
    """
    environment = worker_environment(storage, os.environ)
    with contextlib.ExitStack() as stack:
        for number, device in enumerate(devices, start=1):
            path = run / f"worker-{number}.log"
            try:
                log = stack.enter_context(path.open("ab"))
            except OSError as error:
                raise StorageError(f"{path} cannot be written: {error}") from error
            command = worker_command(run, device)
            worker = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
            stack.callback(_stop, worker, device, path, on_note)
        yield


def _stop(worker: subprocess.Popen[bytes], device: str, log: Path, on_note: OnNote) -> None:
    """Stop a worker that is still running; note one that failed."""
    code = worker.poll()
    if code is None:
        worker.terminate()
        try:
            worker.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
    elif code not in (0, _INTERRUPTED):
        on_note(f"The worker on {device} failed (exit code {code}); see {log}.")
