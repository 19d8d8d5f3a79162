"""Run directory: lock, atomically written files, checkpoints and the best classifier of a run."""

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
from cattrs.preconf.json import make_converter

from advisor.types.outcome import TrialRecord
from strategies.core.atomic_files import write_json, write_text
from strategies.core.errors import StorageError
from strategies.models.classifier import ImageClassifier

FORMAT_VERSION = 6
"""Version of the run directory's format. In 5, the trials have a hyperparameter that is gone: such
a run can be read, and not be resumed."""
SETTINGS_FILE = "settings.toml"
_CONVERTER = make_converter()
_LOCK = "run.lock"
Phase = Literal["measuring", "searching", "judging", "done"]


@dataclass(frozen=True)
class RunDir:
    """All files of one run, in one directory.

    ``run.json`` and ``settings.toml`` (settings, to resume and to repeat the run), ``state.json``
    (phase), ``findings.json`` (with all affected images), ``advice.json``, ``study.db`` (Optuna's
    database), ``trials.jsonl`` (finished trials), ``metrics.jsonl`` (event log), ``checkpoints/``,
    ``classifier/`` (the best so far), ``images.csv`` (splits and test predictions) and
    ``outcome.json``. JSON files are written atomically: if the program is killed, each is the old
    or the new one, never part of one.

    Attributes
    ----------
    path
        The directory.
    run
        The run directory that this one belongs to, if it holds only checkpoints and classifiers
        of trials; None: itself.
    """

    path: Path
    run: Path | None = None

    @staticmethod
    def create(path: Path) -> "RunDir":
        """Create a new run directory, or use an empty one.

        A directory that a running process has locked is accepted: `locked` then reports that.

        Raises
        ------
        StorageError
            If it is not empty, or cannot be written.
        """
        folder = RunDir(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if folder.is_run() and not folder.is_locked():
                raise StorageError(
                    f"{path} is not empty: it holds a run. Continue it with tl-auto resume "
                    f"{path}, or give a new folder with --out."
                )
            if not folder.is_run() and any(p.name != _LOCK for p in path.iterdir()):
                raise StorageError(f"{path} is not empty. Give a new folder with --out.")
        except OSError as error:
            raise StorageError(f"{path} cannot be used as a run directory: {error}") from error
        return folder

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write the settings of a new run. The caller must hold the lock."""
        self.write("run.json", {"format_version": FORMAT_VERSION, **settings})

    def abandon(self) -> None:
        """Delete the files of a run that could not begin, so that the directory is empty again."""
        names = ("run.json", SETTINGS_FILE, "state.json", "metrics.jsonl", "findings.json")
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    @staticmethod
    def open(path: Path) -> "RunDir":
        """Return an existing run directory.

        Raises
        ------
        StorageError
            If it is not a run directory, or has another format version.
        """
        folder = RunDir(path)
        if not folder.is_run():
            raise StorageError(
                f"{path} is not a run directory: it has no run.json. Give the folder that tl-auto "
                "run wrote (--out)."
            )
        found = folder.settings().get("format_version")
        if found not in (5, FORMAT_VERSION) or (found == 5 and not folder.is_done()):
            raise StorageError(
                f"{path} has run format {found}; this release reads {FORMAT_VERSION}, and of 5 "
                "finished runs. Use the release that wrote it."
            )
        return folder

    def is_run(self) -> bool:
        """Return whether a run was started here."""
        return (self.path / "run.json").is_file()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's lock: one driver at a time writes it. A dead process releases it.

        Raises
        ------
        StorageError
            If another process holds the lock.
        """
        try:
            with filelock.FileLock(self.path / _LOCK, timeout=0):
                self._finish_swap()
                yield
        except filelock.Timeout as error:
            who = self.state().get("process", "another process")
            raise StorageError(
                f"{self.path} is in use by {who}. Wait for it, or give another folder with --out."
            ) from error

    def is_locked(self) -> bool:
        """Return whether a process on this machine holds the run's lock."""
        lock = filelock.FileLock(self.path / _LOCK, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            return True
        lock.release()
        return False

    def settings(self) -> dict[str, Any]:
        """Return the settings of the run."""
        return self.read("run.json")

    def state(self) -> dict[str, Any]:
        """Return the phase of the run, its process and when it ends; empty before it began."""
        return self.read("state.json") if (self.path / "state.json").is_file() else {}

    def set_phase(self, phase: Phase, ends_at: float) -> None:
        """Write the phase of the run, this process, and the Unix time at which it must end."""
        process = f"process {os.getpid()} on {socket.gethostname()}"
        self.write("state.json", {"phase": phase, "process": process, "ends_at": ends_at})

    def is_done(self) -> bool:
        """Return whether the run is finished and has its outcome."""
        return self.state().get("phase") == "done"

    def read(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file of the run directory.

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
        """Write a JSON file of the run directory atomically."""
        with self.storage_errors(self.path / name):
            write_json(self.path / name, record)

    def write_trials(self, records: tuple[TrialRecord, ...]) -> None:
        """Write the finished trials atomically, one JSON object per line."""
        path = self.path / "trials.jsonl"
        lines = [json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in records]
        with self.storage_errors(path):
            write_text(path, "".join(lines))

    def log_event(self, event: str, **facts: Any) -> None:
        """Append an event with its time to ``metrics.jsonl``."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts})
        path = self.path / "metrics.jsonl"
        with self.storage_errors(path), path.open("a+b") as file:
            if file.tell() and not _ends_a_line(path):
                file.write(b"\n")  # a process was killed while it wrote a line
            file.write(line.encode() + b"\n")

    def events(self) -> list[dict[str, Any]]:
        """Return the logged events; skip a line that is truncated."""
        path = self.path / "metrics.jsonl"
        found = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def used_s(self) -> float:
        """Return the seconds that all sessions of the run have used."""
        used, start = 0.0, None
        last = 0.0
        for event in self.events():
            if event["event"] == "session":
                used += last - start if start is not None else 0.0
                start = event["time"]
            last = event["time"]
        return used + (last - start if start is not None else 0.0)

    def checkpoint(self, number: int, fold: int = 0) -> Path:
        """Return the checkpoint file of a trial's fold; create its folder."""
        path = self.checkpoint_path(number, fold)
        with self.storage_errors(path):
            path.parent.mkdir(exist_ok=True)
        return path

    def checkpoint_path(self, number: int, fold: int = 0) -> Path:
        """Return the path of a checkpoint, which need not exist."""
        name = f"trial-{number}-fold-{fold}" if fold else f"trial-{number}"
        return self.path / "checkpoints" / name

    def drop_checkpoint(self, number: int, fold: int = 0) -> None:
        """Delete the checkpoint of a trial that has ended."""
        path = self.checkpoint_path(number, fold)
        with self.storage_errors(path):
            path.unlink(missing_ok=True)

    def with_resume_hint(self, error: StorageError) -> StorageError:
        """Return a storage error whose message also says how to continue the run."""
        return StorageError(
            f"{str(error).rstrip('.')}. Finished trials are kept; once there is space, continue "
            f"with tl-auto resume {self.run or self.path}."
        )

    @contextlib.contextmanager
    def storage_errors(self, path: Path) -> Iterator[None]:
        """Turn errors of writing `path` in this block into StorageError with a resume hint.

        Raises
        ------
        StorageError
            Instead of any error of the file system.
        """
        try:
            yield
        except OSError as error:
            message = f"{path} cannot be written: {error.strerror or error}"
            raise self.with_resume_hint(StorageError(message)) from error
        except StorageError as error:
            raise self.with_resume_hint(error) from error

    def clear_checkpoints(self) -> None:
        """Delete all checkpoints, after the search."""
        folder = self.path / "checkpoints"
        with self.storage_errors(folder):
            if folder.is_dir():
                shutil.rmtree(folder)

    def save_best(
        self,
        classifier: ImageClassifier,
        record: TrialRecord,
        *,
        refitted: bool,
        averaged: Sequence[int] = (),
        saved: Path | None = None,
    ) -> None:
        """Save a classifier as the best so far; replace the old one atomically.

        Parameters
        ----------
        averaged
            Numbers of the trials whose weights were averaged; empty: it is the classifier of
            the trial `record`.
        saved
            Folder in which it is saved already: its files are linked, not written again.
        """
        new = self.path / "classifier.new"
        with self.storage_errors(self.path / "classifier"):
            shutil.rmtree(new, ignore_errors=True)
            if saved is None:
                classifier.save(new)
            else:
                shutil.copytree(saved, new, copy_function=_link)
            about = {"refitted": refitted, "averaged": list(averaged)}
            write_json(new / "trial.json", {**asdict(record), **about})
            for file in new.iterdir():
                _sync(file)
            _swap(new, self.path / "classifier")
            _sync(self.path)

    def best(self) -> tuple[TrialRecord, bool] | None:
        """Return the trial of the best classifier, and whether it was refitted with validation."""
        if not (self.classifier() / "trial.json").is_file():
            return None
        record = json.loads((self.classifier() / "trial.json").read_text(encoding="utf-8"))
        return read_trial(record), bool(record["refitted"])

    def averaged_trials(self) -> tuple[int, ...]:
        """Return the trials whose average is the best classifier; empty: it is no average."""
        path = self.classifier() / "trial.json"
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return tuple(record.get("averaged", ()))

    def classifier(self) -> Path:
        """Return the folder of the best classifier so far."""
        target = self.path / "classifier"
        return target if target.is_dir() else _old(target)

    def _finish_swap(self) -> None:
        """Undo the swap of the classifier's folder that a killed process did not finish."""
        target = self.path / "classifier"
        with self.storage_errors(target):
            if not target.is_dir() and _old(target).is_dir():
                _old(target).rename(target)


def read_trial(record: Mapping[str, Any]) -> TrialRecord:
    """Return a trial from its JSON record."""
    return _CONVERTER.structure(record, TrialRecord)


def _old(target: Path) -> Path:
    return target.with_name(target.name + ".old")


def _swap(new: Path, target: Path) -> None:
    """Replace a folder by another; at every moment one of the two is complete.

    A rename cannot replace a folder that is not empty. So the old one is renamed first, and
    `classifier` finds it under its other name.
    """
    if target.is_dir():
        shutil.rmtree(_old(target), ignore_errors=True)
        target.rename(_old(target))
    new.rename(target)
    shutil.rmtree(_old(target), ignore_errors=True)


def _link(source: str, target: str) -> None:
    """Link a file that is never changed in place; copy it where the disk has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
