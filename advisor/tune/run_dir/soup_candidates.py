"""The best training runs of a run, kept whole on disk for a while: what a soup is made of."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from advisor.tune.run_dir.directory import RunDir
from advisor.tune.validation import Validation
from advisor.types.outcome import TrialRecord
from strategies.from_scratch import FromScratch
from strategies.models.classifier import RECORD_FILE, ImageClassifier
from strategies.registry import get_strategy

MOST = 5
"""So many training runs are kept: a soup gains little from those that are further behind."""


@dataclass(frozen=True)
class SoupCandidates:
    """Classifiers of training runs, one for each fold, in ``soup_candidates/`` of this machine's folder.

    Nothing but a soup reads them: one that is missing or cut short is one less to try, and a
    resumed run finds those that were written before. Machines that share no folder keep theirs.
    """

    folder: RunDir
    n_folds: int

    @staticmethod
    def suits(strategy: str) -> bool:
        """Whether classifiers of a strategy can go into a soup: trained from a common start."""
        return get_strategy(strategy).selects_on_val and strategy != FromScratch.name

    def keep(self, classifier: ImageClassifier, number: int, fold: int) -> None:
        """Write what a trial fitted to one of its folds.

        Raises
        ------
        StorageError
            If it cannot be written.
        """
        target = self._path(number, fold)
        with self.folder.writing(target):
            shutil.rmtree(target, ignore_errors=True)
            classifier.save(target)

    def load(self, number: int, fold: int, device: torch.device | None = None) -> ImageClassifier:
        """Return what a trial fitted to one of its folds.

        Raises
        ------
        StorageError
            If it is not there, or damaged.
        """
        return ImageClassifier.load(self._path(number, fold), device)

    def best(self, records: Sequence[TrialRecord]) -> list[TrialRecord]:
        """Return those of some trials that are here whole, the best on validation first."""
        scored = [r for r in records if r.val_accuracy is not None and self.suits(r.strategy)]
        here = [r for r in scored if self._is_whole(r.number)]
        return sorted(here, key=lambda r: (-r.val_accuracy.mid if r.val_accuracy else 0, r.number))

    def n_reserved(self, records: Sequence[TrialRecord], validation: Validation) -> int:
        """Return how many images a soup would look at once one more training is done."""
        here = self.best(records)[: MOST - 1]
        return len(here) * self.n_looked_at(here, validation)

    def n_looked_at(self, members: Sequence[TrialRecord], validation: Validation) -> int:
        """Return how many images the average of some training runs looks at, until it is judged.

        All that trials are judged on; and those they learn from, where BatchNorm's statistics
        differ and are taken again.
        """
        policies = {r.hyperparameters.get("batch_norm") for r in members}
        again = len(policies) > 1 or "trained" in policies
        return validation.n + again * sum(len(fold.train) for fold in validation.folds)

    def drop_others(self, records: Sequence[TrialRecord]) -> None:
        """Delete all but the `MOST` best of the trials that have ended."""
        kept = [r.number for r in self.best(records)[:MOST]]
        for record in records:
            if record.number not in kept:
                for fold in range(self.n_folds):
                    shutil.rmtree(self._path(record.number, fold), ignore_errors=True)

    def clear(self) -> None:
        """Delete all: the run is over."""
        root = self.folder.path / "soup_candidates"
        with self.folder.writing(root):
            if root.is_dir():
                shutil.rmtree(root)

    def _is_whole(self, number: int) -> bool:
        """Whether all folds are there; of each the record is written last."""
        paths = [self._path(number, fold) for fold in range(self.n_folds)]
        return all((path / RECORD_FILE).is_file() for path in paths)

    def _path(self, number: int, fold: int) -> Path:
        return self.folder.path / "soup_candidates" / f"trial-{number}-fold-{fold}"
