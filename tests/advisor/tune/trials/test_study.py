"""Trials of a run in an Optuna study: each number counts once, whatever dies when."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from advisor.tune.trials.job import Job
from advisor.tune.trials.pruning import make_pruning
from advisor.tune.trials.study import MAX_ATTEMPTS, Trials
from advisor.types.outcome import TrialRecord
from strategies.core.errors import StorageError
from strategies.core.metrics import Interval

SPACES = {"a": {"x": FloatDistribution(0.0, 1.0)}, "b": {"y": FloatDistribution(0.0, 1.0)}}


def opened(folder: Path) -> Trials:
    """Open the trials of a run, as a new driver does."""
    pruning = make_pruning(1000, by_folds=False)
    return Trials(folder / "study.db", SPACES, pruning=pruning)


def begun(trials: Trials, strategy: str | None = "a") -> Job:
    job = trials.begin(strategy, {})
    assert job is not None
    return job


def record_of(job: Job, accuracy: float | None = 0.8, reason: str | None = None) -> TrialRecord:
    interval = None if accuracy is None else Interval(accuracy - 0.1, accuracy, accuracy + 0.1)
    return TrialRecord(job.number, job.strategy, job.hyperparameters, interval, 1.5, reason)


def test_what_is_told_is_read_back_by_another_driver(tmp_path: Path) -> None:
    trials = opened(tmp_path)
    jobs = [begun(trials, name) for name in ("a", "b", "a")]
    first, second, third = map(record_of, jobs)
    failed = replace(second, val_accuracy=None, reason="out of memory: 8 bytes")
    pruned = replace(third, val_accuracy=None, reason="pruned: behind", pruned=True)
    for record in (pruned, first, failed):  # trials may end in another order than they began
        trials.tell(record)
    assert opened(tmp_path).snapshot().done == (first, failed, pruned)
    assert trials.snapshot().unfinished == ()


def test_several_trials_run_at_once_and_each_has_its_own_number(tmp_path: Path) -> None:
    trials = opened(tmp_path)
    jobs = [begun(trials, name) for name in ("a", "a", "b")]
    assert [job.number for job in jobs] == [0, 1, 2]
    assert trials.snapshot().unfinished == ("a", "a", "b")
    assert trials.snapshot().n == 3
    assert jobs[0].settings != jobs[1].settings


def test_a_trial_of_a_dead_driver_begins_again_with_what_it_reported(tmp_path: Path) -> None:
    dead = opened(tmp_path)
    lost = begun(dead)
    assert not dead.report(lost, {1: 0.5, 2: 0.6})
    trials = opened(tmp_path)
    trials.requeue_dead(None)
    assert trials.snapshot().n == 1
    again = begun(trials, None)
    assert again == replace(lost, known={1: 0.5, 2: 0.6})
    assert not trials.report(again, {2: 0.1, 3: 0.7})  # a known step is not changed
    trials.tell(record_of(again))
    assert [r.number for r in opened(tmp_path).snapshot().done] == [0]
    assert trials.begin(None, {}) is None


def test_a_trial_whose_classifier_was_saved_is_complete(tmp_path: Path) -> None:
    job = begun(opened(tmp_path))
    trials = opened(tmp_path)
    trials.requeue_dead(record_of(job))
    assert trials.snapshot().done == (record_of(job),)


@pytest.mark.parametrize("n_written", range(6))
@pytest.mark.parametrize("accuracy", [0.8, None])
def test_a_driver_that_dies_while_it_records_a_trial_loses_it_or_has_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_written: int, accuracy: float | None
) -> None:
    trials = opened(tmp_path)
    job = begun(trials)
    record = record_of(job, accuracy, None if accuracy else "the loss was not finite")
    written: list[object] = []
    original = optuna.storages.RDBStorage.set_trial_user_attr

    def write(*given: Any, **named: Any) -> None:
        if len(written) == n_written:
            raise KeyboardInterrupt
        written.append(given)
        original(*given, **named)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(optuna.storages.RDBStorage, "set_trial_user_attr", write)
        trials.tell(record)
    resumed = opened(tmp_path)
    resumed.requeue_dead(None)
    done, n = resumed.snapshot().done, resumed.snapshot().n
    assert n == 1
    assert done in ((), (record,))
    if not done:
        assert begun(resumed, None).number == job.number


def test_a_trial_that_always_kills_its_process_is_given_up_unless_it_gets_further(
    tmp_path: Path,
) -> None:
    begun(opened(tmp_path))
    for step in range(1, 2 * MAX_ATTEMPTS):
        trials = opened(tmp_path)
        trials.requeue_dead(None)
        trials.report(begun(trials, None), {step: 0.5})  # it gets one step further every time
    for _ in range(MAX_ATTEMPTS):
        trials = opened(tmp_path)
        trials.requeue_dead(None)
        begun(trials, None)
    trials = opened(tmp_path)
    trials.requeue_dead(None)
    (given_up,) = trials.snapshot().done
    assert f"died {MAX_ATTEMPTS} times" in str(given_up.reason)
    assert trials.begin(None, {}) is None


def test_a_plain_optuna_study_is_written(tmp_path: Path) -> None:
    trials = opened(tmp_path)
    trials.tell(record_of(begun(trials)))
    url = f"sqlite:///{tmp_path / 'study.db'}"
    assert optuna.get_all_study_names(url) == ["a", "b"]
    (trial,) = optuna.load_study(study_name="a", storage=url).trials
    assert (trial.value, trial.state) == (0.8, TrialState.COMPLETE)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("no database" * 100)
    with pytest.raises(StorageError, match=r"database of the trials cannot be used.*resume"):
        opened(tmp_path)
