"""Trials of a run: one Optuna study per strategy, in a database that worker processes share.

A trial of this program has a number that counts over all strategies and outlives the process that
runs it. If that process dies, Optuna's trial fails, and a new one with the same number and the
same hyperparameters is enqueued. So each number counts once.
"""

import contextlib
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from advisor.tune.distributed.database import (
    DATABASE_ERRORS,
    Lock,
    LockLost,
    SeededTPE,
    ignore_experimental_warnings,
    open_storage,
    retry_transient,
)
from advisor.tune.interventions import hyperparameters_of
from advisor.tune.trials.pruning import Pruning
from advisor.types.outcome import TrialRecord
from strategies.core.metrics import Interval

MAX_ATTEMPTS = 3
"""A trial whose process died this often without progress is given up: it may be the cause."""
COORDINATOR = "coordinator"
"""Owner of the trials of the process that holds the run's lock."""


@dataclass(frozen=True)
class Claim:
    """A trial that this process has claimed and must run."""

    number: int
    strategy: str
    trial: Trial

    @property
    def fixed(self) -> Mapping[str, Any]:
        """Settings that the search space does not contain, such as those of interventions."""
        found: Mapping[str, Any] = self.trial.user_attrs.get("fixed", {})
        return found

    @property
    def hyperparameters(self) -> Mapping[str, Any]:
        """Hyperparameters of the trial: those that are fixed, and those of the search space."""
        return {**hyperparameters_of(self.fixed), **self.trial.params}


@dataclass(frozen=True)
class TrialsSnapshot:
    """Finished trials of a run, and the strategies of the unfinished (running or waiting) ones."""

    done: tuple[TrialRecord, ...]
    unfinished: tuple[str, ...]

    @property
    def n(self) -> int:
        """Number of trials begun, finished or not."""
        return len(self.done) + len(self.unfinished)


class Trials:
    """All trials of a run.

    Parameters
    ----------
    url
        SQLAlchemy URL of the database.
    spaces
        Search space of every strategy by name; each strategy gets a study.
    prefix
        Prefix of the study names, for runs that share a database.
    seed
        Seed of the sampler.
    owner
        Name of this process; `COORDINATOR` for the one that holds the run's lock.
    heartbeat_s
        Seconds between heartbeats. After six missed heartbeats a worker is presumed dead.
    pruning
        When trials are stopped early.

    Attributes
    ----------
    spaces
        As given.
    lock
        Lock under which one process at a time claims a trial or updates the best classifier.
    pruning
        As given.

    Raises
    ------
    StorageError
        If the database cannot be opened.
    """

    def __init__(
        self,
        url: str,
        spaces: Mapping[str, Mapping[str, BaseDistribution]],
        *,
        prefix: str = "",
        seed: int = 0,
        owner: str = COORDINATOR,
        heartbeat_s: int = 10,
        pruning: Pruning,
    ) -> None:
        self.owner, self.spaces, self.pruning = owner, spaces, pruning
        self._storage = open_storage(url, heartbeat_s)
        self.lock = Lock(self._storage, prefix)
        self._studies = {
            name: retry_transient(
                partial(_create_study, self._storage, prefix + name, seed, pruning.pruner)
            )
            for name in spaces
        }

    def snapshot(self) -> TrialsSnapshot:
        """Return the state of all trials. Each number counts once, with its latest attempt."""
        latest = self._latest_attempts().values()
        done = [_record(name, trial) for name, trial in latest if _is_done(trial)]
        unfinished = [name for name, trial in latest if not _is_done(trial)]
        return TrialsSnapshot(tuple(sorted(done, key=lambda r: r.number)), tuple(unfinished))

    def requeue_dead(self, *, own: bool, kept: TrialRecord | None) -> None:
        """Enqueue the trials of dead workers again.

        The caller must hold `lock`. A worker is presumed dead if it missed six heartbeats, or if
        it died before it had finished claiming its trial.

        Parameters
        ----------
        own
            Whether running trials of this owner belong to an earlier, dead process as well.
        kept
            The trial of the best classifier on disk, if any. If it is among them it was complete
            and only not recorded yet, so it is recorded rather than enqueued.
        """
        for study in self._studies.values():
            with ignore_experimental_warnings():
                retry_transient(partial(optuna.storages.fail_stale_trials, study))
            for trial in retry_transient(partial(study.get_trials, states=(TrialState.RUNNING,))):
                owner = trial.user_attrs.get("owner")
                if owner is None or (own and owner == self.owner):
                    self._finish_dead(study, trial, kept)
        for name, trial in self._latest_attempts().values():
            if trial.state == TrialState.FAIL and "reason" not in trial.user_attrs:
                self._requeue(self._studies[name], trial)

    def claim(self, strategy: str | None, start: Mapping[str, Any]) -> Claim | None:
        """Claim an enqueued trial, or else begin one of `strategy`; None if there is neither.

        The caller must hold `lock`.

        Parameters
        ----------
        strategy
            None: claim only a trial that is enqueued already.
        start
            Hyperparameters that are set; the sampler draws the others.
        """
        waiting = self._strategy_with_waiting_trial()
        if waiting is None:
            if strategy is None:
                return None
            retry_transient(lambda: self._enqueue(strategy, self.snapshot().n, start))
            waiting = strategy
        study = self._studies[waiting]
        with warnings.catch_warnings():  # heartbeats are sent by `heartbeat`, not by optimize
            warnings.filterwarnings("ignore", "Heartbeat of storage", UserWarning)
            trial = retry_transient(partial(study.ask, dict(self.spaces[waiting])))
        # Another `ask`, whose answer was lost, may have emptied the queue: this trial is not ours.
        if "number" not in trial.user_attrs:
            retry_transient(lambda: study.tell(trial, state=TrialState.FAIL))
            return None
        self._record_heartbeat(trial)
        retry_transient(lambda: trial.set_user_attr("owner", self.owner))
        claim = Claim(int(trial.user_attrs["number"]), waiting, trial)
        try:
            # If the lock was lost, another process may have requeued the trial: it had no owner.
            self.lock.check_held()
        except LockLost:
            self.release(claim)
            raise
        return claim

    def _enqueue(self, strategy: str, number: int, start: Mapping[str, Any]) -> None:
        if self._strategy_with_waiting_trial() is None:  # else an earlier try was successful
            self.lock.check_held()
            space = self.spaces[strategy]
            fixed = {name: value for name, value in start.items() if name not in space}
            begun_with = {name: value for name, value in start.items() if name in space}
            self._studies[strategy].enqueue_trial(
                begun_with, user_attrs={"number": number, "fixed": fixed}
            )

    @contextlib.contextmanager
    def heartbeat(self, claim: Claim) -> Iterator[None]:
        """Send heartbeats in a background thread while a trial runs."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self._storage.heartbeat_interval):
                with contextlib.suppress(*DATABASE_ERRORS):  # the next one may succeed
                    self._record_heartbeat(claim.trial)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def tell(self, claim: Claim, record: TrialRecord) -> None:
        """Record a finished trial: its score with an interval, or the reason why it has none."""
        self._tell(self._studies[claim.strategy], claim.trial._trial_id, record)

    def reported_values(self, claim: Claim) -> Mapping[int, float]:
        """Return the values that an earlier attempt at a trial has reported, by step."""
        return self._trials_of(claim.strategy)[claim.trial.number].intermediate_values

    def release(self, claim: Claim) -> None:
        """Release a claimed trial, so that it is enqueued for any process."""
        study = self._studies[claim.strategy]
        retry_transient(
            lambda: study.tell(claim.trial, state=TrialState.FAIL, skip_if_finished=True)
        )

    def _tell(self, study: Study, trial_id: int, record: TrialRecord) -> None:
        interval = record.val_accuracy
        attributes = {
            "seconds": record.seconds,
            "reason": record.reason,
            "hyperparameters": dict(record.hyperparameters),
            "interval": None if interval is None else [interval.low, interval.mid, interval.high],
            "n_train": record.n_train,
        }
        number = retry_transient(lambda: self._storage.get_trial_number_from_id(trial_id))
        with contextlib.suppress(UpdateFinishedTrialError):  # presumed dead meanwhile
            for key, value in attributes.items():
                retry_transient(partial(self._storage.set_trial_user_attr, trial_id, key, value))
            failed = TrialState.PRUNED if record.pruned else TrialState.FAIL
            state = TrialState.COMPLETE if interval else failed
            score = interval.mid if interval else None
            retry_transient(lambda: study.tell(number, score, state, skip_if_finished=True))

    def _finish_dead(self, study: Study, dead: FrozenTrial, kept: TrialRecord | None) -> None:
        """Finish an attempt whose process died: complete if its score is known, else failed."""
        if kept is not None and kept.number == dead.user_attrs.get("number"):
            self._tell(study, dead._trial_id, kept)
        found = dead.user_attrs.get("interval")
        state = TrialState.COMPLETE if found else TrialState.FAIL
        score = found[1] if found else None
        retry_transient(lambda: study.tell(dead.number, score, state, skip_if_finished=True))

    def _requeue(self, study: Study, dead: FrozenTrial) -> None:
        """Enqueue a lost attempt again with all it reported, unless its process died too often."""
        if _is_given_up(dead):
            return
        n_steps = len(dead.intermediate_values)
        no_progress = n_steps <= dead.user_attrs.get("n_steps", 0)
        attempts = dead.user_attrs.get("attempts", 1) + 1 if no_progress else 1
        attempt = create_trial(
            state=TrialState.WAITING,
            params=dead.params,
            distributions=dead.distributions,
            user_attrs={
                "number": dead.user_attrs["number"],
                "fixed": dead.user_attrs.get("fixed", {}),
                "attempts": attempts,
                "n_steps": n_steps,
            },
            system_attrs=dead.system_attrs,
            intermediate_values=dead.intermediate_values,
        )

        def add() -> None:
            # If the lock was lost, so was the answer to an earlier try, which may have succeeded.
            self.lock.check_held()
            study.add_trial(attempt)

        retry_transient(add)

    def _record_heartbeat(self, trial: Trial) -> None:
        retry_transient(lambda: self._storage.record_heartbeat(trial._trial_id))

    def _strategy_with_waiting_trial(self) -> str | None:
        for name, trial in self._all_trials():
            if trial.state == TrialState.WAITING:
                return name
        return None

    def _latest_attempts(self) -> dict[int, tuple[str, FrozenTrial]]:
        """Return the latest attempt at every number."""
        numbered = ((name, t) for name, t in self._all_trials() if "number" in t.user_attrs)
        return {t.user_attrs["number"]: (name, t) for name, t in numbered}

    def _all_trials(self) -> Iterator[tuple[str, FrozenTrial]]:
        for name in self._studies:
            for trial in self._trials_of(name):
                yield name, trial

    def _trials_of(self, strategy: str) -> list[FrozenTrial]:
        study = self._studies[strategy]
        return retry_transient(lambda: study.get_trials(deepcopy=False))


def report_values(trial: Trial, values: Mapping[int, float]) -> bool:
    """Report values by step, except known steps; return whether the trial should be pruned."""
    known = retry_transient(lambda: trial.study.get_trials(deepcopy=False))[trial.number]
    for step, value in values.items():
        if step not in known.intermediate_values:
            retry_transient(partial(trial.report, value, step))
    return bool(retry_transient(trial.should_prune))


def _create_study(storage: RDBStorage, name: str, seed: int, pruner: BasePruner) -> Study:
    return optuna.create_study(
        study_name=name,
        storage=storage,
        direction="maximize",
        sampler=SeededTPE(seed),
        pruner=pruner,
        load_if_exists=True,
    )


def _is_done(trial: FrozenTrial) -> bool:
    """Return whether a trial is finished for good, given its latest attempt."""
    lost = trial.state == TrialState.FAIL and "reason" not in trial.user_attrs
    return trial.state.is_finished() and (not lost or _is_given_up(trial))


def _is_given_up(lost: FrozenTrial) -> bool:
    """Return whether the processes of a trial died too often without progress."""
    n_attempts = int(lost.user_attrs.get("attempts", 1))
    n_steps_before = int(lost.user_attrs.get("n_steps", 0))
    return n_attempts >= MAX_ATTEMPTS and len(lost.intermediate_values) <= n_steps_before


def _record(strategy: str, trial: FrozenTrial) -> TrialRecord:
    attributes = trial.user_attrs
    interval, reason = attributes.get("interval"), attributes.get("reason")
    if interval is None and reason is None:
        reason = (
            f"the process running it died {attributes.get('attempts', 1)} times without progress"
        )
    return TrialRecord(
        attributes["number"],
        strategy,
        attributes.get("hyperparameters", trial.params),
        None if interval is None else Interval(*interval),
        attributes.get("seconds", 0.0),
        reason,
        pruned=trial.state == TrialState.PRUNED,
        n_train=attributes.get("n_train"),
    )
