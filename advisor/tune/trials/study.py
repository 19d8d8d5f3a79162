"""Trials of a run: one Optuna study per strategy, in ``study.db`` of the run folder.

A trial of this program has a number that counts over all strategies and outlives the driver. If
the driver dies, Optuna's trial fails, and a new one with the same number and the same
hyperparameters is enqueued. So each number counts once.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.exc import DBAPIError

from advisor.tune.trials.job import Job
from advisor.tune.trials.pruning import Pruning
from advisor.tune.trials.sampler import SeededTPE
from advisor.types.outcome import TrialRecord
from strategies.core.errors import StorageError
from strategies.core.metrics import Interval
from strategies.core.progress import unlogged

MAX_ATTEMPTS = 3
"""A trial whose process died this often without progress is given up: it may be the cause."""
BUSY_TIMEOUT_S = 60
"""Seconds to wait for a reader of the database, such as optuna-dashboard."""


@dataclass(frozen=True)
class TrialsSnapshot:
    """Finished trials of a run, and the strategies of the unfinished (running or waiting) ones."""

    done: tuple[TrialRecord, ...]
    unfinished: tuple[str, ...]

    @property
    def n(self) -> int:
        """Number of trials begun, finished or not."""
        return len(self.done) + len(self.unfinished)


@contextlib.contextmanager
def database_errors() -> Iterator[None]:
    """Turn errors of the database into StorageError.

    Raises
    ------
    StorageError
        If the database cannot be read or written, for example because the disk is full.
    """
    try:
        yield
    except (StorageInternalError, DBAPIError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise StorageError(
            f"The database of the trials cannot be used: {reason}. Finished trials are "
            "kept; continue with tl-auto resume."
        ) from error


class Trials:
    """All trials of a run. Only the driver of the run uses them.

    Parameters
    ----------
    path
        The SQLite file; it is created if it does not exist.
    spaces
        Search space of every strategy by name; each strategy gets a study.
    seed
        Seed of the sampler.
    pruning
        When trials are stopped early.
    fixed
        Hyperparameters by strategy that have these values in every trial, and are not sampled.

    Attributes
    ----------
    spaces
        As given, without the fixed hyperparameters.
    pruning, fixed
        As given.

    Raises
    ------
    StorageError
        If the database cannot be used; so do all methods.
    """

    @database_errors()
    def __init__(
        self,
        path: Path,
        spaces: Mapping[str, Mapping[str, BaseDistribution]],
        *,
        seed: int = 0,
        pruning: Pruning,
        fixed: Mapping[str, Mapping[str, object]] = MappingProxyType({}),
    ) -> None:
        self.pruning, self.fixed = pruning, fixed
        self.spaces = {
            strategy: {n: d for n, d in space.items() if n not in fixed.get(strategy, ())}
            for strategy, space in spaces.items()
        }
        arguments = {"connect_args": {"timeout": BUSY_TIMEOUT_S}}
        storage = RDBStorage(f"sqlite:///{path.resolve()}", engine_kwargs=arguments)
        self._studies = {
            name: _create_study(storage, name, seed, pruning.pruner) for name in spaces
        }
        self._running: dict[int, Trial] = {}

    @database_errors()
    def snapshot(self) -> TrialsSnapshot:
        """Return the state of all trials. Each number counts once, with its latest attempt."""
        latest = self._latest_attempts().values()
        done = [_record(name, trial) for name, trial in latest if _is_done(trial)]
        unfinished = [name for name, trial in latest if not _is_done(trial)]
        return TrialsSnapshot(tuple(sorted(done, key=lambda r: r.number)), tuple(unfinished))

    @database_errors()
    def requeue_dead(self, kept: TrialRecord | None) -> None:
        """Enqueue the trials again that were running when an earlier driver died.

        Parameters
        ----------
        kept
            The trial of the best classifier on disk, if any. If it is among them it was complete
            and only not recorded yet, so it is recorded rather than enqueued.
        """
        for study in self._studies.values():
            for trial in study.get_trials(states=(TrialState.RUNNING,)):
                _finish_dead(study, trial, kept)
        for name, trial in self._latest_attempts().values():
            if trial.state == TrialState.FAIL and "reason" not in trial.user_attrs:
                _requeue(self._studies[name], trial)

    @database_errors()
    def begin(self, strategy: str | None, start: Mapping[str, object]) -> Job | None:
        """Begin a trial that is enqueued, or else one of `strategy`; None if there is neither.

        Parameters
        ----------
        strategy
            None: begin only a trial that is enqueued already.
        start
            Settings that are given; the sampler draws the other hyperparameters. Those that are
            not in the search space are kept as they are.
        """
        waiting = self._strategy_with_waiting_trial()
        if waiting is None:
            if strategy is None:
                return None
            self._enqueue(strategy, start)
            waiting = strategy
        trial = self._studies[waiting].ask(dict(self.spaces[waiting]))
        number = int(trial.user_attrs["number"])
        self._running[number] = trial
        known = self._trials_of(waiting)[trial.number].intermediate_values
        return Job(number, waiting, {**trial.user_attrs["fixed"], **trial.params}, known)

    @database_errors()
    def report(self, job: Job, values: Mapping[int, float]) -> bool:
        """Record values of a running trial by step; return whether it should be pruned.

        Steps that are known already are skipped.
        """
        trial = self._running[job.number]
        known = self._trials_of(job.strategy)[trial.number].intermediate_values
        for step, value in values.items():
            if step not in known:
                trial.report(value, step)
        return trial.should_prune()

    @database_errors()
    def tell(self, record: TrialRecord) -> None:
        """Record a finished trial: its score with an interval, or the reason why it has none."""
        trial = self._running.pop(record.number)
        _tell(self._studies[record.strategy], trial._trial_id, trial.number, record)

    def _enqueue(self, strategy: str, start: Mapping[str, object]) -> None:
        space = self.spaces[strategy]
        start = {**start, **self.fixed.get(strategy, {})}
        fixed = {name: value for name, value in start.items() if name not in space}
        begun_with = {name: value for name, value in start.items() if name in space}
        self._studies[strategy].enqueue_trial(
            begun_with, user_attrs={"number": self.snapshot().n, "fixed": fixed}
        )

    def _strategy_with_waiting_trial(self) -> str | None:
        for name, trial in self._all_trials():
            if trial.state == TrialState.WAITING:
                return name
        return None

    def _latest_attempts(self) -> dict[int, tuple[str, FrozenTrial]]:
        """Return the latest attempt at every number."""
        return {t.user_attrs["number"]: (name, t) for name, t in self._all_trials()}

    def _all_trials(self) -> Iterator[tuple[str, FrozenTrial]]:
        for name in self._studies:
            for trial in self._trials_of(name):
                yield name, trial

    def _trials_of(self, strategy: str) -> list[FrozenTrial]:
        return self._studies[strategy].get_trials(deepcopy=False)


def _create_study(storage: RDBStorage, name: str, seed: int, pruner: BasePruner) -> Study:
    with unlogged("optuna.storages._rdb.storage"), unlogged("optuna.study.study"):
        return optuna.create_study(
            study_name=name,
            storage=storage,
            direction="maximize",
            sampler=SeededTPE(seed),
            pruner=pruner,
            load_if_exists=True,
        )


def _tell(study: Study, trial_id: int, trial_number: int, record: TrialRecord) -> None:
    interval = record.val_accuracy
    attributes = {
        "seconds": record.seconds,
        "hyperparameters": dict(record.hyperparameters),
        "n_train": record.n_train,
        "interval": None if interval is None else [interval.low, interval.mid, interval.high],
        "reason": record.reason,  # last: a trial that failed and has no reason was lost
    }
    for key, value in attributes.items():
        study._storage.set_trial_user_attr(trial_id, key, value)
    failed = TrialState.PRUNED if record.pruned else TrialState.FAIL
    state = TrialState.COMPLETE if interval else failed
    study.tell(trial_number, interval.mid if interval else None, state)


def _finish_dead(study: Study, dead: FrozenTrial, kept: TrialRecord | None) -> None:
    """Finish an attempt whose driver died: complete if its score is known, else failed."""
    found = dead.user_attrs.get("interval")
    if kept is not None and kept.number == dead.user_attrs["number"]:
        _tell(study, dead._trial_id, dead.number, kept)
    elif found:
        study.tell(dead.number, found[1], TrialState.COMPLETE)
    else:
        study.tell(dead.number, state=TrialState.FAIL)


def _requeue(study: Study, dead: FrozenTrial) -> None:
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
            "fixed": dead.user_attrs["fixed"],
            "attempts": attempts,
            "n_steps": n_steps,
        },
        system_attrs=dead.system_attrs,
        intermediate_values=dead.intermediate_values,
    )
    study.add_trial(attempt)


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
