"""Pruning of training runs: clearly worse ones stop at a rung, the best hardly ever."""

import importlib
from collections.abc import Sequence
from types import ModuleType

import optuna
import pytest
from optuna.pruners import SuccessiveHalvingPruner
from optuna.trial import TrialState, create_trial

from advisor.tune.trials.pruning import PatientHalving
from tests.conftest import BENCHMARKS

GOOD, BAD = [0.9] * 6, [0.1] * 6


def stopped_at(
    study: optuna.Study, curve: Sequence[float], first: int = 1, trial: optuna.Trial | None = None
) -> int | None:
    """Simulate a training run; return the round at which it was pruned, or None."""
    trial = trial or study.ask()
    for step, accuracy in enumerate(curve[first - 1 :], start=first):
        trial.report(accuracy, step)
        if trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return step
    study.tell(trial, curve[-1])
    return None


def study_of(pruner: optuna.pruners.BasePruner) -> optuna.Study:
    return optuna.create_study(direction="maximize", pruner=pruner)


def test_a_clearly_worse_training_run_is_pruned_at_the_first_rung() -> None:
    study = study_of(PatientHalving(50))
    assert stopped_at(study, GOOD) is None
    assert stopped_at(study, BAD) == 1


@pytest.mark.parametrize(("n_val", "expected"), [(20, None), (2000, 1)])
def test_the_gap_that_prunes_depends_on_the_number_of_validation_images(
    n_val: int, expected: int | None
) -> None:
    study = study_of(PatientHalving(n_val))
    stopped_at(study, GOOD)
    assert stopped_at(study, [0.8] * 6) == expected


def test_a_training_run_is_not_pruned_for_one_bad_round() -> None:
    study = study_of(PatientHalving(50))
    stopped_at(study, GOOD)
    assert stopped_at(study, [0.9, 0.2, 0.9, 0.9, 0.9, 0.9]) is None


def test_a_training_run_that_passes_the_last_rung_runs_to_its_end() -> None:
    study = study_of(PatientHalving(50))
    for _ in range(3):
        stopped_at(study, [0.3, 0.5, 0.7, 0.8, 1.0, 1.0])
    late = [0.3, 0.5, 0.6, 0.75, 0.3, 0.3]
    assert stopped_at(study, late) is None


def test_with_very_many_validation_images_it_is_plain_successive_halving() -> None:
    curves = [[0.5 + 0.01 * ((7 * i + j) % 10) for j in range(6)] for i in range(12)]
    halving = study_of(PatientHalving(10**12))
    plain = study_of(SuccessiveHalvingPruner(min_resource=1, reduction_factor=2))
    for i, curve in enumerate(curves):
        own_best = [max(curve[: j + 1]) for j in range(6)]  # the best so far is what it compares
        assert stopped_at(halving, own_best) == stopped_at(plain, own_best), i


def test_a_failed_attempt_does_not_count_beside_the_one_that_continues_it() -> None:
    alone, resumed = study_of(PatientHalving(2000)), study_of(PatientHalving(2000))
    for study in (alone, resumed):
        stopped_at(study, GOOD)
    assert stopped_at(alone, [0.7] * 6) == 1
    dead = resumed.ask()
    dead.report(0.7, 1)
    assert dead.should_prune()
    known = resumed.get_trials()[dead.number]
    resumed.tell(dead, state=TrialState.FAIL)  # its process died before it recorded the pruning
    resumed.add_trial(
        create_trial(
            state=TrialState.WAITING,
            system_attrs=known.system_attrs,
            intermediate_values=known.intermediate_values,
        )
    )
    assert stopped_at(resumed, [0.7] * 6, first=2) == 2
    assert stopped_at(alone, [0.8] * 6) == stopped_at(resumed, [0.8] * 6) == 1


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark that replays recorded training runs."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("curves")


def test_on_recorded_training_runs_it_prunes_the_best_less_often_than_the_median_rule(
    curves: ModuleType,
) -> None:
    rows = curves.rows_of(BENCHMARKS / "curves.jsonl")
    assert len(rows) >= 4
    names = ("ASHA, patient (now)", "median of earlier trials (before)", "ASHA")
    for n_trials in (4, 12):
        now, before, plain = (curves.replay(rows, name, n_trials, 8) for name in names)
        assert now["saved"] > 0.08
        assert now["stopped_best"] <= before["stopped_best"] < plain["stopped_best"]
        assert now["test"] > before["test"] - 0.002
