"""The trials of a run: one Optuna study a strategy, in one database that many processes may share.

A trial of this program has a number that counts over all strategies and outlives the process that
runs it. When that process dies, Optuna's trial fails, and a new one with the same number and the
same hyperparameters waits to be taken up: each number counts once.
"""

import contextlib
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
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
    experimental,
    open_storage,
    retry_transient,
)
from advisor.tune.pruning import make_pruner
from advisor.types.outcome import TrialRecord
from strategies.core.metrics import Interval

MAX_ATTEMPTS = 3
"""A trial that dies this often without getting further is given up: it may be what kills it."""
COORDINATOR = "coordinator"


@dataclass(frozen=True)
class Claim:
    """A trial that this process is to run."""

    number: int
    strategy: str
    trial: Trial

    @property
    def start(self) -> Mapping[str, Any]:
        """What the trial starts with; empty: all is drawn."""
        found: Mapping[str, Any] = self.trial.user_attrs.get("start", {})
        return found


@dataclass(frozen=True)
class TrialsSnapshot:
    """How the trials of a run stand: those that are done, and strategies of those under way."""

    done: tuple[TrialRecord, ...]
    under_way: tuple[str, ...]

    @property
    def n(self) -> int:
        """Number of trials begun."""
        return len(self.done) + len(self.under_way)


class Trials:
    """All trials of a run.

    Parameters
    ----------
    url
        SQLAlchemy's name of the database.
    prefix
        What study names begin with, where runs share a database.
    owner
        Who claims trials here; `COORDINATOR` for the one process that holds the run.
    heartbeat_s
        A process gives a sign of life this often; six missed ones are death.
    n_val
        Images that accuracies are reported on.
    by_folds
        Whether trials report which images they name rightly, fold by fold, instead of their
        accuracy on validation, round by round.

    Attributes
    ----------
    lock
        Lets one process at a time decide what is tried next, or what is best.

    Raises
    ------
    StorageError
        If the database cannot be opened.
    """

    def __init__(
        self,
        url: str,
        strategies: Sequence[str],
        *,
        prefix: str = "",
        seed: int = 0,
        owner: str = COORDINATOR,
        heartbeat_s: int = 10,
        n_val: int,
        by_folds: bool = False,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.owner = owner
        self._storage = open_storage(url, heartbeat_s)
        self.lock = Lock(self._storage, prefix)
        pruner, self.pruned_because = make_pruner(n_val, by_folds=by_folds)
        self._studies = {
            name: retry_transient(partial(_study, self._storage, prefix + name, seed, pruner))
            for name in strategies
        }

    def snapshot(self) -> TrialsSnapshot:
        """Return how the trials stand. Each number counts once: its latest attempt."""
        latest = self._latest().values()
        done = [_record(name, trial) for name, trial in latest if _is_done(trial)]
        under_way = [name for name, trial in latest if not _is_done(trial)]
        return TrialsSnapshot(tuple(sorted(done, key=lambda r: r.number)), tuple(under_way))

    def distributions(self, strategy: str) -> Mapping[str, BaseDistribution]:
        """Return the search space of a strategy as far as trials have shown it."""
        known: dict[str, BaseDistribution] = {}
        for trial in self._frozen(strategy):
            known |= trial.distributions
        return known

    def requeue_dead(self, *, own: bool, kept: TrialRecord | None) -> None:
        """Let the numbers wait again whose process died.

        Only one process at a time may do this (`lock`). A process is dead if it
        gave no sign of life for too long, if it never got as far as claiming its trial, or, with
        `own`, if it held the run before this one did. Of these, the trial whose classifier is
        `kept` on disk had only not been counted yet.
        """
        for study in self._studies.values():
            with experimental():
                retry_transient(partial(optuna.storages.fail_stale_trials, study))
            for trial in retry_transient(partial(study.get_trials, states=(TrialState.RUNNING,))):
                owner = trial.user_attrs.get("owner")
                if owner is None or (own and owner == self.owner):
                    self._end(study, trial, kept)
        for name, trial in self._latest().values():
            if trial.state == TrialState.FAIL and "reason" not in trial.user_attrs:
                self._retry(self._studies[name], trial)

    def claim(self, strategy: str | None, start: Mapping[str, Any]) -> Claim | None:
        """Take up the trial that waits, or else begin one of `strategy`.

        Only one process at a time may claim (`lock`).

        Parameters
        ----------
        strategy
            None: take up what waits, begin nothing.
        start
            Hyperparameters that are set; the others are drawn by the sampler.
        """
        waiting = self._waiting()
        if waiting is None:
            if strategy is None:
                return None
            retry_transient(lambda: self._enqueue(strategy, self.snapshot().n, start))
            waiting = strategy
        study = self._studies[waiting]
        with warnings.catch_warnings():  # signs of life are given by `heartbeat`, not by optimize
            warnings.filterwarnings("ignore", "Heartbeat of storage", UserWarning)
            trial = retry_transient(study.ask)
        if (
            "number" not in trial.user_attrs
        ):  # the queue was emptied by an ask whose answer was lost
            retry_transient(lambda: study.tell(trial, state=TrialState.FAIL))
            return None
        self._beat(trial)
        retry_transient(lambda: trial.set_user_attr("owner", self.owner))
        claim = Claim(int(trial.user_attrs["number"]), waiting, trial)
        try:
            self.lock.check()  # else another process may have held it for dead, having no owner
        except LockLost:
            self.release(claim)
            raise
        return claim

    def _enqueue(self, strategy: str, number: int, start: Mapping[str, Any]) -> None:
        if self._waiting() is None:  # else an earlier attempt at this got through
            self.lock.check()
            attributes = {"number": number, "start": dict(start)}
            self._studies[strategy].enqueue_trial(dict(start), user_attrs=attributes)

    @contextlib.contextmanager
    def heartbeat(self, claim: Claim) -> Iterator[None]:
        """Give signs of life while a trial runs."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self._storage.heartbeat_interval):
                with contextlib.suppress(*DATABASE_ERRORS):  # the next one may come through
                    self._beat(claim.trial)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def tell(self, claim: Claim, record: TrialRecord) -> None:
        """Finish a trial: a score with its interval, or a reason and no score."""
        self._tell(self._studies[claim.strategy], claim.trial._trial_id, record)

    def reported(self, claim: Claim) -> Mapping[int, float]:
        """Return what an earlier attempt at a trial has reported, by step."""
        return self._frozen(claim.strategy)[claim.trial.number].intermediate_values

    def release(self, claim: Claim) -> None:
        """Let a claimed trial wait for another process."""
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
        }
        number = retry_transient(lambda: self._storage.get_trial_number_from_id(trial_id))
        with contextlib.suppress(UpdateFinishedTrialError):  # it was held for dead meanwhile
            for key, value in attributes.items():
                retry_transient(partial(self._storage.set_trial_user_attr, trial_id, key, value))
            failed = TrialState.PRUNED if record.pruned else TrialState.FAIL
            state = TrialState.COMPLETE if interval else failed
            score = interval.mid if interval else None
            retry_transient(lambda: study.tell(number, score, state, skip_if_finished=True))

    def _end(self, study: Study, dead: FrozenTrial, kept: TrialRecord | None) -> None:
        """End an attempt whose process died; one that only lacked its last word is complete."""
        if kept is not None and kept.number == dead.user_attrs.get("number"):
            self._tell(study, dead._trial_id, kept)
        found = dead.user_attrs.get("interval")
        state = TrialState.COMPLETE if found else TrialState.FAIL
        score = found[1] if found else None
        retry_transient(lambda: study.tell(dead.number, score, state, skip_if_finished=True))

    def _retry(self, study: Study, dead: FrozenTrial) -> None:
        """Let a lost attempt's number wait again, as it was, unless it died too often."""
        if _is_given_up(dead):
            return
        n_steps = len(dead.intermediate_values)
        stuck = n_steps <= dead.user_attrs.get("n_steps", 0)
        attempts = dead.user_attrs.get("attempts", 1) + 1 if stuck else 1
        attempt = create_trial(
            state=TrialState.WAITING,
            params=dead.params,
            distributions=dead.distributions,
            user_attrs={
                "number": dead.user_attrs["number"],
                "start": dead.user_attrs.get("start", {}),
                "attempts": attempts,
                "n_steps": n_steps,
            },
            system_attrs=dead.system_attrs,
            intermediate_values=dead.intermediate_values,
        )

        def add() -> None:
            self.lock.check()  # else the answer to an earlier attempt at this may have been lost
            study.add_trial(attempt)

        retry_transient(add)

    def _beat(self, trial: Trial) -> None:
        retry_transient(lambda: self._storage.record_heartbeat(trial._trial_id))

    def _waiting(self) -> str | None:
        for name, trial in self._all():
            if trial.state == TrialState.WAITING:
                return name
        return None

    def _latest(self) -> dict[int, tuple[str, FrozenTrial]]:
        """Return the latest attempt at every number."""
        numbered = ((name, t) for name, t in self._all() if "number" in t.user_attrs)
        return {t.user_attrs["number"]: (name, t) for name, t in numbered}

    def _all(self) -> Iterator[tuple[str, FrozenTrial]]:
        for name in self._studies:
            for trial in self._frozen(name):
                yield name, trial

    def _frozen(self, strategy: str) -> list[FrozenTrial]:
        study = self._studies[strategy]
        return retry_transient(lambda: study.get_trials(deepcopy=False))


def report(trial: Trial, values: Mapping[int, float]) -> bool:
    """Report values by step; True if the trial should be pruned. A known step is left out."""
    known = retry_transient(lambda: trial.study.get_trials(deepcopy=False))[trial.number]
    for step, value in values.items():
        if step not in known.intermediate_values:
            retry_transient(partial(trial.report, value, step))
    return bool(retry_transient(trial.should_prune))


def _study(storage: RDBStorage, name: str, seed: int, pruner: BasePruner) -> Study:
    return optuna.create_study(
        study_name=name,
        storage=storage,
        direction="maximize",
        sampler=SeededTPE(seed),
        pruner=pruner,
        load_if_exists=True,
    )


def _is_done(trial: FrozenTrial) -> bool:
    """Whether nothing more will come of a number whose latest attempt this is."""
    lost = trial.state == TrialState.FAIL and "reason" not in trial.user_attrs
    return trial.state.is_finished() and (not lost or _is_given_up(trial))


def _is_given_up(lost: FrozenTrial) -> bool:
    """Whether a number has died too often without getting any further."""
    died = int(lost.user_attrs.get("attempts", 1))
    known = int(lost.user_attrs.get("n_steps", 0))
    return died >= MAX_ATTEMPTS and len(lost.intermediate_values) <= known


def _record(strategy: str, trial: FrozenTrial) -> TrialRecord:
    known = trial.user_attrs
    found, reason = known.get("interval"), known.get("reason")
    if found is None and reason is None:
        reason = f"its process ended before it did, {known.get('attempts', 1)} times"
    return TrialRecord(
        known["number"],
        strategy,
        known.get("hyperparameters", trial.params),
        None if found is None else Interval(*found),
        known.get("seconds", 0.0),
        reason,
        pruned=trial.state == TrialState.PRUNED,
    )
