"""Search loop: choose a trial, have it carried out, record it, keep the best classifier."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from advisor.tune.incumbent import Incumbent
from advisor.tune.scheduler import Scheduler
from advisor.tune.time_budget import TimeLeft
from advisor.tune.trials.executor import LocalExecutor
from advisor.tune.trials.job import Executor, Job, Score, TrialResult
from advisor.tune.trials.study import Trials
from advisor.types.events import Event, OnEvent
from advisor.types.outcome import Ended, TrialRecord
from strategies.core.errors import DataError, OutOfTime
from strategies.data.dataset import Dataset
from strategies.models.classifier import ImageClassifier
from strategies.registry import baseline, get_strategy

logger = logging.getLogger(__name__)

NO_TIME = "no time was left"


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
    executor
        The executor in this process. It holds dataset, backbone and time budget, and fits what
        is no trial.
    trial_executor
        Where trials run: `executor`, or another one.
    on_event
        Called at every event of a trial.
    """

    trials: Trials
    scheduler: Scheduler
    executor: LocalExecutor
    trial_executor: Executor
    incumbent: Incumbent
    on_event: OnEvent
    _running: dict[Future[TrialResult], Job] = field(default_factory=dict)

    def run(self, *, stop_at_first: bool = False) -> None:
        """Run trials and keep the best classifier, until nothing is left to try.

        Parameters
        ----------
        stop_at_first
            Whether to return as soon as there is a first classifier. Trials may still be running
            then; the next call waits for them.

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
        while not (stop_at_first and self.incumbent.trial):
            self._submit_trials()
            if not self._running:
                break
            for future in self.trial_executor.wait(self._running):
                self._end_trial(self._running.pop(future), future.result())

    def compute_features(self) -> None:
        """Compute features for the trials, where several processes can share the work."""
        roles = {get_strategy(c.strategy).role for c in self.scheduler.candidates}
        if self.incumbent.is_open() and not self.is_interrupted and roles != {"control"}:
            self.trial_executor.compute_features()

    def fit_on_measured(self) -> None:
        """Make a baseline on the features that the advice measured the first classifier.

        It costs no time to speak of, and whatever happens later, the run leaves a classifier.
        Nothing is done if there is a classifier, if a trial is waiting to begin again, or if the
        baseline is not searched. If all images were measured and there is time for a trial, that
        of the baseline is as cheap, and comes next anyway.
        """
        start = self.scheduler.baseline_start(self.executor.backbone.input_px)
        if start is None or self.is_interrupted or self.incumbent.trial is not None:
            return
        if self._contradicts(start):
            return
        part = self.executor.measured_part()
        is_whole, has_time = part == self.executor.dataset, self.executor.budget.left_s() > 0
        if part is None or (is_whole and has_time) or self.trials.snapshot().unfinished:
            return
        job = self._fit_baseline(start, part)
        if job is not None:
            self.executor.ctx.reporter.on_note(
                f"First classifier: {job.strategy} on the {len(part.fit_split)} images measured "
                "so far."
            )

    def fit_fallback(self) -> None:
        """Make a baseline on measured features the classifier if no trial succeeded.

        It is fitted even if another strategy was asked for: the run always leaves a classifier.
        """
        if self.is_interrupted or self.incumbent.trial is not None:
            return
        part = self.executor.measured_part()
        start = {"views": 1, "input_px": self.executor.backbone.input_px}
        if part is None or self._contradicts(start):
            return
        for _ in self.trials.snapshot().unfinished:  # they would be begun before any other
            job = self.trials.begin(None, {})
            if job is not None:
                self._finish(job, TrialResult(_unsuccessful(job, NO_TIME)), refitted=False)
        why = _reasons(self.trials.snapshot().done)
        job = self._fit_baseline(start, part)
        if job is not None:
            self.executor.ctx.reporter.on_note(
                f"No trial finished ({why}). The classifier is a {job.strategy} on the "
                f"{len(part.fit_split)} images measured."
            )

    def _contradicts(self, start: Mapping[str, Any]) -> bool:
        """Return whether settings of a baseline on measured features differ from fixed ones."""
        fixed = self.trials.fixed.get(baseline().name, {})
        return any(name in start and start[name] != value for name, value in fixed.items())

    def _fit_baseline(self, start: Mapping[str, Any], part: Dataset) -> Job | None:
        """Fit the baseline to cached features, as a trial; None if no trial may begin."""
        job = self.trials.begin(baseline().name, start)
        if job is not None:
            self._emit(job, "begun")
            self._finish(job, self.executor.fit_head(job, part), refitted=True)
        return job

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
            raise OutOfTime(f"No trial finished ({_reasons(records)}). Give more --time.")
        classifier = self.incumbent.classifier(self.executor.ctx.device)
        return SearchResult(records, best, classifier, self.incumbent.is_refitted)

    def _next_job(self) -> Job | None:
        """Begin the next trial; None if nothing is left to try."""
        budget = self.executor.budget
        if not self.incumbent.is_open() or budget.left_s(n_val=0) <= 0:
            return None
        best, snapshot = self.incumbent.trial, self.trials.snapshot()
        n_soup_images = self.executor.n_soup_images(snapshot.done)
        is_trained = best is not None and get_strategy(best.strategy).trains_network
        budget.reserve_for(
            incumbent_is_trained=is_trained,
            n_soup_images=n_soup_images,
            incumbent_px=None if best is None else self._size_of(best),
        )
        n_folds = len(self.executor.validation.folds)
        left = TimeLeft(budget.left_s(n_val=0), budget.left_s(), n_folds * budget.min_fit_s())
        strategy = self.scheduler.choose(snapshot, left)
        start: Mapping[str, Any] = {}
        if strategy is not None:
            start = self.scheduler.start(strategy, snapshot, self.trials.spaces[strategy], left)
        job = self.trials.begin(strategy, start)
        if job is not None:
            origin = "given" if start else "sampled"
            settings = (job.number, job.strategy, origin, dict(job.settings))
            logger.info("trial %d: %s, %s start: %s; %s", *settings, left)
        return job

    def _size_of(self, trial: TrialRecord) -> int:
        """Return the input size of a trial's classifier."""
        return trial.hyperparameters.get("input_px") or self.executor.backbone.input_px

    def _submit_trials(self) -> None:
        """Begin as many trials as the executor can run now."""
        while len(self._running) < self.trial_executor.capacity and not self.is_interrupted:
            job = self._next_job()
            if job is None:
                return
            self._emit(job, "begun")
            self._running[self.trial_executor.submit(job, self._on_score)] = job

    def _end_trial(self, job: Job, result: TrialResult) -> None:
        """Refit a probe that is the new incumbent; record the trial."""
        refitted = None
        if self.incumbent.is_beaten_by(result.record):
            refitted = self.trial_executor.refit(result.record)
        if refitted is not None:
            result = TrialResult(result.record, refitted)
        self._finish(job, result, refitted=refitted is not None)
        self.trial_executor.forget(job)

    def _finish(self, job: Job, result: TrialResult, *, refitted: bool) -> None:
        """Save the classifier if it is the best, then record the trial as finished, in this order.

        If the process is killed in between, the trial counts as complete later: its score is
        saved with the classifier.
        """
        record, classifier = result.record, result.classifier
        if record.pruned:
            record = replace(record, reason=f"pruned: {self.trials.pruning.reason}")
        if classifier is not None and self.incumbent.is_beaten_by(record):
            self.incumbent.replace(classifier, record, refitted=refitted, saved=result.saved)
        self.trials.tell(record)
        done = self.trials.snapshot().done
        self.executor.folder.write_trials(done)
        if self.executor.soup_candidates:
            self.executor.soup_candidates.drop_others(done)
        self._emit(job, "ended", accuracy=record.val_accuracy, reason=record.reason)

    def _on_score(self, job: Job, score: Score) -> bool:
        """Record a score of a running trial; return whether the trial is to be pruned."""
        if score.accuracy is not None:
            accuracy = score.accuracy.percent()
            logger.debug("trial %d, round %d: %s", job.number, score.step, accuracy)
            self._emit(job, "round", step=score.step, accuracy=score.accuracy)
        return bool(score.values) and self.trials.report(job, score.values)

    def _emit(self, job: Job, kind: Any, **facts: Any) -> None:
        left_s, best = self.executor.budget.left_s(), self.incumbent.trial
        given = dict(job.hyperparameters)
        event = Event(
            kind, job.number, job.strategy, left_s, best=best, hyperparameters=given, **facts
        )
        accuracy = event.accuracy
        self.executor.folder.log_event(
            "trial " + kind,
            number=event.number,
            strategy=event.strategy,
            step=event.step,
            val_accuracy=None if accuracy is None else asdict(accuracy),
            reason=event.reason,
        )
        self.on_event(event)


def _unsuccessful(job: Job, reason: str) -> TrialRecord:
    return TrialRecord(job.number, job.strategy, dict(job.hyperparameters), None, 0.0, reason)


def _reasons(records: Sequence[TrialRecord]) -> str:
    """Return why no trial succeeded, as text."""
    return "; ".join(f"{r.strategy}: {r.reason}" for r in records) or NO_TIME
