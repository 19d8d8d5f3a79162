"""A run folder: one lock, files that are whole or absent, and all that a resumed run needs."""

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import filelock

from advisor.types.outcome import TrialRecord
from strategies.core.atomic_files import write_json
from strategies.core.errors import StorageError
from strategies.core.metrics import Interval
from strategies.models.classifier import ImageClassifier

FORMAT_VERSION = 2
_LOCK = "run.lock"
Phase = Literal["measuring", "searching", "judging", "done"]


@dataclass(frozen=True)
class RunDir:
    """Everything about one run, in one folder.

    ``run.json`` (how it was started), ``state.json`` (how far it is), ``advice.json``,
    ``study.db`` (Optuna's), ``trials.jsonl``, ``metrics.jsonl``, ``checkpoints/``, ``classifier/``
    (the best so far) and ``outcome.json``. Every JSON file is the old or the new one, never half
    of one, whenever the program is killed.
    """

    path: Path

    @staticmethod
    def create(path: Path) -> "RunDir":
        """Make a new folder for a run, or take an empty one.

        Raises
        ------
        StorageError
            If it holds anything already, or cannot be written.
        """
        folder = RunDir(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if folder.is_run() and not folder.is_locked():
                raise StorageError(
                    f"{path} is not empty: it holds a run. Go on with it by tl-auto resume "
                    f"{path}, or give a new folder with --out."
                )
            if not folder.is_run() and any(p.name != _LOCK for p in path.iterdir()):
                raise StorageError(f"{path} is not empty. Give a new folder with --out.")
        except OSError as error:
            raise StorageError(f"{path} cannot be used as a run folder: {error}") from error
        return folder

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write how the run is started; the caller holds the lock."""
        self.write("run.json", {"format_version": FORMAT_VERSION, **settings})

    def abandon(self) -> None:
        """Leave an empty folder behind: the run could not even begin."""
        for name in ("run.json", "state.json", "metrics.jsonl"):
            (self.path / name).unlink(missing_ok=True)

    @staticmethod
    def open(path: Path) -> "RunDir":
        """Return an existing run folder.

        Raises
        ------
        StorageError
            If it is none, or one of another format version.
        """
        folder = RunDir(path)
        if not folder.is_run():
            raise StorageError(
                f"{path} is not a run folder: it has no run.json. Give the folder that tl-auto "
                "run wrote (--out)."
            )
        found = folder.settings().get("format_version")
        if found != FORMAT_VERSION:
            raise StorageError(
                f"{path} has run format {found}; this program reads {FORMAT_VERSION}. Use the "
                "release that wrote it."
            )
        return folder

    def is_run(self) -> bool:
        """Whether a run was started here."""
        return (self.path / "run.json").is_file()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run: one process at a time coordinates it. A dead process holds nothing.

        Raises
        ------
        StorageError
            If another process holds it.
        """
        try:
            with filelock.FileLock(self.path / _LOCK, timeout=0):
                self._finish_swap()
                yield
        except filelock.Timeout as error:
            who = self.state().get("process", "another process")
            raise StorageError(
                f"{self.path} is in use by {who}. Wait for it, or give another folder with --out; "
                "tl-auto worker joins a run that is going on."
            ) from error

    def is_locked(self) -> bool:
        """Whether a process on this machine is at work on the run."""
        lock = filelock.FileLock(self.path / _LOCK, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            return True
        lock.release()
        return False

    def settings(self) -> dict[str, Any]:
        """Return how the run was started."""
        return self.read("run.json")

    def state(self) -> dict[str, Any]:
        """Return how far the run is; empty before it began."""
        return self.read("state.json") if (self.path / "state.json").is_file() else {}

    def enter(self, phase: Phase, ends_at: float) -> None:
        """Note how far the run is, by which process, and the Unix time at which it must end."""
        process = f"process {os.getpid()} on {socket.gethostname()}"
        self.write("state.json", {"phase": phase, "process": process, "ends_at": ends_at})

    def is_done(self) -> bool:
        """Whether the run has its outcome."""
        return self.state().get("phase") == "done"

    def read(self, name: str) -> dict[str, Any]:
        """Return a JSON file of the folder.

        Raises
        ------
        StorageError
            If it is missing or damaged.
        """
        try:
            record: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StorageError(f"{self.path / name} cannot be read: {error}") from error
        return record

    def write(self, name: str, record: Mapping[str, Any]) -> None:
        """Write a JSON file of the folder, whole or not at all."""
        with self.writing(self.path / name):
            write_json(self.path / name, record)

    def write_trials(self, records: tuple[TrialRecord, ...]) -> None:
        """Write the list of finished trials, one JSON object a line."""
        path = self.path / "trials.jsonl"
        part = path.with_name("trials.jsonl.part")
        with self.writing(path):
            with part.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in records)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)

    def note(self, event: str, **facts: Any) -> None:
        """Append what happened to ``metrics.jsonl``, with the time."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts})
        path = self.path / "metrics.jsonl"
        with self.writing(path), path.open("a+b") as file:
            if file.tell() and not _ends_a_line(path):
                file.write(b"\n")  # a killed process left half a line
            file.write(line.encode() + b"\n")

    def events(self) -> list[dict[str, Any]]:
        """Return what happened so far; a line that was cut short is left out."""
        path = self.path / "metrics.jsonl"
        found = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def used_s(self) -> float:
        """Return the seconds that all processes which held the run have used up."""
        used, start = 0.0, None
        last = 0.0
        for event in self.events():
            if event["event"] == "session":
                used += last - start if start is not None else 0.0
                start = event["time"]
            last = event["time"]
        return used + (last - start if start is not None else 0.0)

    def checkpoint(self, number: int, fold: int = 0) -> Path:
        """Return where trial `number` keeps what it has learnt so far, on one of its folds."""
        path = self.checkpoint_path(number, fold)
        with self.writing(path):
            path.parent.mkdir(exist_ok=True)
        return path

    def checkpoint_path(self, number: int, fold: int = 0) -> Path:
        """Return the file of a checkpoint, whether it is there or not."""
        name = f"trial-{number}-fold-{fold}" if fold else f"trial-{number}"
        return self.path / "checkpoints" / name

    def share_checkpoint(self, number: int, fold: int = 0) -> None:
        """Let another process go on with a trial where this one stands: it sees the file."""

    def drop_checkpoint(self, number: int, fold: int = 0) -> None:
        """Delete what a trial that has ended had learnt."""
        path = self.checkpoint_path(number, fold)
        with self.writing(path):
            path.unlink(missing_ok=True)

    def needs_room(self, error: StorageError) -> StorageError:
        """Return a complaint about storage with what is to be done about it in this run."""
        return StorageError(
            f"{str(error).rstrip('.')}. Nothing that was finished is lost; once there is room, go "
            f"on with {self.how_to_go_on()}."
        )

    def how_to_go_on(self) -> str:
        """Return the command that goes on after something was mended."""
        return f"tl-auto resume {self.path}"

    def invitation(self) -> str:
        """Return the command by which other processes help."""
        return f"tl-auto worker {self.path}"

    @contextlib.contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Say of what cannot be written in this block how to go on.

        Raises
        ------
        StorageError
            Instead of any error of the file system.
        """
        try:
            yield
        except OSError as error:
            said = f"{path} cannot be written: {error.strerror or error}"
            raise self.needs_room(StorageError(said)) from error
        except StorageError as error:
            raise self.needs_room(error) from error

    def clear_checkpoints(self) -> None:
        """Delete what trials learnt that nobody will go on with, once the search is over."""
        folder = self.path / "checkpoints"
        with self.writing(folder):
            if folder.is_dir():
                shutil.rmtree(folder)

    def keep(
        self,
        classifier: ImageClassifier,
        record: TrialRecord,
        *,
        refitted: bool,
        averaged: Sequence[int] = (),
    ) -> None:
        """Make a classifier the best so far, on disk, in one step.

        Parameters
        ----------
        averaged
            Numbers of the trials whose weights it is the average of; empty: it is that of
            `record` alone.
        """
        new = self.path / "classifier.new"
        with self.writing(self.path / "classifier"):
            shutil.rmtree(new, ignore_errors=True)
            classifier.save(new)
            about = {"refitted": refitted, "averaged": list(averaged)}
            write_json(new / "trial.json", {**asdict(record), **about})
            self.put_in_place(new)

    def put_in_place(self, new: Path) -> None:
        """Let a whole folder of this one become its classifier, in one step."""
        for file in new.iterdir():
            _sync(file)
        _swap(new, self.path / "classifier")
        _sync(self.path)

    def best(self) -> tuple[TrialRecord, bool] | None:
        """Return the trial of the classifier on disk, and whether it was fitted on validation too."""
        if not (self.classifier() / "trial.json").is_file():
            return None
        record = json.loads((self.classifier() / "trial.json").read_text(encoding="utf-8"))
        return read_trial(record), bool(record["refitted"])

    def averaged(self) -> tuple[int, ...]:
        """Return the trials whose weights were averaged to the best classifier; empty: none."""
        path = self.classifier() / "trial.json"
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return tuple(record.get("averaged", ()))

    def classifier(self) -> Path:
        """Return the folder of the best classifier so far."""
        target = self.path / "classifier"
        return target if target.is_dir() else _old(target)

    def _finish_swap(self) -> None:
        """Finish what a killed process left half done."""
        target = self.path / "classifier"
        with self.writing(target):
            if not target.is_dir() and _old(target).is_dir():
                _old(target).rename(target)


def read_trial(record: Mapping[str, Any]) -> TrialRecord:
    """Return a trial from its JSON."""
    found = record["val_accuracy"]
    return TrialRecord(
        record["number"],
        record["strategy"],
        record["hyperparameters"],
        None if found is None else Interval(**found),
        record["seconds"],
        record["reason"],
        record["pruned"],
    )


def _old(target: Path) -> Path:
    return target.with_name(target.name + ".old")


def _swap(new: Path, target: Path) -> None:
    """Put a whole folder in another's place; at every moment one of the two is whole.

    No rename replaces a folder that is not empty, so the old one steps aside first; `classifier`
    finds it there.
    """
    if target.is_dir():
        shutil.rmtree(_old(target), ignore_errors=True)
        target.rename(_old(target))
    new.rename(target)
    shutil.rmtree(_old(target), ignore_errors=True)


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _sync(path: Path) -> None:
    """Wait until a file or a folder's entries are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
