"""Search loop of one process: claim a trial, have it carried out, keep the best classifier.

Any number of processes may take part in the search of one run. They share the database of the
trials (Optuna) and the best classifier, in the run directory or in an artifact store. What each
process does next depends on nothing else.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from advisor.tune.distributed.database import retry_if_lock_lost
from advisor.tune.incumbent import Incumbent
from advisor.tune.scheduler import Scheduler
from advisor.tune.trials.executor import LocalExecutor, TrialResult
from advisor.tune.trials.study import Claim, Trials
from advisor.types.events import Event, OnEvent
from advisor.types.outcome import Ended, TrialRecord
from strategies.core.errors import DataError, OutOfTime
from strategies.core.metrics import Interval
from strategies.models.classifier import ImageClassifier
from strategies.registry import baseline, get_strategy

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
    """The loop that connects study, scheduler, executor and incumbent.

    Attributes
    ----------
    on_event
        Called at every event of this process's trials.
    """

    trials: Trials
    scheduler: Scheduler
    executor: LocalExecutor
    incumbent: Incumbent
    on_event: OnEvent

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
        if not self.executor.dataset.val:
            raise DataError(
                f"{self.executor.dataset.root} has no class with three images, so there are no "
                "validation images to select on. Add images, or give a folder of them with --val."
            )
        while not (self.is_interrupted or (stop_at_first and self.incumbent.trial)):
            claim, others_are_running = retry_if_lock_lost(self._claim)
            if claim is not None:
                self._run_trial(claim)
            elif others_are_running and self.executor.budget.left_s() > 0:
                time.sleep(POLL_S)
            else:
                break

    def fit_on_measured(self) -> None:
        """Make a baseline on the features that the advice measured the first classifier.

        It costs no time to speak of, and whatever happens later, the run leaves a classifier.
        Nothing is done if a trial was begun before, if the baseline is not searched, or if all
        images were measured: the baseline's ordinary trial is as cheap then.
        """
        start = self.scheduler.baseline_start(self.executor.backbone.input_px)
        if start is None or self.is_interrupted or self.incumbent.trial is not None:
            return
        part = self.executor.measured_part()
        if part is None:
            return
        with self.incumbent.locked():
            claim = self.trials.claim(baseline().name, start)
        if claim is None:
            return
        self._emit(claim, "begun")
        result = self.executor.fit_head(claim, part)
        self._finish(claim, result, refitted=True)
        n = len(part.fit_split)
        self.executor.ctx.reporter.on_note(
            f"First classifier: {claim.strategy} on the {n} images measured so far."
        )

    @property
    def is_interrupted(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self.executor.interrupt.requested

    def end_reason(self) -> Ended:
        """Return why the search ended."""
        if self.is_interrupted:
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
        best = self.incumbent.trial
        if best is None:
            why = "; ".join(f"{r.strategy}: {r.reason}" for r in records) or "no time was left"
            raise OutOfTime(f"No trial finished ({why}). Give more --time.")
        classifier = self.incumbent.classifier(self.executor.ctx.device)
        return SearchResult(records, best, classifier, self.incumbent.is_refitted)

    def _claim(self) -> tuple[Claim | None, bool]:
        """Claim the next trial; also return whether other processes are running trials."""
        budget = self.executor.budget
        with self.incumbent.locked():
            if not self.incumbent.is_open() or budget.left_s() <= 0:
                return None, False
            best = self.incumbent.trial
            self.trials.requeue_dead(own=False, kept=best)
            snapshot = self.trials.snapshot()
            n_soup_images = self.executor.n_soup_images(snapshot.done)
            is_trained = best is not None and get_strategy(best.strategy).trains_network
            budget.reserve_for(incumbent_is_trained=is_trained, n_soup_images=n_soup_images)
            min_fit_s = len(self.executor.validation.folds) * budget.min_fit_s()
            strategy = self.scheduler.choose(snapshot, budget.left_s(), min_fit_s)
            start: Mapping[str, Any] = {}
            if strategy is not None:
                space = self.trials.spaces[strategy]
                start = self.scheduler.start(strategy, snapshot, space, budget.left_s())
            claim = self.trials.claim(strategy, start)
        return claim, bool(snapshot.unfinished)

    def _run_trial(self, claim: Claim) -> None:
        """Run one trial; refit a probe that is the new incumbent; record the trial."""
        self._emit(claim, "begun")
        result = self.executor.run(claim, self._on_round)
        refitted = None
        if self.incumbent.is_beaten_by(result.record):
            refitted = self.executor.refit(claim, result.record)
        if refitted is not None:
            result = TrialResult(result.record, refitted)
        finish = partial(self._finish, claim, result, refitted=refitted is not None)
        with self.trials.heartbeat(claim):  # waiting for the lock and saving may take long
            retry_if_lock_lost(finish)
        self.executor.drop_checkpoints(claim)

    def _finish(self, claim: Claim, result: TrialResult, *, refitted: bool) -> None:
        """Save the classifier if it is the best, then record the trial as finished, in this order.

        If the process is killed in between, the trial counts as complete later: its score is
        saved with the classifier.
        """
        record, classifier = result.record, result.classifier
        with self.incumbent.locked():
            is_best = self.incumbent.is_open() and self.incumbent.is_beaten_by(record)
            if classifier is not None and is_best:
                self.incumbent.replace(classifier, record, refitted=refitted, saved=result.saved)
            self.trials.tell(claim, record)
            done = self.trials.snapshot().done
            self.executor.folder.write_trials(done)
            if self.executor.soup_candidates:
                self.executor.soup_candidates.drop_others(done)
        self._emit(claim, "ended", accuracy=record.val_accuracy, reason=record.reason)

    def _on_round(self, claim: Claim, step: int, accuracy: Interval) -> None:
        self._emit(claim, "round", step=step, accuracy=accuracy)

    def _emit(self, claim: Claim, kind: Any, **facts: Any) -> None:
        left_s, best = self.executor.budget.left_s(), self.incumbent.trial
        event = Event(kind, claim.number, claim.strategy, left_s, best=best, **facts)
        accuracy = event.accuracy
        self.executor.folder.log_event(
            "trial " + kind,
            number=event.number,
            strategy=event.strategy,
            owner=self.trials.owner,
            step=event.step,
            val_accuracy=None if accuracy is None else asdict(accuracy),
            reason=event.reason,
        )
        self.on_event(event)
