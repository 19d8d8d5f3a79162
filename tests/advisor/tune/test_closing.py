"""Draft report and control around a search: when the control of which strategy is fitted."""

import time
from dataclasses import replace

import numpy as np
import pytest

from advisor.advise import Prepared
from advisor.report.gallery import Gallery
from advisor.report.maps.mistakes import NO_TIME
from advisor.tune import closing, control
from advisor.tune.control import Control
from advisor.tune.time_budget import TimeBudget
from advisor.types.options import DEFAULTS, RunOptions
from advisor.types.outcome import Ended, TrialRecord
from strategies.core.context import RunContext
from strategies.models.classifier import ImageClassifier, evaluate_probabilities
from tests.advisor.report.made import made_outcome
from tests.advisor.searching import Runner


@pytest.fixture
def prepared(run: Runner) -> Prepared:
    return Prepared(run.dataset, run.backbone, (), (), DEFAULTS, run.ctx)


def budget(seconds: float) -> TimeBudget:
    return TimeBudget(
        time.monotonic() + seconds, seconds, 0, 1, {64: 0.001}, control_s=0.4 * seconds
    )


def test_the_draft_report_is_written_with_the_map_before_the_search(
    run: Runner, prepared: Prepared
) -> None:
    gallery, seconds = closing.draft_report(run.folder, run.advice, prepared, 100.0)
    assert len(gallery.points) == len(run.dataset.fit_split)
    assert 0 < seconds < 60
    assert "<html" in (run.folder.path / "report.html").read_text()


def test_a_draft_report_without_time_has_no_map(run: Runner, prepared: Prepared) -> None:
    gallery, _ = closing.draft_report(run.folder, run.advice, prepared, 0.0)
    assert gallery.points == ()
    assert gallery.n_images == len(run.dataset.fit_split)


def test_the_reserve_for_explanations_is_a_small_share_of_a_short_run(
    run: Runner, prepared: Prepared
) -> None:
    profile, options = run.advice.profile, RunOptions(time_s=10.0)
    assert prepared.dataset.test
    short = closing.time_budget(prepared, profile, options, time.monotonic() + 10.0)
    assert 0 < short.explain_s <= closing.EXPLAIN_SHARE * 10.0
    long = closing.time_budget(
        prepared, profile, replace(options, time_s=1e6), time.monotonic() + 1e6
    )
    expected = closing.EXPLAIN_IMAGES * profile.ms_per_image / 1000
    assert long.explain_s == pytest.approx(expected)
    for changed, given in (
        (prepared, replace(options, report=False)),
        (replace(prepared, dataset=replace(prepared.dataset, test=())), options),
    ):
        assert closing.time_budget(changed, profile, given, 0.0).explain_s == 0


def test_the_mistakes_on_test_are_explained_in_the_gallery_of_the_page(
    run: Runner, prepared: Prepared
) -> None:
    run(max_trials=1)
    best = run.folder.best()
    assert best is not None
    classifier = ImageClassifier.load(run.folder.classifier())
    test = prepared.dataset.test or ()
    names = prepared.dataset.classes
    wrong = np.eye(len(names), dtype=np.float32)[[(i.label + 1) % len(names) for i in test]]
    evaluation = evaluate_probabilities(wrong, test, names)
    outcome = replace(made_outcome(run.advice), test=evaluation)
    left = TimeBudget(time.monotonic() + 600, 600, 0, 1, {64: 0.001})
    given = (classifier, prepared, left)
    gallery = closing.with_explanations(Gallery(), outcome, *given)
    assert gallery is not None
    assert list(gallery.explained.by_path) == [m.path for m in evaluation.mistakes]
    assert {n.label for e in gallery.explained.by_path.values() for n in e.nearest} <= set(names)
    assert closing.with_explanations(None, outcome, *given) is None
    untested = closing.with_explanations(Gallery(), replace(outcome, test=None), *given)
    assert untested == Gallery()
    late = replace(left, deadline_s=time.monotonic() - 1)
    without = closing.with_explanations(Gallery(), outcome, classifier, prepared, late)
    assert without is not None
    assert without.explained.notes == (NO_TIME,)


def test_the_early_control_of_a_probe_is_kept_while_that_probe_is_the_incumbent(
    run: Runner, prepared: Prepared
) -> None:
    run(max_trials=1)
    early = control.fit_early_control(run.folder, prepared, budget(600))
    assert early is not None
    assert early.of_strategy == "linear_probe"
    assert control.fit_final_control(run.folder, prepared, budget(600), "time", early) is early

    other = replace(early, of_strategy="layer_svm")
    fresh = control.fit_final_control(run.folder, prepared, budget(600), "time", other)
    assert fresh is not None
    assert fresh.of_strategy == "linear_probe"
    assert control.fit_final_control(run.folder, prepared, budget(-1), "time", other) is other


def test_another_probe_gets_its_own_control_only_if_its_whole_share_of_time_is_left(
    run: Runner, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(max_trials=1)
    early = control.fit_early_control(run.folder, prepared, budget(600))
    assert early is not None
    other = replace(early, of_strategy="layer_svm")
    short = replace(budget(600), control_s=700.0)
    monkeypatch.setattr(
        control, "fit_control", lambda *given: pytest.fail("fitted without enough time")
    )
    assert control.fit_final_control(run.folder, prepared, short, "time", other) is other


def test_the_control_of_a_training_run_is_fitted_only_at_the_end(
    run: Runner, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = TrialRecord(1, "full_fine_tune", {"input_px": None}, None, 1.0, None)
    monkeypatch.setattr(control.RunDir, "best", lambda self: (tuned, False))
    assert control.fit_early_control(run.folder, prepared, budget(600)) is None

    given: list[float] = []

    def fit(best: object, dataset: object, backbone: object, ctx: RunContext) -> Control | None:
        given.append(ctx.seconds_left())
        return None

    monkeypatch.setattr(control, "fit_control", fit)
    end_reasons: tuple[Ended, ...] = ("time", "unbeatable")
    for ended in end_reasons:
        control.fit_final_control(run.folder, prepared, budget(600), ended, None)
    assert given == pytest.approx([599, 240], abs=2)  # all the time left, or only its share


def test_a_network_trained_from_scratch_has_no_final_control(
    run: Runner, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(max_trials=1)
    early = control.fit_early_control(run.folder, prepared, budget(600))
    scratch = TrialRecord(1, "from_scratch", {}, None, 1.0, None)
    monkeypatch.setattr(control.RunDir, "best", lambda self: (scratch, False))
    assert control.fit_final_control(run.folder, prepared, budget(600), "time", early) is None
