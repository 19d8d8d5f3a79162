"""Search loop: baseline first, every trial recorded, the best classifier saved."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from advisor.tune.trials.executor import LocalExecutor
from advisor.types.events import Event
from advisor.types.outcome import TrialRecord
from strategies.core.cache import ArrayCache
from strategies.core.context import RunContext
from strategies.core.errors import DataError, OutOfTime, TrainingDiverged
from strategies.core.metrics import Interval
from strategies.data.dataset import Dataset, labels_of
from strategies.full_fine_tune import FullFineTune
from strategies.layer_svm import LayerSVM
from strategies.linear_probe import LinearProbe
from strategies.models import features
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier
from strategies.models.features import extract_features
from strategies.partial_fine_tune import PartialFineTune
from strategies.training import frozen_activations
from strategies.training.loop import ROUNDS
from strategies.training.recipe import RecipeDraft
from tests.advisor.searching import Runner


def score(record: TrialRecord) -> float:
    assert record.val_accuracy is not None
    return record.val_accuracy.mid


def test_the_probe_comes_first_and_a_classifier_is_on_disk(run: Runner) -> None:
    found = run(max_trials=1)
    assert [t.strategy for t in found.trials] == ["linear_probe"]
    saved = ImageClassifier.load(run.folder.classifier())
    paths = [p.path for p in run.dataset.val]
    np.testing.assert_allclose(
        saved.predict_proba(paths), found.classifier.predict_proba(paths), atol=1e-6
    )


def with_some_features(run: Runner, tmp_path: Path, n_per_class: int) -> Runner:
    """Let the cache hold the features of the first images of every class only."""
    run.ctx = replace(run.ctx, cache=ArrayCache(tmp_path / "some"))
    for split in (run.dataset.train, run.dataset.val):
        for label in range(run.dataset.n_classes):
            few = [image for image in split if image.label == label][:n_per_class]
            if few:
                extract_features(few, run.backbone, run.ctx)
    return run


def test_the_first_classifier_is_a_probe_on_the_features_that_were_measured(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = with_some_features(run, tmp_path, 2).prepare()
    with monkeypatch.context() as patched:
        patched.setattr(features, "batches", None)  # no image may be read
        search.fit_on_measured()

    found = search.result()
    assert found.best.n_train == 2 * run.dataset.n_classes
    assert found.best.val_accuracy is not None
    assert ImageClassifier.load(run.folder.classifier()).classes == run.dataset.classes
    (again,) = run.prepare().trials.snapshot().done
    assert again == found.best == run.folder.best()[0]  # type: ignore[index]
    search.fit_on_measured()  # there is a classifier already
    assert len(search.trials.snapshot().done) == 1


def test_a_probe_on_all_images_replaces_the_first_classifier(run: Runner, tmp_path: Path) -> None:
    search = with_some_features(run, tmp_path, 2).prepare()
    search.fit_on_measured()
    search.run(stop_at_first=False)

    records = search.result().trials
    assert [r.n_train for r in records if r.strategy == "linear_probe"][:2] == [
        2 * run.dataset.n_classes,
        None,
    ]
    assert search.result().best.n_train is None


def test_without_time_for_a_trial_a_probe_on_all_measured_images_is_the_classifier(
    run: Runner,
) -> None:
    extract_features(run.dataset.fit_split, run.backbone, run.ctx)
    run.deadline_s = time.monotonic() - 1
    search = run.prepare()
    search.run()
    assert search.trials.snapshot().n == 0  # there was no time for a trial
    search.fit_on_measured()

    found = search.result()
    assert found.best.strategy == "linear_probe"
    assert found.best.n_train is None
    assert ImageClassifier.load(run.folder.classifier()).classes == run.dataset.classes


def test_a_probe_is_scored_on_cached_features_as_it_would_predict(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = run.prepare()
    extract_features(run.dataset.fit_split, run.backbone, run.ctx)
    with monkeypatch.context() as patched:
        patched.setattr(features, "batches", None)  # no image may be read
        patched.setattr(ImageClassifier, "predict_proba", None)
        search.run(stop_at_first=True)

    scored, dataset = search.trials.snapshot().done[0], run.dataset
    again = LinearProbe.from_hyperparameters(
        {k: v for k, v in scored.hyperparameters.items() if k != "views"} | {"views": 1}
    ).fit(dataset, run.backbone, run.ctx)
    predicted = again.predict_proba([p.path for p in dataset.val]).argmax(axis=1)
    assert scored.hyperparameters["views"] == 1
    assert score(scored) == np.mean(predicted == labels_of(dataset.val))


@pytest.mark.parametrize("was_killed", [False, True])
def test_without_time_for_the_strategy_asked_for_a_probe_is_left(
    run: Runner, was_killed: bool
) -> None:
    search = run.prepare(only="full_fine_tune")
    if was_killed:  # a trial waits to begin again
        search.trials.begin("full_fine_tune", {})
        search = run.prepare(only="full_fine_tune")
        search.trials.requeue_dead(None)
    extract_features(run.dataset.fit_split, run.backbone, run.ctx)
    search.executor.budget.deadline_s = 0.0
    search.run()
    search.fit_on_measured()
    assert search.incumbent.trial is None
    search.fit_fallback()

    found = search.result()
    assert found.best.strategy == "linear_probe"
    assert ImageClassifier.load(run.folder.classifier()).classes == run.dataset.classes
    reasons = [r.reason for r in found.trials if r.strategy == "full_fine_tune"]
    assert reasons == ["no time was left"] * was_killed
    search.fit_fallback()  # there is a classifier
    assert search.result() == found


@pytest.mark.parametrize("only", ["layer_svm", None])
def test_nothing_is_fitted_before_the_search_if_all_images_were_measured_or_no_probe_is_searched(
    run: Runner, tmp_path: Path, only: str | None
) -> None:
    search = (run if only is None else with_some_features(run, tmp_path, 2)).prepare(only=only)
    search.fit_on_measured()
    assert search.trials.snapshot().n == 0


def test_a_class_without_measured_images_prevents_a_first_classifier(
    run: Runner, tmp_path: Path
) -> None:
    search = with_some_features(run, tmp_path, 0).prepare()
    search.fit_on_measured()
    assert search.trials.snapshot().n == 0


def test_every_trial_is_in_the_study_and_in_trials_jsonl(run: Runner) -> None:
    found = run(max_trials=4, only="layer_svm")
    trials = run.study("layer_svm").trials
    assert len(found.trials) == len(run.lines()) == len(trials) == 4
    assert [t.value for t in trials] == [score(t) for t in found.trials]
    one_image = 1.5 / len(run.dataset.val)
    assert score(found.best) >= max(map(score, found.trials)) - one_image


def test_the_first_trial_is_the_advice(run: Runner) -> None:
    run(max_trials=1, only="layer_svm")
    advised = next(r for r in run.advice.recommendations if r.strategy == "layer_svm")
    drawn = run.study("layer_svm").trials[0].params
    assert drawn.items() <= advised.hyperparameters.items()


def test_a_failed_trial_has_a_reason_and_no_score(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*args: object) -> ImageClassifier:
        raise TrainingDiverged("the loss was not finite")

    monkeypatch.setattr(FullFineTune, "fit", diverge)
    with pytest.raises(OutOfTime, match="not finite"):
        run(max_trials=1, only="full_fine_tune")
    (record,) = run.lines()
    assert record["val_accuracy"] is None
    assert "not finite" in record["reason"]
    (trial,) = run.study("full_fine_tune").trials
    assert trial.value is None
    assert trial.state == optuna.trial.TrialState.FAIL


def test_a_failure_does_not_end_the_search(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*args: object) -> ImageClassifier:
        raise TrainingDiverged("the loss was not finite")

    advised = run.advice.recommendations
    ranked = sorted(advised, key=lambda r: r.strategy != "layer_svm")
    run.advice = replace(run.advice, recommendations=tuple(ranked))
    monkeypatch.setattr(LayerSVM, "fit", diverge)
    found = run(max_trials=2)
    assert found.best.strategy == "linear_probe"
    assert any(t.reason for t in found.trials)


def test_a_winning_probe_is_refitted_on_train_and_validation(run: Runner) -> None:
    found = run(max_trials=1)
    assert found.refitted
    expected = LinearProbe.from_hyperparameters(found.best.hyperparameters).fit(
        run.dataset.hide_test().with_val_in_train(), run.backbone, run.ctx
    )
    paths = [p.path for p in run.dataset.fit_split]
    np.testing.assert_allclose(
        found.classifier.predict_proba(paths), expected.predict_proba(paths), atol=1e-6
    )


def test_a_probe_is_refitted_at_once_so_that_no_time_need_be_reserved(run: Runner) -> None:
    run.deadline_s = time.monotonic() + 3600
    search = run.prepare(max_trials=1)
    before = search.executor.budget.search_ends_s()
    search.run()
    best = run.folder.best()
    assert best is not None
    assert best[1]
    assert search.executor.budget.search_ends_s() == before
    longest = replace(best[0], number=1, seconds=4000.0, val_accuracy=Interval(1.0, 1.0, 1.0))
    assert search.executor.refit(replace(longest, strategy="full_fine_tune")) is None
    assert search.executor.refit(longest) is None


def test_the_search_can_stop_at_the_first_classifier_and_continue(run: Runner) -> None:
    search = run.prepare(max_trials=2, only="layer_svm")
    search.run(stop_at_first=True)
    assert len(search.trials.snapshot().done) == 1
    assert run.folder.best() is not None
    search.run(stop_at_first=True)
    assert len(search.trials.snapshot().done) == 1
    search.run()
    assert len(search.trials.snapshot().done) == 2
    assert search.end_reason() == "trials"


def test_without_time_out_of_time_is_raised(run: Runner) -> None:
    run.deadline_s = 0.0
    with pytest.raises(OutOfTime, match="--time"):
        run()


def test_a_dataset_without_validation_images_is_refused(run: Runner) -> None:
    run.dataset = replace(run.dataset, val=())
    with pytest.raises(DataError, match="--val"):
        run()


def test_a_probe_is_tried_once_and_the_other_trials_are_training_runs(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(self: object, *args: Any) -> ImageClassifier:
        return LinearProbe(0.01).fit(*args)

    for strategy in (FullFineTune, PartialFineTune):  # which strategies are tried is the question
        monkeypatch.setattr(strategy, "fit", fit)
    tried = [t.strategy for t in run(max_trials=4).trials]
    assert tried.count("linear_probe") == 1
    assert set(tried) & {"partial_fine_tune", "full_fine_tune"}
    assert "from_scratch" not in tried


def test_a_training_run_clearly_in_the_worse_half_is_pruned(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves = [[0.9] * ROUNDS, [0.8] * ROUNDS, [0.95] * ROUNDS, [0.1] * ROUNDS]
    waiting = iter(curves)

    def fit(
        self: FullFineTune, dataset: Dataset, backbone: Backbone, ctx: RunContext
    ) -> ImageClassifier:
        for step, accuracy in enumerate(next(waiting), start=1):
            ctx.reporter.on_epoch(step, accuracy)
        return LinearProbe(0.01).fit(dataset, backbone, ctx)

    monkeypatch.setattr(FullFineTune, "fit", fit)
    found = run(max_trials=4, only="full_fine_tune")
    assert [r.val_accuracy is None for r in found.trials] == [False, False, False, True]
    assert "pruned" in str(found.trials[3].reason)
    pruned = run.study("full_fine_tune").trials[3]
    assert pruned.state == optuna.trial.TrialState.PRUNED
    assert list(pruned.intermediate_values) == [1]
    kinds = [(e.kind, e.step) for e in run.events if e.number == 3]
    assert kinds == [("begun", 0), ("round", 1), ("ended", 0)]


def test_training_runs_with_the_same_frozen_stages_compute_their_activations_once(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled: list[object] = []
    fill = frozen_activations._fill_train
    monkeypatch.setattr(frozen_activations, "_fill_train", lambda *a: (filled.append(a), fill(*a)))

    found = run(max_trials=2, only="partial_fine_tune")

    frozen = [t.hyperparameters["frozen_stages"] for t in found.trials]
    assert len(frozen) == 2
    assert len(set(frozen)) == len(filled) == 1


def test_a_diverging_training_run_is_pruned_and_its_checkpoint_is_deleted(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = iter([1e-5, 1e-5, 1.0])
    seen: list[bool] = []

    def chosen(given: object) -> FullFineTune:
        return FullFineTune(RecipeDraft(lr=next(rates), blend=1.0, steps=ROUNDS))

    def on_event(event: Event) -> None:
        seen.append((run.folder.path / "checkpoints" / "trial-2").exists())

    # With this many validation images the difference is significant.
    run.dataset = replace(run.dataset, val=(*run.dataset.val, *run.dataset.train))
    monkeypatch.setattr(FullFineTune, "from_hyperparameters", chosen)
    search = replace(run.prepare(max_trials=3, only="full_fine_tune"), on_event=on_event)
    search.run()
    good, also_good, hopeless = search.result().trials
    assert min(score(good), score(also_good)) > 0.6
    assert hopeless.val_accuracy is None
    assert "pruned" in str(hopeless.reason)
    assert any(seen)
    assert not list((run.folder.path / "checkpoints").iterdir())


def test_the_classifier_of_this_process_is_not_read_back(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = run.prepare(max_trials=1)
    search.run()
    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, "load", None)
        own = search.result().classifier
    other = run.prepare(max_trials=1).result().classifier
    paths = [p.path for p in run.dataset.val]
    np.testing.assert_array_equal(own.predict_proba(paths), other.predict_proba(paths))


def test_features_are_computed_ahead_only_where_a_trial_may_use_them(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(LocalExecutor, "compute_features", lambda executor: calls.append("asked"))
    run.prepare(only="from_scratch").compute_features()
    interrupted = run.prepare(only="linear_probe")
    interrupted.executor.interrupt.requested = True
    interrupted.compute_features()
    assert calls == []
    run.prepare(only="linear_probe").compute_features()
    assert calls == ["asked"]
