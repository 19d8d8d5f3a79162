"""Soup candidates: the classifiers of the best training runs, on disk until the run ends."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from advisor.tune.run_dir.directory import RunDir
from advisor.tune.trials.validation import Validation
from advisor.types.outcome import TrialRecord
from strategies.models.classifier import RECORD_FILE, ImageClassifier
from strategies.registry import get_strategy

MOST = 5
"""Number of training runs that are kept: a soup gains little from worse ones."""


@dataclass(frozen=True)
class SoupCandidates:
    """Classifiers of training runs, one per fold, in ``soup_candidates/`` of the run directory.

    Only the soup reads them. One that is missing or truncated is skipped, and a resumed run uses
    those that were written before.
    """

    folder: RunDir
    n_folds: int

    @staticmethod
    def accepts(strategy: str) -> bool:
        """Return whether a strategy's classifiers can be averaged: it fine-tunes a network."""
        kind = get_strategy(strategy)
        return kind.trains_network and kind.role == "transfer"

    def save(self, classifier: ImageClassifier, number: int, fold: int) -> None:
        """Save the classifier that a trial fitted to one of its folds.

        Raises
        ------
        StorageError
            If it cannot be written.
        """
        target = self.path(number, fold)
        with self.folder.storage_errors(target):
            shutil.rmtree(target, ignore_errors=True)
            classifier.save(target)

    def load(self, number: int, fold: int, device: torch.device | None = None) -> ImageClassifier:
        """Load the classifier that a trial fitted to one of its folds.

        Raises
        ------
        StorageError
            If it is missing or damaged.
        """
        return ImageClassifier.load(self.path(number, fold), device)

    def best(self, records: Sequence[TrialRecord]) -> list[TrialRecord]:
        """Return the trials with complete candidates on disk, the best on validation first."""
        scored = [r for r in records if r.val_accuracy is not None and self.accepts(r.strategy)]
        complete = [r for r in scored if self._is_complete(r.number)]
        return sorted(
            complete, key=lambda r: (-r.val_accuracy.mid if r.val_accuracy else 0, r.number)
        )

    def n_reserved(self, records: Sequence[TrialRecord], validation: Validation) -> int:
        """Return how many images a soup would read if one more training run finished."""
        members = self.best(records)[: MOST - 1]
        return len(members) * self.n_images_read(members, validation)

    def n_images_read(self, members: Sequence[TrialRecord], validation: Validation) -> int:
        """Return how many images are read to validate the average of some training runs.

        These are all images that trials are scored on. If the BatchNorm statistics of the members
        differ and are recomputed, the training images are read too.
        """
        policies = {r.hyperparameters.get("batch_norm") for r in members}
        recompute_bn = len(policies) > 1 or "trained" in policies
        return validation.n + recompute_bn * sum(len(fold.train) for fold in validation.folds)

    def drop_others(self, records: Sequence[TrialRecord]) -> None:
        """Delete all but the `MOST` best candidates of the trials that have ended."""
        kept = [r.number for r in self.best(records)[:MOST]]
        for record in records:
            if record.number not in kept:
                for fold in range(self.n_folds):
                    shutil.rmtree(self.path(record.number, fold), ignore_errors=True)

    def clear(self) -> None:
        """Delete all candidates, after the run."""
        root = self.folder.path / "soup_candidates"
        with self.folder.storage_errors(root):
            if root.is_dir():
                shutil.rmtree(root)

    def _is_complete(self, number: int) -> bool:
        """Return whether all folds have a record file, which is written last."""
        paths = [self.path(number, fold) for fold in range(self.n_folds)]
        return all((path / RECORD_FILE).is_file() for path in paths)

    def path(self, number: int, fold: int) -> Path:
        """Return the folder of the classifier that a trial fitted to one of its folds."""
        return self.folder.path / "soup_candidates" / f"trial-{number}-fold-{fold}"
