"""Run directory shared through database and artifact store, for machines without access to it."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from advisor.tune.distributed.artifacts import SharedRecords
from advisor.tune.run_dir.directory import RunDir, read_trial
from advisor.tune.run_dir.settings import Settings, read_settings
from advisor.types.outcome import TrialRecord
from strategies.core.errors import StorageError
from strategies.models.classifier import ImageClassifier

_SHARED = ("run.json", "state.json", "advice.json")
_BEST = "best"
_ARCHIVE = "classifier.tar"


@dataclass(frozen=True)
class SharedRunDir(RunDir):
    """A run directory that shares settings, advice, phase, checkpoints and the best classifier.

    The coordinator's is the run directory itself, which is complete at the end; a worker's is a
    temporary folder. The shared records are authoritative; the JSON files are changed there first.

    Attributes
    ----------
    records
        The shared records and files.
    is_guest
        Whether this process is a worker, not the coordinator.
    """

    records: SharedRecords
    is_guest: bool = False

    def write(self, name: str, record: Mapping[str, Any]) -> None:
        """Write a JSON file of the run directory, and share it."""
        if name in _SHARED:
            self.records.put_json(name, record)
        super().write(name, record)

    def read(self, name: str) -> dict[str, Any]:
        """Return a JSON file of the run directory, as shared."""
        if name not in _SHARED:
            return super().read(name)
        found = self.records.get_json(name)
        if found is None:
            raise StorageError(f"The run {self.records.prefix} has no {name} yet.")
        return dict(found)

    def state(self) -> dict[str, Any]:
        """Return the phase of the run and when it ends; empty before it began."""
        return dict(self.records.get_json("state.json") or {})

    def abandon(self) -> None:
        """Delete the files and the shared records of a run that could not begin."""
        super().abandon()
        self.records.delete()

    def checkpoint(self, number: int, fold: int = 0) -> Path:
        """Return the checkpoint file of a trial, downloaded if another machine wrote it."""
        path = super().checkpoint(number, fold)
        self.records.get_file(_checkpoint_key(path), path)
        return path

    def share_checkpoint(self, number: int, fold: int = 0) -> None:
        """Upload the checkpoint of a trial, so that another process can continue it."""
        path = self.checkpoint_path(number, fold)
        if path.is_file():
            self.records.put_file(_checkpoint_key(path), path)

    def drop_checkpoint(self, number: int, fold: int = 0) -> None:
        """Delete the checkpoint of a trial that has ended."""
        super().drop_checkpoint(number, fold)
        self.records.drop_file(_checkpoint_key(self.checkpoint_path(number, fold)))

    def clear_checkpoints(self) -> None:
        """Delete all checkpoints and shared files after the search; the classifier is local."""
        super().clear_checkpoints()
        self.records.drop_files()

    def save_best(
        self,
        classifier: ImageClassifier,
        record: TrialRecord,
        *,
        refitted: bool,
        averaged: Sequence[int] = (),
        saved: Path | None = None,
    ) -> None:
        """Save a classifier as the best so far, and share it atomically."""
        super().save_best(classifier, record, refitted=refitted, averaged=averaged, saved=saved)
        archive = self.path / _ARCHIVE
        with self.storage_errors(archive):
            shutil.make_archive(str(archive.with_suffix("")), "tar", self.path / "classifier")
            self.records.put_file(_BEST, archive, {**asdict(record), "refitted": refitted})
            archive.unlink()

    def best(self) -> tuple[TrialRecord, bool] | None:
        """Return the best trial of all machines, and whether it was refitted with validation."""
        found = self.records.get_json(_BEST)
        return None if found is None else (read_trial(found), bool(found["refitted"]))

    def classifier(self) -> Path:
        """Return the folder of the best classifier so far, downloaded if another machine made it.

        Raises
        ------
        StorageError
            If it is no longer in the store.
        """
        local = RunDir(self.path)
        if self.best() == local.best():
            return local.classifier()
        archive, new = self.path / _ARCHIVE, self.path / "classifier.new"
        with self.storage_errors(archive):
            if not self.records.get_file(_BEST, archive):
                raise StorageError(
                    f"{self.records.artifacts.name} no longer has the best classifier"
                )
            shutil.rmtree(new, ignore_errors=True)
            shutil.unpack_archive(archive, new, "tar", filter="data")
            archive.unlink()
            self.install_classifier(new)
        return local.classifier()

    def resume_command(self) -> str:
        """Return the command that continues after the cause of an error was fixed."""
        return self.join_command() if self.is_guest else super().resume_command()

    def join_command(self) -> str:
        """Return the command with which a worker on another machine joins the run."""
        name = self.records.prefix.rstrip("/")
        return f"tl-auto worker {name} --storage URL --artifacts {self.records.artifacts.name}"


def open_for_coordinator(folder: RunDir, settings: Settings) -> RunDir:
    """Return the coordinator's run directory: shared if the settings name an artifact store.

    Raises
    ------
    StorageError
        If the database or the store cannot be used.
    """
    run = settings.run
    if run.artifacts is None or run.storage is None:
        return folder
    records = SharedRecords(
        run.storage, settings.prefix, run.artifacts, heartbeat_s=run.heartbeat_s, new=True
    )
    return SharedRunDir(folder.path, records)


@contextlib.contextmanager
def open_for_worker(run: str, storage: str | None, artifacts: str | None) -> Iterator[RunDir]:
    """Open a worker's run directory: the run's own, or a temporary one with an artifact store.

    Parameters
    ----------
    run
        A run directory, or the name of a run in the database.

    Raises
    ------
    StorageError
        If there is no such run, or the database or the store cannot be used.
    """
    name = f"{run.rstrip('/')}/"
    if Path(run).exists() or storage is None or artifacts is None:
        if not Path(run).exists():
            raise StorageError(
                f"There is no folder {run}. Give a run directory; or the name that tl-auto run "
                "printed, with --storage and --artifacts."
            )
        folder = RunDir.open(Path(run))
        settings = read_settings(folder)
        name, storage = settings.prefix, storage or settings.run.storage
        artifacts = artifacts or settings.run.artifacts
        if artifacts is None or storage is None:
            yield folder
            return
    with tempfile.TemporaryDirectory(prefix="tl-auto-") as own:
        yield SharedRunDir(Path(own), SharedRecords(storage, name, artifacts), is_guest=True)


def _checkpoint_key(path: Path) -> str:
    """Return the name of the record that points to a checkpoint: "checkpoint trial-3"."""
    return f"checkpoint {path.name}"
