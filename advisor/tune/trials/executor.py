"""Executor: fit and score trials one after the other in this process."""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import optuna
import torch

from advisor.tune.interrupt import Interrupt
from advisor.tune.interventions import BACKBONE, backbone_of, hyperparameters_of
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.run_dir.soup_candidates import SoupCandidates
from advisor.tune.time_budget import TimeBudget
from advisor.tune.trials.job import Executor, Job, OnScore, Score, TrialResult
from advisor.tune.trials.validation import Validation
from advisor.types.outcome import TrialRecord
from strategies.base import Strategy
from strategies.core.activation_store import ActivationStore
from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime, StorageError, TransferError
from strategies.core.metrics import Interval, proportion
from strategies.core.progress import OnEpoch
from strategies.data.dataset import Dataset, Split, labels_of
from strategies.heads.linear_head import scores_on_features
from strategies.models.backbone import Backbone, resized
from strategies.models.classifier import ImageClassifier
from strategies.models.features import INFERENCE_BATCH, not_cached
from strategies.registry import get_strategy
from strategies.training.loop import ROUNDS


@dataclass(frozen=True)
class LocalExecutor(Executor):
    """Fits and scores trials in this process, one after the other.

    Attributes
    ----------
    validation
        The folds that trials are scored on.
    soup_candidates
        Store of the best training runs, for a soup; None: there will be no soup.
    activation_store
        Activations of frozen stages and evaluation crops, shared by all training runs of this
        process.
    """

    backbone: Backbone
    ctx: RunContext
    folder: RunDir
    validation: Validation
    budget: TimeBudget
    interrupt: Interrupt
    soup_candidates: SoupCandidates | None = None
    activation_store: ActivationStore = field(default_factory=ActivationStore)

    @property
    def dataset(self) -> Dataset:
        """The dataset without its test split."""
        return self.validation.folds[0]

    def measured_part(self) -> Dataset | None:
        """Return the part of the dataset whose features are in the cache, perhaps all of it.

        None if a class has no train image in it or there is no validation image: nothing can be
        fitted and scored then.
        """
        dataset = self.dataset
        missing = {
            image.digest for image in not_cached(dataset.fit_split, self.backbone, self.ctx)
        }
        train = tuple(image for image in dataset.train if image.digest not in missing)
        val = tuple(image for image in dataset.val if image.digest not in missing)
        has_all_classes = len({image.label for image in train}) == dataset.n_classes
        if not val or not has_all_classes:
            return None
        return replace(dataset, train=train, val=val) if missing else dataset

    def fit_head(self, job: Job, part: Dataset) -> TrialResult:
        """Fit a head to cached features of a part of the dataset, and score it on others of them.

        No image is read. The classifier is fitted to train and validation images together.
        """
        start = time.monotonic()
        strategy = get_strategy(job.strategy).from_hyperparameters(job.hyperparameters)
        hits = self._score_images(strategy.fit(part, self.backbone, self.ctx), part.val)
        accuracy = proportion(float(np.mean(hits)), len(hits))
        classifier = strategy.fit(part.with_val_in_train(), self.backbone, self.ctx)
        record = TrialRecord(
            job.number,
            job.strategy,
            dict(classifier.hyperparameters),
            accuracy,
            round(time.monotonic() - start, 3),
            reason=None,
            n_train=None if part == self.dataset else len(part.train),
        )
        return TrialResult(record, classifier)

    @property
    def capacity(self) -> int:
        """One trial at a time."""
        return 1

    def compute_features(self) -> None:
        """Leave features to the first trial: there is one process."""

    def submit(self, job: Job, on_score: OnScore) -> Future[TrialResult]:
        """Run a trial to its end; return its result as a future that is done."""
        future: Future[TrialResult] = Future()
        future.set_result(self.run(job, on_score))
        return future

    def wait(self, futures: Collection[Future[TrialResult]]) -> list[Future[TrialResult]]:
        """Return all futures: they are done."""
        return list(futures)

    def run(self, job: Job, on_score: OnScore) -> TrialResult:
        """Run one trial to its end: it gets a score, or a reason why it has none.

        Raises
        ------
        StorageError
            If the run directory cannot be written. The trial is run again after a resume.
        KeyboardInterrupt
            If Ctrl-C was pressed twice, or nobody handles it (`Interrupt.handle_sigint`).
        """
        start = time.monotonic()
        pruned = False
        classifier, accuracy, reason = None, None, None
        try:
            with self.interrupt.interruptible():
                classifier, accuracy = self._fit(job, on_score)
        except KeyboardInterrupt:
            if self.interrupt.requested_twice or not self.interrupt.requested:
                raise
            reason = "interrupted"
        except optuna.TrialPruned:
            pruned = True
        except StorageError as error:
            raise self.folder.with_resume_hint(error) from error
        except TransferError as error:
            reason = str(error)
        except (MemoryError, RuntimeError) as error:
            reason = out_of_memory_reason(error)
        used = dict(classifier.hyperparameters) if classifier else job.hyperparameters
        if BACKBONE in job.settings:
            used[BACKBONE] = job.settings[BACKBONE]
        seconds = round(time.monotonic() - start, 3)
        record = TrialRecord(job.number, job.strategy, used, accuracy, seconds, reason, pruned)
        return TrialResult(record, classifier, self._saved(job) if classifier else None)

    def refit(self, record: TrialRecord) -> ImageClassifier | None:
        """Fit a scored trial again on train and validation together.

        This is done at once, while its features are still in memory. None if it trains a network,
        which needs validation images, or if less time is left than the trial itself took.
        """
        strategy = get_strategy(record.strategy)
        if strategy.trains_network or self.budget.left_s(n_val=0) <= record.seconds:
            return None
        ctx = self.ctx.with_deadline(self.budget.search_ends_s())
        try:
            backbone = backbone_of(record.hyperparameters, self.backbone)
            chosen = strategy.from_hyperparameters(hyperparameters_of(record.hyperparameters))
            return chosen.fit(self.dataset.with_val_in_train(), backbone, ctx)
        except OutOfTime as error:
            why = str(error)
        except (MemoryError, RuntimeError) as error:
            why = out_of_memory_reason(error)
        self.ctx.reporter.on_note(
            f"{record.strategy} was not refitted on train and validation together: {why}"
        )
        return None

    def n_soup_images(self, done: Sequence[TrialRecord]) -> int:
        """Return how many images a soup would read if one more training run finished."""
        pool = self.soup_candidates
        return 0 if pool is None else pool.n_reserved(done, self.validation)

    def forget(self, job: Job) -> None:
        """Delete the checkpoints of a trial that has ended."""
        for number in range(len(self.validation.folds)):
            self.folder.drop_checkpoint(job.number, number)

    def clear(self) -> None:
        """Delete the checkpoints and soup candidates of all trials, after the run."""
        self.folder.clear_checkpoints()
        if self.soup_candidates:
            self.soup_candidates.clear()

    def _fit(self, job: Job, on_score: OnScore) -> tuple[ImageClassifier, Interval]:
        strategy = get_strategy(job.strategy).from_hyperparameters(job.hyperparameters)
        backbone = backbone_of(job.settings, self.backbone)
        refusal = strategy.inapplicable(self.dataset, backbone)
        if refusal is not None:
            raise TransferError(refusal)
        self.budget.begin_fit(resized(backbone, job.hyperparameters.get("input_px")).input_px)

        def fit(fold: Dataset, number: int, n_left: int) -> ImageClassifier:
            on_epoch = self._on_epoch(job, fold, on_score)
            n_to_pass = self._n_to_pass(strategy, backbone, fold)
            ctx = replace(
                self.ctx,
                deadline_s=self.budget.fold_ends_s(n_left, n_to_pass),
                reporter=replace(self.ctx.reporter, on_epoch=on_epoch),
                training=replace(
                    self.ctx.training,
                    checkpoint=self.folder.checkpoint(job.number, number),
                    activation_store=self.activation_store,
                ),
            )
            classifier = strategy.fit(fold, backbone, ctx)
            if self.soup_candidates and self.soup_candidates.accepts(job.strategy):
                self.soup_candidates.save(classifier, job.number, number)
            return classifier

        def on_fold(hits: Mapping[int, float]) -> None:
            may_prune = by_folds and strategy.trains_network
            if may_prune and on_score(job, Score(values=hits)):
                raise optuna.TrialPruned

        by_folds = len(self.validation.folds) > 1
        known = job.known if by_folds else {}
        return self.validation.score(fit, self._score_images, on_fold, known)

    def _n_to_pass(self, strategy: Strategy, backbone: Backbone, fold: Dataset) -> int:
        """Return how many validation images must pass the network to score a fit."""
        given = strategy.hyperparameters()
        if strategy.head_loss is None or given.get("pooling", "mean") != "mean":
            return len(fold.val)
        return len(not_cached(fold.val, resized(backbone, given.get("input_px")), self.ctx))

    def _saved(self, job: Job) -> Path | None:
        if self.soup_candidates is None or not self.soup_candidates.accepts(job.strategy):
            return None
        return self.soup_candidates.path(job.number, 0)

    def _score_images(self, classifier: ImageClassifier, split: Split) -> list[float]:
        """Return 1.0 for each correctly classified image, else 0.0; time the prediction.

        A head on mean-pooled features is scored on features, which may be in the cache already.
        The time includes that of reading the crops that were in memory: test images will be read.
        """
        crops = self.activation_store.eval_crops
        start, saved_s, n_passed = time.monotonic(), crops.saved_s, len(split)
        is_head = get_strategy(classifier.strategy).head_loss is not None
        if is_head and classifier.pooling == "mean":
            n_passed = len(not_cached(split, classifier.backbone, self.ctx))
            predicted = scores_on_features(classifier, split, self.ctx).argmax(axis=1)
        else:
            predicted = classifier.predict_proba(
                [p.path for p in split],
                n_workers=self.ctx.n_workers,
                precision=self.ctx.precision,
                eval_crops=crops,
            ).argmax(axis=1)
        took_s = time.monotonic() - start
        took_s += reading_s(crops.saved_s - saved_s, len(split), self.ctx.n_workers)
        if n_passed >= INFERENCE_BATCH:  # fewer say little about the speed
            self.budget.observe_prediction(n_passed, took_s, classifier.backbone.input_px)
        hits: list[float] = (predicted == labels_of(split)).astype(float).tolist()
        return hits

    def _on_epoch(self, job: Job, fold: Dataset, on_score: OnScore) -> OnEpoch:
        def on_epoch(epoch: int, val_accuracy: float | None) -> None:
            self.ctx.reporter.on_progress("this trial", epoch, ROUNDS)
            if val_accuracy is None:
                return
            values = {epoch: val_accuracy} if len(self.validation.folds) == 1 else {}
            accuracy = proportion(val_accuracy, len(fold.val))
            if on_score(job, Score(epoch, accuracy, values)):
                raise optuna.TrialPruned

        return on_epoch


def reading_s(summed_s: float, n: int, n_workers: int) -> float:
    """Return the seconds in which `n_workers` threads read `n` images, each whole batches.

    Parameters
    ----------
    summed_s
        Seconds that reading them takes, summed over the threads.
    """
    return summed_s / max(1, min(n_workers, math.ceil(n / INFERENCE_BATCH)))


def out_of_memory_reason(error: MemoryError | RuntimeError) -> str:
    """Return the reason for a trial that ran out of memory; raise any other error again."""
    message = str(error)
    if not isinstance(error, MemoryError | torch.OutOfMemoryError) and (
        "can't allocate memory" not in message
    ):
        raise error
    first = message.splitlines()[0] if message else "an allocation failed"
    return f"out of memory: {first}"
