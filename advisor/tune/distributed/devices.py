"""One worker a device: which devices are meant, what each worker is started with, its end."""

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
"""How long a worker that was told to end may take."""
_INTERRUPTED = 130


def devices_of(given: str | None, n_gpus: int) -> tuple[str, ...]:
    """Return the devices that ``--devices`` means; the first is the coordinator's own.

    Raises
    ------
    TransferError
        If all GPUs are meant and there is none, or a name is empty.
    """
    if given is None:
        return ()
    if given == ALL:
        if not n_gpus:
            raise TransferError(
                "--devices all: no GPU is to be found here. Leave it out, or name devices with "
                "commas between them: --devices cpu,cpu."
            )
        return tuple(f"cuda:{number}" for number in range(n_gpus))
    names = tuple(name.strip() for name in given.split(","))
    if not all(names):
        raise TransferError(
            f"--devices {given!r} names no device. Give all, or names with commas between them: "
            "--devices cuda:0,cuda:2."
        )
    return names


def worker_command(run: Path, device: str) -> list[str]:
    """Return the command that helps a run with one device."""
    return [*COMMAND, "worker", str(run), "--device", device, "--quiet"]


def worker_environment(storage: str | None, known: Mapping[str, str]) -> dict[str, str]:
    """Return a worker's environment: a database's password is handed on there, not in words.

    Parameters
    ----------
    storage
        SQLAlchemy's name of the database, perhaps with its password.
    known
        The environment of this process.
    """
    password = None if storage is None else make_url(storage).password
    return dict(known) if password is None else {**known, "PGPASSWORD": str(password)}


@contextlib.contextmanager
def workers_on(
    run: Path, devices: Sequence[str], storage: str | None, on_note: OnNote
) -> Iterator[None]:
    """Start one worker a device; none outlives the block, by which a run has its outcome.

    What they say goes to ``worker-N.log`` in the run folder; one that failed is told of.

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
            stack.callback(_end, worker, device, path, on_note)
        yield


def _end(worker: subprocess.Popen[bytes], device: str, log: Path, on_note: OnNote) -> None:
    """End a worker that has not ended by itself."""
    code = worker.poll()
    if code is None:
        worker.terminate()
        try:
            worker.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
    elif code not in (0, _INTERRUPTED):
        on_note(f"The worker on {device} failed (exit code {code}); {log} says why.")
