"""Search loop of one process: claim a trial, fit and score it, keep the best classifier.

Any number of processes may take part in the search of one run. They share the database of the
trials (Optuna) and the best classifier, in the run directory or in an artifact store. What each
process does next depends on nothing else.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import optuna
import torch

from advisor.tune.distributed.database import retry_if_lock_lost
from advisor.tune.interrupt import Interrupt
from advisor.tune.interventions import BACKBONE, backbone_of, hyperparameters_of
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.run_dir.soup_candidates import SoupCandidates
from advisor.tune.scheduler import Scheduler
from advisor.tune.study import Claim, Trials, report_values
from advisor.tune.time_budget import TimeBudget
from advisor.tune.validation import Validation
from advisor.types.events import Event, OnEvent
from advisor.types.outcome import Ended, TrialRecord
from strategies.core.activation_store import ActivationStore
from strategies.core.context import RunContext
from strategies.core.errors import DataError, OutOfTime, StorageError, TransferError
from strategies.core.metrics import Interval, proportion
from strategies.core.progress import OnEpoch
from strategies.data.dataset import Dataset, Split, labels_of
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier
from strategies.registry import get_strategy
from strategies.training.trainer import ROUNDS

POLL_S = 0.5
"""Seconds between the checks of a process that waits for trials of other processes."""


@dataclass(frozen=True)
class SearchResult:
    """All trials, the best of them, and its classifier.

    Attributes
    ----------
    refitted
        Whether the classifier was fitted on train and validation together.
    """

    trials: tuple[TrialRecord, ...]
    best: TrialRecord
    classifier: ImageClassifier
    refitted: bool


@dataclass(frozen=True)
class Search:
    """What one process needs to take part in a search.

    Attributes
    ----------
    dataset
        The dataset without its test split.
    on_event
        Called at every event of this process's trials.
    soup_candidates
        Store of the best training runs, for a soup; None: there will be no soup.
    activation_store
        Activations of frozen stages, shared by all training runs of this process.
    """

    dataset: Dataset
    backbone: Backbone
    ctx: RunContext
    folder: RunDir
    trials: Trials
    scheduler: Scheduler
    budget: TimeBudget
    interrupt: Interrupt
    on_event: OnEvent
    validation: Validation
    soup_candidates: SoupCandidates | None = None
    activation_store: ActivationStore = field(default_factory=ActivationStore)

    def run(self, *, stop_at_first: bool = False) -> None:
        """Claim and run trials and keep the best classifier, until nothing is left to try.

        Parameters
        ----------
        stop_at_first
            Whether to stop as soon as there is a first classifier.

        Raises
        ------
        DataError
            If there are no validation images to select on.
        StorageError
            If the run directory or the database cannot be written.
        """
        if not self.dataset.val:
            raise DataError(
                f"{self.dataset.root} has no class with three images, so there are no validation "
                "images to select on. Add images, or give a folder of them with --val."
            )
        while not (self.interrupt.requested or (stop_at_first and self.folder.best())):
            claim, others_are_running = retry_if_lock_lost(self._claim)
            if claim is not None:
                self._run_trial(claim)
            elif others_are_running and self.budget.left_s() > 0:
                time.sleep(POLL_S)
            else:
                break

    def _claim(self) -> tuple[Claim | None, bool]:
        """Claim the next trial; also return whether other processes are running trials."""
        with self.trials.lock.held():
            if not self.is_searching() or self.budget.left_s() <= 0:
                return None, False
            best = self.folder.best()
            if best:
                self.budget.incumbent_is_trained = get_strategy(best[0].strategy).trains_network
            self.trials.requeue_dead(own=False, kept=best and best[0])
            snapshot = self.trials.snapshot()
            if self.soup_candidates:
                self.budget.n_soup_images = self.soup_candidates.n_reserved(
                    snapshot.done, self.validation
                )
            min_fit_s = len(self.validation.folds) * self.budget.min_fit_s()
            strategy = self.scheduler.choose(snapshot, self.budget.left_s(), min_fit_s)
            start: Mapping[str, Any] = {}
            if strategy is not None:
                space = self.trials.spaces[strategy]
                start = self.scheduler.start(strategy, snapshot, space, self.budget.left_s())
            claim = self.trials.claim(strategy, start)
        return claim, bool(snapshot.unfinished)

    def is_searching(self) -> bool:
        """Return whether the search goes on; after it the best classifier must not change."""
        return self.folder.state().get("phase") == "searching"

    def _run_trial(self, claim: Claim) -> None:
        """Run one trial to its end: it gets a score, or a reason why it has none."""
        self._emit(claim, "begun")
        start = time.monotonic()
        pruned = False
        classifier, accuracy, reason = None, None, None
        try:
            with self.trials.heartbeat(claim), self.interrupt.interruptible():
                classifier, accuracy = self._fit(claim)
        except KeyboardInterrupt:
            if self.interrupt.requested_twice:
                raise
            reason = "interrupted"
        except optuna.TrialPruned:
            pruned, reason = True, f"pruned: {self.trials.pruning_reason}"
        except StorageError as error:  # not the trial's fault: it is run again after a resume
            raise self.folder.with_resume_hint(error) from error
        except TransferError as error:
            reason = str(error)
        except (MemoryError, RuntimeError) as error:
            reason = out_of_memory_reason(error)
        used = dict(classifier.hyperparameters if classifier else claim.trial.params)
        if BACKBONE in claim.start:
            used[BACKBONE] = claim.start[BACKBONE]
        seconds = round(time.monotonic() - start, 3)
        record = TrialRecord(claim.number, claim.strategy, used, accuracy, seconds, reason, pruned)
        refitted = self._refit_with_val(claim, record)
        final = refitted or classifier
        finish = partial(self._finish, claim, record, final, refitted=refitted is not None)
        with self.trials.heartbeat(claim):  # waiting for the lock and saving may take long
            retry_if_lock_lost(finish)
        for number in range(len(self.validation.folds)):
            self.folder.drop_checkpoint(claim.number, number)

    def _fit(self, claim: Claim) -> tuple[ImageClassifier, Interval]:
        strategy = get_strategy(claim.strategy).from_hyperparameters(claim.hyperparameters)
        backbone = backbone_of(claim.start, self.backbone)
        refusal = strategy.inapplicable(self.dataset, backbone)
        if refusal is not None:
            raise TransferError(refusal)

        def fit(fold: Dataset, number: int, n_left: int) -> ImageClassifier:
            ctx = replace(
                self.ctx,
                deadline_s=self.budget.fold_ends_s(n_left),
                reporter=replace(self.ctx.reporter, on_epoch=self._on_epoch(claim, fold, number)),
                training=replace(
                    self.ctx.training,
                    checkpoint=self.folder.checkpoint(claim.number, number),
                    activation_store=self.activation_store,
                ),
            )
            classifier = strategy.fit(fold, backbone, ctx)
            if self.soup_candidates and self.soup_candidates.accepts(claim.strategy):
                self.soup_candidates.save(classifier, claim.number, number)
            return classifier

        def on_fold(hits: Mapping[int, float]) -> None:
            if by_folds and strategy.trains_network and report_values(claim.trial, hits):
                raise optuna.TrialPruned

        by_folds = len(self.validation.folds) > 1
        known = self.trials.reported_values(claim) if by_folds else {}
        return self.validation.score(fit, self._score_images, on_fold, known)

    def _score_images(self, classifier: ImageClassifier, split: Split) -> list[float]:
        """Return 1.0 for each correctly classified image, else 0.0; time the prediction."""
        start = time.monotonic()
        probabilities = classifier.predict_proba(
            [p.path for p in split], n_workers=self.ctx.n_workers, precision=self.ctx.precision
        )
        self.budget.saw(len(split), time.monotonic() - start, classifier.backbone.input_px)
        is_correct = probabilities.argmax(axis=1) == labels_of(split)
        hits: list[float] = is_correct.astype(float).tolist()
        return hits

    def _refit_with_val(self, claim: Claim, record: TrialRecord) -> ImageClassifier | None:
        """Refit a probe that is the new incumbent on train and validation together.

        This is done at once, while its features are still in memory. None if the trial is no
        probe or not better than the incumbent, or if less time is left than the probe itself took.
        """
        strategy, best = get_strategy(record.strategy), self.folder.best()
        if strategy.trains_network or not self.scheduler.beats(record, best and best[0]):
            return None
        if self.budget.left_s() <= record.seconds:
            return None
        train_and_val = self.dataset.with_val_in_train()
        ctx = self.ctx.with_deadline(self.budget.search_ends_s())
        try:
            with self.trials.heartbeat(claim):
                backbone = backbone_of(record.hyperparameters, self.backbone)
                chosen = strategy.from_hyperparameters(hyperparameters_of(record.hyperparameters))
                return chosen.fit(train_and_val, backbone, ctx)
        except OutOfTime as error:
            why = str(error)
        except (MemoryError, RuntimeError) as error:
            why = out_of_memory_reason(error)
        self.ctx.reporter.on_note(
            f"{record.strategy} was not refitted on train and validation together: {why}"
        )
        return None

    def _on_epoch(self, claim: Claim, fold: Dataset, number: int) -> OnEpoch:
        def on_epoch(epoch: int, val_accuracy: float | None) -> None:
            self.ctx.reporter.on_progress("this trial", epoch, ROUNDS)
            if val_accuracy is None:
                return
            interval = proportion(val_accuracy, len(fold.val))
            self._emit(claim, "round", step=epoch, accuracy=interval)
            if len(self.validation.folds) == 1 and report_values(
                claim.trial, {epoch: val_accuracy}
            ):
                raise optuna.TrialPruned
            self.folder.share_checkpoint(claim.number, number)

        return on_epoch

    def _finish(
        self,
        claim: Claim,
        record: TrialRecord,
        classifier: ImageClassifier | None,
        *,
        refitted: bool,
    ) -> None:
        """Save the classifier if it is the best, then record the trial as finished, in this order.

        If the process is killed in between, the trial counts as complete later: its score is
        saved with the classifier.
        """
        with self.trials.lock.held():
            best = self.folder.best()
            is_best = self.is_searching() and self.scheduler.beats(record, best and best[0])
            if classifier is not None and is_best:
                self.trials.lock.check_held()
                self.folder.save_best(classifier, record, refitted=refitted)
            self.trials.tell(claim, record)
            done = self.trials.snapshot().done
            self.folder.write_trials(done)
            if self.soup_candidates:
                self.soup_candidates.drop_others(done)
        self._emit(claim, "ended", accuracy=record.val_accuracy, reason=record.reason)

    def _emit(self, claim: Claim, kind: Any, **facts: Any) -> None:
        best = self.folder.best()
        event = Event(
            kind,
            claim.number,
            claim.strategy,
            self.budget.left_s(),
            best=best[0] if best else None,
            **facts,
        )
        accuracy = event.accuracy
        self.folder.log_event(
            "trial " + kind,
            number=event.number,
            strategy=event.strategy,
            owner=self.trials.owner,
            step=event.step,
            val_accuracy=None if accuracy is None else asdict(accuracy),
            reason=event.reason,
        )
        self.on_event(event)

    def end_reason(self) -> Ended:
        """Return why the search ended."""
        if self.interrupt.requested:
            return "interrupted"
        return self.scheduler.end_reason(self.trials.snapshot())

    def result(self) -> SearchResult:
        """Return the trials and the best classifier.

        Raises
        ------
        OutOfTime
            If no trial finished.
        """
        records = self.trials.snapshot().done
        saved = self.folder.best()
        if saved is None:
            why = "; ".join(f"{r.strategy}: {r.reason}" for r in records) or "no time was left"
            raise OutOfTime(f"No trial finished ({why}). Give more --time.")
        best, refitted = saved
        classifier = ImageClassifier.load(self.folder.classifier(), self.ctx.device)
        return SearchResult(records, best, classifier, refitted)


def out_of_memory_reason(error: MemoryError | RuntimeError) -> str:
    """Return the reason for a trial that ran out of memory; raise any other error again."""
    message = str(error)
    if not isinstance(error, MemoryError | torch.OutOfMemoryError) and (
        "can't allocate memory" not in message
    ):
        raise error
    first = message.splitlines()[0] if message else "an allocation failed"
    return f"out of memory: {first}"
