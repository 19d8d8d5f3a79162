"""Incumbent: the best trial of a run so far, and its classifier."""

from collections.abc import Sequence
from pathlib import Path

import torch

from advisor.tune.run_dir.directory import RunDir
from advisor.tune.scheduler import Scheduler
from advisor.types.outcome import TrialRecord
from strategies.models.classifier import ImageClassifier


class Incumbent:
    """The best classifier of a run: on disk, and in memory if this session made it.

    Parameters
    ----------
    folder
        The run directory, which holds it.
    scheduler
        Says which of two trials is better.
    """

    def __init__(self, folder: RunDir, scheduler: Scheduler) -> None:
        self._folder, self.scheduler = folder, scheduler
        self._own: tuple[TrialRecord, ImageClassifier] | None = None

    @property
    def trial(self) -> TrialRecord | None:
        """The best trial so far."""
        best = self._folder.best()
        return best[0] if best else None

    @property
    def is_refitted(self) -> bool:
        """Whether its classifier was fitted to train and validation images together."""
        best = self._folder.best()
        return bool(best and best[1])

    @property
    def averaged_trials(self) -> tuple[int, ...]:
        """Numbers of the trials whose weights it averages; empty if it is a single trial."""
        return self._folder.averaged_trials()

    def is_open(self) -> bool:
        """Return whether the search goes on; after it the incumbent must not change."""
        return self._folder.state().get("phase") == "searching"

    def is_beaten_by(self, record: TrialRecord) -> bool:
        """Return whether a trial is better, by `Scheduler.beats`."""
        return self.scheduler.beats(record, self.trial)

    def replace(
        self,
        classifier: ImageClassifier,
        record: TrialRecord,
        *,
        refitted: bool = False,
        averaged: Sequence[int] = (),
        saved: Path | None = None,
    ) -> None:
        """Make a classifier the incumbent.

        Parameters
        ----------
        averaged
            Numbers of the trials whose weights it averages; empty: it is that of `record`.
        saved
            Folder in which it is saved already.

        Raises
        ------
        StorageError
            If it cannot be written.
        """
        self._folder.save_best(
            classifier, record, refitted=refitted, averaged=averaged, saved=saved
        )
        self._own = record, classifier

    def classifier(self, device: torch.device) -> ImageClassifier:
        """Return its classifier; load it only if an earlier session made it.

        Raises
        ------
        StorageError
            If it is missing or damaged.
        """
        if self._own is not None and self._own[0] == self.trial:
            return self._own[1]
        return ImageClassifier.load(self._folder.classifier(), device)
