"""Extra trials of a run after a finding that reports negative transfer."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from advisor.tune.interventions import (
    INTERVENTIONS,
    accepts,
    backbone_of,
    controls_are_candidates,
    hyperparameters_of,
    initial_trials,
    interventions_for,
)
from advisor.tune.scheduler import make_scheduler
from advisor.tune.time_budget import TimeLeft
from advisor.tune.trials.pruning import make_pruning
from advisor.tune.trials.study import Trials, TrialsSnapshot
from advisor.types.advice import Advice, Finding, Recommendation, Severity
from advisor.types.profile import AlternativeBackbone
from strategies.core.errors import OutOfTime, TrainingDiverged
from strategies.core.metrics import Interval
from strategies.full_fine_tune import FullFineTune
from strategies.linear_probe import LinearProbe
from strategies.registry import STRATEGIES
from tests.advisor.searching import Runner


def finding(code: str, severity: Severity = "issue") -> Finding:
    return Finding(code, severity, "title", "detail", "action")


def test_every_intervention_is_a_valid_change_of_its_strategy() -> None:
    for changes in INTERVENTIONS.values():
        for change in changes:
            chosen = [kind for kind in STRATEGIES.values() if accepts(kind, change)]
            assert FullFineTune in chosen
            for kind in chosen:
                assert kind.from_hyperparameters(change) != kind()


def test_without_a_finding_there_is_no_intervention_and_none_occurs_twice() -> None:
    assert interventions_for(()) == {}
    assert interventions_for((finding("TL207", "tip"),)) == {}
    both = interventions_for((finding("TL202"), finding("TL203", "tip")))
    assert both == {"full_fine_tune": [{"reset_stages": 2, "blend": 1.0}]}


def test_from_scratch_is_a_candidate_after_an_issue_and_not_after_a_tip() -> None:
    assert controls_are_candidates((finding("TL208"),))
    assert not controls_are_candidates((finding("TL208", "tip"), finding("TL006")))


def test_interventions_start_right_after_the_advice() -> None:
    advised = {"lr": 1e-3, "batch_norm": "frozen"}
    modes = {"batch_norm": CategoricalDistribution(["frozen", "reestimated", "trained"])}
    entries = initial_trials(advised, modes, [{"batch_norm": "reestimated"}])
    assert [e["batch_norm"] for e in entries] == ["frozen", "reestimated", "trained"]


def test_an_issue_makes_from_scratch_a_candidate_of_the_scheduler(
    measured: tuple[Advice, object],
) -> None:
    no_findings = replace(measured[0], findings=())
    with_issue = replace(no_findings, findings=(finding("TL209"),))

    def candidates(advice: Advice) -> set[str]:
        scheduler = make_scheduler(advice, 50, only=None, max_trials=None, prefer="balanced")
        return {c.strategy for c in scheduler.candidates}

    assert candidates(with_issue) == candidates(no_findings) | {"from_scratch"}


def test_a_strategy_without_benchmark_cases_is_searched_only_if_advised_or_asked_for(
    measured: tuple[Advice, object],
) -> None:
    name = "first_stages"
    proven = [r for r in measured[0].recommendations if r.cases and r.strategy != name]
    known = next(r for r in measured[0].recommendations if r.strategy == name)
    sure = replace(known, cases=0, accuracy=Interval(0.98, 0.99, 1.0))

    def candidates(order: list[Recommendation], only: str | None = None) -> set[str]:
        advice = replace(measured[0], recommendations=tuple(order), findings=())
        scheduler = make_scheduler(advice, 50, only=only, max_trials=None, prefer="balanced")
        return {c.strategy for c in scheduler.candidates}

    assert name in candidates([*proven, replace(sure, cases=4)])
    assert name not in candidates([*proven, sure])
    assert name in candidates([sure, *proven])
    assert candidates([*proven, sure], only=name) == {name}


def with_alternative(advice: Advice, alternative: str) -> Advice:
    """Return advice with another backbone that is clearly better."""
    lead = Interval(0.1, 0.2, 0.3)
    other = AlternativeBackbone(alternative, Interval(0.8, 0.85, 0.9), lead)
    return replace(advice, alternative=other, findings=(finding("TL209"),))


def test_probes_try_a_better_backbone_second_and_training_runs_try_it_first(
    measured: tuple[Advice, object],
) -> None:
    advice = with_alternative(measured[0], "better")
    scheduler = make_scheduler(advice, 50, only=None, max_trials=None, prefer="balanced")
    begun: dict[str, list[str | None]] = {}
    snapshot = TrialsSnapshot((), ())
    for _ in range(12):
        name = scheduler.choose(snapshot, TimeLeft(math.inf, math.inf))
        assert name is not None
        start = scheduler.start(name, snapshot, {}, TimeLeft(math.inf, math.inf))
        begun.setdefault(name, []).append(start.get("backbone"))
        snapshot = replace(snapshot, unfinished=(*snapshot.unfinished, name))
    assert next(iter(begun)) == "linear_probe"
    assert begun["linear_probe"] == [None, "better"]
    assert begun["full_fine_tune"][:2] == ["better", None]
    assert set(begun["from_scratch"]) == {None}
    no_findings = replace(advice, findings=())
    assert not make_scheduler(
        no_findings, 50, only=None, max_trials=None, prefer="balanced"
    ).interventions


def test_a_trial_records_its_other_backbone_whether_it_wins_or_not(
    run: Runner, small_network: str
) -> None:
    run.advice = with_alternative(run.advice, small_network)
    run.prepare(max_trials=2, only="linear_probe").run()
    first, second = run.lines()
    assert "backbone" not in first["hyperparameters"]
    assert second["hyperparameters"]["backbone"] == small_network
    assert first["val_accuracy"]
    assert second["val_accuracy"]
    for line, name in ((first, run.backbone.name), (second, small_network)):
        assert backbone_of(line["hyperparameters"], run.backbone).name == name
        made = LinearProbe.from_hyperparameters(hyperparameters_of(line["hyperparameters"]))
        assert made.input_px == run.backbone.input_px


def test_start_values_outside_the_search_space_are_set_and_drawn_values_are_kept(
    tmp_path: Path,
) -> None:
    space = {"lr": FloatDistribution(1e-5, 1e-2), "blend": FloatDistribution(0.5, 1.0)}
    pruning = make_pruning(10, by_folds=False)
    trials = Trials(tmp_path / "study.db", {"full_fine_tune": space}, pruning=pruning)
    start = {"lr": 1e-3, "reset_stages": 2, "backbone": "other"}
    job = trials.begin("full_fine_tune", start)
    assert job is not None
    assert start.items() <= job.settings.items()
    assert job.hyperparameters.keys() == {"lr", "reset_stages", "blend"}
    assert 0.5 <= job.hyperparameters["blend"] <= 1.0


@pytest.mark.parametrize("code", ["TL205", "TL202"])
def test_a_run_tries_the_intervention_of_a_finding(
    run: Runner, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[FullFineTune] = []

    def note(strategy: FullFineTune, *args: object) -> None:
        tried.append(strategy)
        raise TrainingDiverged("not trained in this test")

    monkeypatch.setattr(FullFineTune, "fit", note)
    run.advice = replace(run.advice, findings=(finding(code),))
    with pytest.raises(OutOfTime):
        run(max_trials=2, only="full_fine_tune")
    change = INTERVENTIONS[code][0]
    plain, changed = (t.hyperparameters() for t in tried)
    assert not change.items() <= plain.items()
    assert change.items() <= changed.items()
    assert changed["lr"] == plain["lr"]
