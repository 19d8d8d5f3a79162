"""search(): advice to trials and the best classifier, under a deadline, with Optuna."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import Trial, TrialState

from advisor.types import Advice, Recommendation, TrialRecord
from strategies.base import Strategy
from strategies.core.backbone import Backbone
from strategies.core.classifier import ImageClassifier, evaluate
from strategies.core.errors import DataError, OutOfTime, TransferError
from strategies.core.run import OnEpoch, RunContext
from strategies.core.task import ImageTask
from strategies.core.training import ROUNDS
from strategies.registry import STRATEGIES, get_strategy

FLOOR, CONTROL = "linear_probe", "from_scratch"
"""The one is always tried first: nearly free, and a valid classifier after the first minutes. The
other is what transfer must beat, not a contender."""
PROBE_TRIALS = 10
"""Trials of a strategy that trains no network, where it is the only one that is searched. Else it
gets one: its hyperparameters were chosen by cross-validation, and more would only fit val."""
WORTH_STARTING = 0.3
"""A training is started if at least this share of its expected time is left."""


@dataclass(frozen=True)
class SearchResult:
    """All trials, the best of them, and its classifier."""

    trials: tuple[TrialRecord, ...]
    best: TrialRecord
    classifier: ImageClassifier
    refitted: bool


@dataclass
class _Candidate:
    """A strategy in the race: its study, and what its trials took and reached."""

    strategy: type[Strategy]
    study: Study
    expected_s: float
    most_trials: float
    n_trials: int = 0
    best: TrialRecord | None = None

    def is_open(self, seconds_left: float) -> bool:
        if self.n_trials >= self.most_trials:
            return False
        if not self.strategy.selects_on_val:
            return True
        return seconds_left > WORTH_STARTING * self.expected_s or self.n_trials == 0


def search(
    advice: Advice,
    task: ImageTask,
    backbone: Backbone,
    ctx: RunContext,
    *,
    folder: Path,
    max_trials: int | None = None,
    only: str | None = None,
) -> SearchResult:
    """Tune the advised strategy, its runner-up, and a training that may beat both.

    The linear probe is the floor.

    One Optuna study a strategy, all in ``study.db``, each starting from the advice. The next
    trial goes to the strategy with the fewest, where the one that leads counts half. A training
    that meets the deadline has cooled its learning rate down by then. The best classifier is
    kept in ``classifier/`` whenever it changes; a probe is fitted once more, on train and val.

    Parameters
    ----------
    folder
        The run folder; it must exist.
    max_trials
        Trials over all strategies; None: until the deadline of `ctx`, or nothing is left to try.
    only
        Search this strategy alone.

    Raises
    ------
    DataError
        If there are no val pictures to select on.
    OutOfTime
        If no trial finished.
    """
    if not task.val:
        raise DataError(
            f"{task.root} has no class with three pictures, so none can be set aside to select "
            "on. Add pictures, or give a folder of them with --val."
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    candidates = _candidates(advice, folder, ctx.seed, only)
    records: list[TrialRecord] = []
    winner: tuple[TrialRecord, ImageClassifier] | None = None
    total = max_trials or 0
    while max_trials is None or len(records) < max_trials:
        candidate = _next(candidates, ctx, winner[0] if winner else None)
        if candidate is None:
            break
        record, classifier = _run_trial(candidate, len(records), task, backbone, ctx)
        records.append(record)
        _append(folder / "trials.jsonl", record)
        if classifier is not None and (winner is None or _beats(record, winner[0], task)):
            winner = (record, classifier)
            classifier.save(folder / "classifier")
        ctx.on_progress(f"trials: {record.strategy}", len(records), total)
    if winner is None:
        why = "; ".join(f"{r.strategy}: {r.reason}" for r in records) or "no time was left"
        raise OutOfTime(f"No trial finished ({why}). Give more --time.")
    return _finish(records, *winner, task, backbone, ctx, folder)


def _candidates(advice: Advice, folder: Path, seed: int, only: str | None) -> list[_Candidate]:
    by_name = {r.strategy: r for r in advice.recommendations}
    names = [only] if only else _contenders(advice)
    storage = f"sqlite:///{(folder / 'study.db').resolve()}"
    probe_trials = PROBE_TRIALS if only else 1
    return [_candidate(by_name[n], storage, seed, probe_trials) for n in names]


def _contenders(advice: Advice) -> list[str]:
    """List the floor, the advised strategy, its runner-up, and a training that may beat them."""
    names = [FLOOR, *(r.strategy for r in advice.recommendations[:2])]
    trained = [
        r
        for r in advice.recommendations
        if get_strategy(r.strategy).selects_on_val
        and r.strategy != CONTROL
        and r.accuracy.high > advice.best.accuracy.mid
    ]
    if trained:
        names.append(max(trained, key=lambda r: r.accuracy.mid).strategy)
    return list(dict.fromkeys(names))


def _candidate(advised: Recommendation, storage: str, seed: int, probe_trials: int) -> _Candidate:
    study = optuna.create_study(
        study_name=advised.strategy,
        storage=storage,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=5),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
    )
    study.enqueue_trial(dict(advised.hyperparameters))
    strategy = get_strategy(advised.strategy)
    most = math.inf if strategy.selects_on_val else probe_trials
    return _Candidate(strategy, study, advised.seconds.mid, most)


def _next(
    candidates: list[_Candidate], ctx: RunContext, leader: TrialRecord | None
) -> _Candidate | None:
    """Give the next trial to the open strategy with the fewest; the leader's count half."""
    left = ctx.seconds_left()
    if left <= 0:
        return None
    able = [c for c in candidates if c.is_open(left)]
    if not able:
        return None

    def load(c: _Candidate) -> float:
        leads = leader is not None and leader.strategy == c.strategy.name
        return c.n_trials / 2 if leads else float(c.n_trials)

    return min(able, key=load)


def _run_trial(
    candidate: _Candidate, number: int, task: ImageTask, backbone: Backbone, ctx: RunContext
) -> tuple[TrialRecord, ImageClassifier | None]:
    """Run one trial; a failure has a reason and no score."""
    start = time.monotonic()
    trial = candidate.study.ask()
    classifier = None
    try:
        strategy = candidate.strategy.suggest(trial, task, backbone)
        refusal = strategy.why_not(task, backbone)
        if refusal is not None:
            raise TransferError(refusal)
        classifier = strategy.fit(task, backbone, replace(ctx, on_epoch=_reporter(trial, ctx)))
        accuracy = evaluate(classifier, task.val, n_workers=ctx.n_workers).accuracy
        candidate.study.tell(trial, accuracy.mid)
        reason = None
    except optuna.TrialPruned:
        candidate.study.tell(trial, state=TrialState.PRUNED)
        accuracy, reason = None, "pruned: worse than the median of earlier trials at this point"
    except TransferError as error:
        trial.set_user_attr("reason", str(error))
        candidate.study.tell(trial, state=TrialState.FAIL)
        accuracy, reason = None, str(error)
    seconds = time.monotonic() - start
    used: Mapping[str, Any] = classifier.hyperparameters if classifier else trial.params
    record = TrialRecord(
        number, candidate.strategy.name, dict(used), accuracy, round(seconds, 3), reason
    )
    candidate.n_trials += 1
    if reason is None:
        candidate.expected_s = seconds
    return record, classifier


def _reporter(trial: Trial, ctx: RunContext) -> OnEpoch:
    def report(epoch: int, val_accuracy: float | None) -> None:
        ctx.on_progress("this trial", epoch, ROUNDS)
        if val_accuracy is None:
            return
        trial.report(val_accuracy, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned

    return report


def _beats(record: TrialRecord, best: TrialRecord, task: ImageTask) -> bool:
    """Whether a trial is better than the best so far.

    What is dearer, or the same strategy with other hyperparameters than came first, must win by
    more than one val picture; what is cheaper may lose by one.
    """
    assert record.val_accuracy is not None
    assert best.val_accuracy is not None
    order = list(STRATEGIES)
    gap = record.val_accuracy.mid - best.val_accuracy.mid
    one_picture = 1.5 / len(task.val)
    if order.index(record.strategy) < order.index(best.strategy):
        return gap >= -one_picture
    return gap > one_picture


def _finish(
    records: list[TrialRecord],
    best: TrialRecord,
    classifier: ImageClassifier,
    task: ImageTask,
    backbone: Backbone,
    ctx: RunContext,
    folder: Path,
) -> SearchResult:
    """Fit a probe once more, on train and val: its features are cached, so this is free."""
    strategy = get_strategy(best.strategy)
    if strategy.selects_on_val:
        return SearchResult(tuple(records), best, classifier, refitted=False)
    last = replace(ctx, deadline_s=None)
    refitted = strategy(**best.hyperparameters).fit(task.with_val_in_train(), backbone, last)
    refitted.save(folder / "classifier")
    return SearchResult(tuple(records), best, refitted, refitted=True)


def _append(path: Path, record: TrialRecord) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(record)) + "\n")
