"""Fixed hyperparameters: the same value in every trial of a run, also after a resume."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from advisor.tune.driver import auto
from advisor.tune.fixed import check_fixed_names, checked_fixed, with_fixed
from advisor.tune.resume import resume
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.scheduler import make_scheduler
from advisor.types.advice import Advice
from advisor.types.options import Options, RunOptions
from strategies.core.errors import NotApplicable, TransferError
from strategies.data.dataset import Dataset
from strategies.layer_svm import LayerSVM
from strategies.models.backbone import Backbone
from tests.advisor.searching import Runner
from tests.advisor.tune.test_resume import Killed, kill_at

SVM = Options(strategy="layer_svm")


def test_a_fixed_value_holds_in_every_trial_and_the_others_are_searched(run: Runner) -> None:
    run.fixed = {"layer_svm": {"class_weight": "balanced", "strength": 0.1}}
    run(max_trials=4, only="layer_svm")
    settings = [line["hyperparameters"] for line in run.lines()]
    assert len(settings) == 4
    assert {s["class_weight"] for s in settings} == {"balanced"}
    assert {s["strength"] for s in settings} == {0.1}
    assert len({s["depth"] for s in settings}) > 1
    sampled = {name for t in run.study("layer_svm").trials for name in t.params}
    assert sampled == {"depth", "pooling", "input_px"}


def test_a_fixed_value_of_one_strategy_changes_no_other(run: Runner) -> None:
    run.fixed = {"layer_svm": {"class_weight": "balanced"}}
    run(max_trials=2, only="linear_probe")
    assert run.lines()[0]["hyperparameters"]["class_weight"] == "none"


def test_fixed_training_runs_differ_from_each_other_in_what_is_not_fixed(run: Runner) -> None:
    run.fixed = {"full_fine_tune": {"lr": 4e-4, "blend": 1.0, "reset_stages": 0, "steps": 3}}
    run(max_trials=3, only="full_fine_tune")
    settings = [line["hyperparameters"] for line in run.lines()]
    assert [(s["lr"], s["blend"], s["reset_stages"]) for s in settings] == [(4e-4, 1.0, 0)] * 3
    assert len({str(s) for s in settings}) == 3


def test_a_killed_run_keeps_its_fixed_values_after_a_resume(
    make_folder: Callable[..., Path],
    tmp_path: Path,
    warm_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, folder = make_folder("data", 8), tmp_path / "run"
    options = replace(SVM, input_px=64, cache_dir=warm_cache)
    limits = RunOptions(
        max_trials=3, control=False, soup=False, fixed_hyperparameters={"pooling": "mean"}
    )
    with monkeypatch.context() as patch:
        kill_at(patch, LayerSVM, "fit", call=2, before=False)
        with pytest.raises(Killed):
            auto(data, folder, options, limits)
    outcome = resume(folder)
    assert len(outcome.trials) == 3
    assert {t.hyperparameters["pooling"] for t in outcome.trials} == {"mean"}
    assert RunDir.open(folder).settings()["run"]["fixed_hyperparameters"] == {"pooling": "mean"}


def test_values_get_the_types_of_the_search_space(striped: Dataset, backbone: Backbone) -> None:
    options = Options(strategy="full_fine_tune")
    given = {"steps": 1e2, "lr": 1e-3, "hflip": True, "ema": 0, "batch_size": 64.0}
    run = RunOptions(fixed_hyperparameters=given)
    found = checked_fixed(options, run, striped, backbone)["full_fine_tune"]
    assert found == {"steps": 100, "lr": 1e-3, "hflip": True, "ema": 0, "batch_size": 64}
    assert isinstance(found["steps"], int)
    assert isinstance(found["batch_size"], int)
    assert checked_fixed(options, RunOptions(), striped, backbone) == {}


@pytest.mark.parametrize(
    ("strategy", "given", "message"),
    [
        ("full_fine_tune", {"lr": 1.0}, "lr of full_fine_tune must be a number from 3e-05 to"),
        ("full_fine_tune", {"lr": "fast"}, "got 'fast'"),
        ("full_fine_tune", {"steps": 80.5}, "steps of full_fine_tune must be a whole number"),
        ("full_fine_tune", {"hflip": 1}, "hflip of full_fine_tune must be one of false, true"),
        ("full_fine_tune", {"batch_norm": "on"}, "must be one of frozen, reestimated, trained"),
        ("full_fine_tune", {"optimiser": "adam"}, "must be one of adamw, sgd, got 'adam'"),
        ("full_fine_tune", {"mixup": "yes"}, "mixup of full_fine_tune must be a number"),
        ("full_fine_tune", {"mixup": -1.0}, "mixup must be at least 0"),
        ("full_fine_tune", {"mixup": None}, "mixup of full_fine_tune must be a number"),
        ("full_fine_tune", {"reset_stages": 99}, "reset_stages must be in 0.."),
        ("layer_svm", {"depth": 99}, "depth of layer_svm must be one of none, 0, 1"),
        ("layer_svm", {"share": 2}, "share must be above 0"),
        ("linear_probe", {"views": 3}, "views must be one of 1, 2, 6, got 3"),
        ("linear_probe", {"strength": 0}, "strength must be above 0, got 0"),
        ("linear_probe", {"input_px": 65}, "input_px of linear_probe must be one of"),
    ],
)
def test_a_value_that_no_trial_could_have_is_refused_with_its_range(
    strategy: str,
    given: dict[str, object],
    message: str,
    striped: Dataset,
    backbone: Backbone,
) -> None:
    options, run = Options(strategy=strategy), RunOptions(fixed_hyperparameters=given)
    with pytest.raises(NotApplicable) as found:
        checked_fixed(options, run, striped, backbone)
    assert message in str(found.value)


def test_names_are_checked_before_anything_is_read() -> None:
    fixed = RunOptions(fixed_hyperparameters={"depht": 1})
    with pytest.raises(NotApplicable, match="Did you mean 'depth'"):
        check_fixed_names(SVM, fixed)
    with pytest.raises(TransferError, match="Add --strategy NAME"):
        check_fixed_names(Options(), fixed)
    check_fixed_names(Options(), RunOptions(fixed_hyperparameters={}))


def test_the_expected_time_follows_the_steps_that_are_fixed(
    measured: tuple[Advice, Path], striped: Dataset, backbone: Backbone
) -> None:
    advice, _ = measured
    scheduler = make_scheduler(
        advice, 10, only="full_fine_tune", max_trials=None, prefer="balanced"
    )
    (before,) = scheduler.candidates
    fixed = {"full_fine_tune": {"steps": 10 * before.hyperparameters["steps"], "input_px": 64}}
    changed = with_fixed(scheduler, fixed, striped, backbone)
    (after,) = changed.candidates
    assert after.hyperparameters["steps"] == fixed["full_fine_tune"]["steps"]
    assert 1.5 * before.seconds.mid < after.seconds.mid < 10 * before.seconds.mid
    sizes = {o.input_px for o in changed.options if o.strategy == "full_fine_tune"}
    assert sizes <= {64}
    others = [o for o in scheduler.options if o.strategy != "full_fine_tune"]
    assert [o for o in changed.options if o.strategy != "full_fine_tune"] == others


def test_interventions_that_would_change_a_fixed_value_are_left_out(
    measured: tuple[Advice, Path], striped: Dataset, backbone: Backbone
) -> None:
    scheduler = make_scheduler(
        measured[0], 10, only="full_fine_tune", max_trials=None, prefer="balanced"
    )
    changes = {"full_fine_tune": [{"blend": 1.0}, {"l2_sp": 10.0}]}
    scheduler = replace(scheduler, interventions=changes)
    fixed = {"full_fine_tune": {"blend": 0.5}}
    found = with_fixed(scheduler, fixed, striped, backbone).interventions
    assert found == {"full_fine_tune": [{"l2_sp": 10.0}]}


def test_a_first_classifier_on_measured_features_never_contradicts_fixed_values(
    run: Runner,
) -> None:
    run.fixed = {"linear_probe": {"views": 6}}
    search = run.prepare(only="linear_probe")
    search.fit_on_measured()
    search.fit_fallback()
    assert search.trials.snapshot().n == 0
