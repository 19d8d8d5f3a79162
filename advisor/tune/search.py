"""search(): advice to trials and the best classifier, under a deadline, with Optuna.

Any number of processes may run it for one run. What they share is the database of the trials and
the best classifier, in one folder or in a store; what each does next depends on nothing else.
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
from advisor.tune.interventions import BACKBONE, backbone_of, hyperparameters_of, suggest_fixed
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.run_dir.soup_candidates import SoupCandidates
from advisor.tune.scheduler import Scheduler
from advisor.tune.study import Claim, Trials, report
from advisor.tune.time_budget import TimeBudget
from advisor.tune.validation import Validation
from advisor.types.events import Event, OnEvent
from advisor.types.outcome import Ended, TrialRecord
from strategies.core.activation_store import ActivationStore
from strategies.core.context import OnEpoch, RunContext
from strategies.core.errors import DataError, OutOfTime, StorageError, TransferError
from strategies.core.metrics import Interval, proportion
from strategies.data.dataset import Dataset, Split, labels_of
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier
from strategies.registry import get_strategy
from strategies.training.trainer import ROUNDS

POLL_S = 0.5
"""How often a process that waits for others looks again."""


@dataclass(frozen=True)
class SearchResult:
    """All trials, the best of them, and its classifier."""

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
        Without its test split.
    on_event
        Hears of every trial of this process.
    ingredients
        Where the best training runs are kept for a soup; None: nowhere, there will be none.
    kept
        What frozen stages make of the images, for all training runs of this process.
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

    def run(self, *, until_found: bool = False) -> None:
        """Take part: claim a trial, run it, keep the best, until nothing is left to try.

        Parameters
        ----------
        until_found
            Whether a first classifier is enough.

        Raises
        ------
        DataError
            If there are no validation images to select on.
        StorageError
            If the run folder or the database cannot be written.
        """
        if not self.dataset.val:
            raise DataError(
                f"{self.dataset.root} has no class with three images, so none can be set aside to "
                "select on. Add images, or give a folder of them with --val."
            )
        while not (self.interrupt.asked or (until_found and self.folder.best())):
            claim, others_at_work = retry_if_lock_lost(self._claim)
            if claim is not None:
                self._run_trial(claim)
            elif others_at_work and self.budget.left_s() > 0:
                time.sleep(POLL_S)
            else:
                break

    def _claim(self) -> tuple[Claim | None, bool]:
        """Claim the next trial; also tell whether other processes are at work on some."""
        with self.trials.lock.held():
            if not self.is_open() or self.budget.left_s() <= 0:
                return None, False
            known = self.folder.best()
            if known:
                self.budget.training_leads = get_strategy(known[0].strategy).selects_on_val
            self.trials.requeue_dead(own=False, kept=known and known[0])
            snapshot = self.trials.snapshot()
            if self.soup_candidates:
                self.budget.n_soup = self.soup_candidates.n_reserved(
                    snapshot.done, self.validation
                )
            shortest_s = len(self.validation.folds) * self.budget.shortest_s()
            strategy = self.scheduler.choose(snapshot, self.budget.left_s(), shortest_s)
            start: Mapping[str, Any] = {}
            if strategy is not None:
                space = self.trials.distributions(strategy)
                start = self.scheduler.start(strategy, snapshot, space, self.budget.left_s())
            claim = self.trials.claim(strategy, start)
        return claim, bool(snapshot.under_way)

    def is_open(self) -> bool:
        """Whether the search still goes on: what has been judged is not replaced."""
        return self.folder.state().get("phase") == "searching"

    def _run_trial(self, claim: Claim) -> None:
        """Run one trial to its end: a score, or a reason and no score."""
        self._tell(claim, "begun")
        start = time.monotonic()
        pruned = False
        classifier, accuracy, reason = None, None, None
        try:
            with self.trials.heartbeat(claim), self.interrupt.allowed():
                classifier, accuracy = self._fit(claim)
        except KeyboardInterrupt:
            if self.interrupt.asked_twice:
                raise
            reason = "interrupted"
        except optuna.TrialPruned:
            pruned, reason = True, f"pruned: {self.trials.pruned_because}"
        except StorageError as error:  # no fault of the trial's: it waits until there is room
            raise self.folder.needs_room(error) from error
        except TransferError as error:
            reason = str(error)
        except (MemoryError, RuntimeError) as error:
            reason = out_of_memory(error)
        used = dict(classifier.hyperparameters if classifier else claim.trial.params)
        if BACKBONE in claim.start:
            used[BACKBONE] = claim.start[BACKBONE]
        seconds = round(time.monotonic() - start, 3)
        record = TrialRecord(claim.number, claim.strategy, used, accuracy, seconds, reason, pruned)
        last = self._with_val(claim, record)
        kept = last or classifier
        finish = partial(self._finish, claim, record, kept, refitted=last is not None)
        with self.trials.heartbeat(
            claim
        ):  # to keep a classifier may take long, and to wait for that
            retry_if_lock_lost(finish)
        for number in range(len(self.validation.folds)):
            self.folder.drop_checkpoint(claim.number, number)

    def _fit(self, claim: Claim) -> tuple[ImageClassifier, Interval]:
        drawn = get_strategy(claim.strategy).suggest(claim.trial, self.dataset, self.backbone)
        strategy = suggest_fixed(drawn, claim.trial)
        backbone = backbone_of(claim.start, self.backbone)
        refusal = strategy.inapplicable(self.dataset, backbone)
        if refusal is not None:
            raise TransferError(refusal)

        def fit(fold: Dataset, number: int, n_left: int) -> ImageClassifier:
            ctx = replace(
                self.ctx,
                on_epoch=self._reporter(claim, fold, number),
                checkpoint=self.folder.checkpoint(claim.number, number),
                deadline_s=self.budget.fold_ends_s(n_left),
                activation_store=self.activation_store,
            )
            classifier = strategy.fit(fold, backbone, ctx)
            if self.soup_candidates and self.soup_candidates.suits(claim.strategy):
                self.soup_candidates.keep(classifier, claim.number, number)
            return classifier

        def hear(hits: Mapping[int, float]) -> None:
            if by_folds and strategy.selects_on_val and report(claim.trial, hits):
                raise optuna.TrialPruned

        by_folds = len(self.validation.folds) > 1
        known = self.trials.reported(claim) if by_folds else {}
        return self.validation.score(fit, self._judge, hear, known)

    def _judge(self, classifier: ImageClassifier, split: Split) -> list[float]:
        start = time.monotonic()
        said = classifier.predict_proba(
            [p.path for p in split], n_workers=self.ctx.n_workers, precision=self.ctx.precision
        )
        self.budget.saw(len(split), time.monotonic() - start, classifier.backbone.input_px)
        hits: list[float] = (said.argmax(axis=1) == labels_of(split)).astype(float).tolist()
        return hits

    def _with_val(self, claim: Claim, record: TrialRecord) -> ImageClassifier | None:
        """Fit a probe that leads once more, with validation: at once, while its features are at hand.

        None if there is nothing to fit, or less time for it than the probe itself took.
        """
        strategy, known = get_strategy(record.strategy), self.folder.best()
        if strategy.selects_on_val or not self.scheduler.beats(record, known and known[0]):
            return None
        if self.budget.left_s() <= record.seconds:
            return None
        everything = self.dataset.with_val_in_train()
        ctx = replace(self.ctx, deadline_s=self.budget.search_ends_s())
        try:
            with self.trials.heartbeat(claim):
                backbone = backbone_of(record.hyperparameters, self.backbone)
                chosen = strategy(**hyperparameters_of(record.hyperparameters))
                return chosen.fit(everything, backbone, ctx)
        except OutOfTime as error:
            why = str(error)
        except (MemoryError, RuntimeError) as error:
            why = out_of_memory(error)
        self.ctx.on_note(
            f"The {record.strategy} learns from train alone, without validation: {why}"
        )
        return None

    def _reporter(self, claim: Claim, fold: Dataset, number: int) -> OnEpoch:
        def hear(epoch: int, val_accuracy: float | None) -> None:
            self.ctx.on_progress("this trial", epoch, ROUNDS)
            if val_accuracy is None:
                return
            interval = proportion(val_accuracy, len(fold.val))
            self._tell(claim, "round", step=epoch, accuracy=interval)
            if len(self.validation.folds) == 1 and report(claim.trial, {epoch: val_accuracy}):
                raise optuna.TrialPruned
            self.folder.share_checkpoint(claim.number, number)

        return hear

    def _finish(
        self,
        claim: Claim,
        record: TrialRecord,
        classifier: ImageClassifier | None,
        *,
        refitted: bool,
    ) -> None:
        """Keep the classifier if it is the best, then count the trial: in this order.

        Killed in between, the trial is found complete: its score stands on the classifier.
        """
        with self.trials.lock.held():
            known = self.folder.best()
            wins = self.is_open() and self.scheduler.beats(record, known and known[0])
            if classifier is not None and wins:
                self.trials.lock.check()
                self.folder.keep(classifier, record, refitted=refitted)
            self.trials.tell(claim, record)
            done = self.trials.snapshot().done
            self.folder.write_trials(done)
            if self.soup_candidates:
                self.soup_candidates.drop_others(done)
        self._tell(claim, "ended", accuracy=record.val_accuracy, reason=record.reason)

    def _tell(self, claim: Claim, kind: Any, **facts: Any) -> None:
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
        self.folder.note(
            "trial " + kind,
            number=event.number,
            strategy=event.strategy,
            owner=self.trials.owner,
            step=event.step,
            val_accuracy=None if accuracy is None else asdict(accuracy),
            reason=event.reason,
        )
        self.on_event(event)

    def ended(self) -> Ended:
        """Say why the search is over."""
        asked = self.interrupt.asked
        return "interrupted" if asked else self.scheduler.ended(self.trials.snapshot())

    def result(self) -> SearchResult:
        """Return the trials and the best classifier.

        Raises
        ------
        OutOfTime
            If no trial finished.
        """
        records = self.trials.snapshot().done
        found = self.folder.best()
        if found is None:
            why = "; ".join(f"{r.strategy}: {r.reason}" for r in records) or "no time was left"
            raise OutOfTime(f"No trial finished ({why}). Give more --time.")
        best, refitted = found
        classifier = ImageClassifier.load(self.folder.classifier(), self.ctx.device)
        return SearchResult(records, best, classifier, refitted)


def out_of_memory(error: MemoryError | RuntimeError) -> str:
    """Return the reason of a trial that ran out of memory; let other errors pass."""
    said = str(error)
    if not isinstance(error, MemoryError | torch.OutOfMemoryError) and (
        "can't allocate memory" not in said
    ):
        raise error
    first = said.splitlines()[0] if said else "no more could be had"
    return f"out of memory: {first}"
