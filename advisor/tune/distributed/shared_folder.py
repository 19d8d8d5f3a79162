"""A run folder for a run that other machines share without seeing the folder."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from advisor.tune.distributed.artifacts import Board
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
    """A run folder whose settings, advice, phase, checkpoints and best lie on a board as well.

    The coordinator's is the run folder itself, which is complete at the end; a worker's is a
    temporary folder. What is on the board counts, and it is always changed first.

    Attributes
    ----------
    is_guest
        Whether this process only helps.
    """

    board: Board
    is_guest: bool = False

    def write(self, name: str, record: Mapping[str, Any]) -> None:
        """Write a JSON file of the folder, and show it to all."""
        if name in _SHARED:
            self.board.set(name, record)
        super().write(name, record)

    def read(self, name: str) -> dict[str, Any]:
        """Return a JSON file of the folder as all see it."""
        if name not in _SHARED:
            return super().read(name)
        found = self.board.fact(name)
        if found is None:
            raise StorageError(f"The run {self.board.prefix} has no {name} yet.")
        return dict(found)

    def state(self) -> dict[str, Any]:
        """Return how far the run is; empty before it began."""
        return dict(self.board.fact("state.json") or {})

    def abandon(self) -> None:
        """Leave nothing behind: the run could not even begin."""
        super().abandon()
        self.board.take_down()

    def checkpoint(self, number: int, fold: int = 0) -> Path:
        """Return where trial `number` keeps what it has learnt so far, wherever it began."""
        path = super().checkpoint(number, fold)
        self.board.get(_checkpoint(path), path)
        return path

    def share_checkpoint(self, number: int, fold: int = 0) -> None:
        """Let another process go on with a trial where this one stands."""
        path = self.checkpoint_path(number, fold)
        if path.is_file():
            self.board.put(_checkpoint(path), path)

    def drop_checkpoint(self, number: int, fold: int = 0) -> None:
        """Delete what a trial that has ended had learnt."""
        super().drop_checkpoint(number, fold)
        self.board.drop(_checkpoint(self.checkpoint_path(number, fold)))

    def clear_checkpoints(self) -> None:
        """Delete what is in the store: the search is over, and its classifier lies here."""
        super().clear_checkpoints()
        self.board.clear()

    def keep(
        self,
        classifier: ImageClassifier,
        record: TrialRecord,
        *,
        refitted: bool,
        averaged: Sequence[int] = (),
    ) -> None:
        """Make a classifier the best so far, for all, in one step."""
        super().keep(classifier, record, refitted=refitted, averaged=averaged)
        archive = self.path / _ARCHIVE
        with self.writing(archive):
            shutil.make_archive(str(archive.with_suffix("")), "tar", self.path / "classifier")
            self.board.put(_BEST, archive, {**asdict(record), "refitted": refitted})
            archive.unlink()

    def best(self) -> tuple[TrialRecord, bool] | None:
        """Return the best trial of all machines, and whether it was fitted on validation too."""
        found = self.board.fact(_BEST)
        return None if found is None else (read_trial(found), bool(found["refitted"]))

    def classifier(self) -> Path:
        """Return the folder of the best classifier so far, fetched if it was made elsewhere.

        Raises
        ------
        StorageError
            If it is not in the store any more.
        """
        here = RunDir(self.path)
        if self.best() == here.best():
            return here.classifier()
        archive, new = self.path / _ARCHIVE, self.path / "classifier.new"
        with self.writing(archive):
            if not self.board.get(_BEST, archive):
                raise StorageError(f"The best classifier is gone from {self.board.artifacts.name}")
            shutil.rmtree(new, ignore_errors=True)
            shutil.unpack_archive(archive, new, "tar", filter="data")
            archive.unlink()
            self.put_in_place(new)
        return here.classifier()

    def how_to_go_on(self) -> str:
        """Return the command that goes on after something was mended."""
        return self.invitation() if self.is_guest else super().how_to_go_on()

    def invitation(self) -> str:
        """Return the command by which other machines help."""
        name = self.board.prefix.rstrip("/")
        return f"tl-auto worker {name} --storage URL --artifacts {self.board.artifacts.name}"


def share(folder: RunDir, settings: Settings, storage: str | None) -> RunDir:
    """Return the folder of a coordinator: shared if the settings name an artifact store.

    Raises
    ------
    StorageError
        If database or store cannot be used.
    """
    url = storage or settings.storage
    if settings.artifacts is None or url is None:
        return folder
    board = Board(
        url, settings.prefix, settings.artifacts, heartbeat_s=settings.heartbeat_s, new=True
    )
    return SharedRunDir(folder.path, board)


@contextlib.contextmanager
def visit(run: str, storage: str | None, artifacts: str | None) -> Iterator[RunDir]:
    """Give a worker its folder: the run's own, or a temporary one where machines share a store.

    Parameters
    ----------
    run
        A run folder, or the name of a run in the database.

    Raises
    ------
    StorageError
        If there is no such run, or database or store cannot be used.
    """
    name = f"{run.rstrip('/')}/"
    if Path(run).exists() or storage is None or artifacts is None:
        if not Path(run).exists():
            raise StorageError(
                f"There is no folder {run}. Give a run folder, or the name that tl-auto run told, "
                "with --storage and --artifacts."
            )
        folder = RunDir.open(Path(run))
        settings = read_settings(folder)
        name, storage = settings.prefix, storage or settings.storage
        artifacts = artifacts or settings.artifacts
        if artifacts is None or storage is None:
            yield folder
            return
    with tempfile.TemporaryDirectory(prefix="tl-auto-") as own:
        yield SharedRunDir(Path(own), Board(storage, name, artifacts), is_guest=True)


def _checkpoint(path: Path) -> str:
    """Return the name of the fact that points to a checkpoint: "checkpoint trial-3"."""
    return f"checkpoint {path.name}"
