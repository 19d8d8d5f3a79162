"""The search: floor first, records without holes, the best one kept on disk."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from advisor.clock import Clock
from advisor.contest import make_contest
from advisor.events import Event
from advisor.interrupt import Interrupt
from advisor.pipeline import DEFAULTS, advise
from advisor.run_folder import RunFolder
from advisor.search import Search, SearchResult
from advisor.trials import COORDINATOR, Trials
from advisor.types import Advice, TrialRecord
from strategies import full_fine_tune, partial_fine_tune
from strategies.core.backbone import Backbone
from strategies.core.cache import ArrayCache
from strategies.core.classifier import ImageClassifier
from strategies.core.errors import DataError, OutOfTime, TrainingDiverged
from strategies.core.run import RunContext
from strategies.core.task import ImageTask, load_task
from strategies.core.training import ROUNDS
from strategies.full_fine_tune import FullFineTune
from strategies.layer_svm import LayerSVM
from strategies.linear_probe import LinearProbe
from strategies.registry import STRATEGIES
from tests.conftest import write_folder


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> ImageTask:
    return load_task(write_folder(tmp_path_factory.mktemp("searched") / "data", 12))


@pytest.fixture(scope="module")
def measured(task: ImageTask, tmp_path_factory: pytest.TempPathFactory) -> tuple[Advice, Path]:
    cache = tmp_path_factory.mktemp("cache")
    advice = advise(task.root, replace(DEFAULTS, input_px=64, cache_dir=cache))
    return shortened(advice), cache


@pytest.fixture(autouse=True)
def _short_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the search space hold trainings of a few steps."""
    for module in (full_fine_tune, partial_fine_tune):
        monkeypatch.setattr(module, "default_steps", lambda n_train, batch_size: ROUNDS)


def shortened(advice: Advice) -> Advice:
    """Let every training start with as few steps as it has rounds."""
    short = [
        replace(r, hyperparameters={**r.hyperparameters, "steps": ROUNDS})
        if "steps" in r.hyperparameters
        else r
        for r in advice.recommendations
    ]
    return replace(advice, recommendations=tuple(short))


class Runner:
    """Searches in a folder of its own, each as a process of its own would."""

    def __init__(
        self, advice: Advice, task: ImageTask, backbone: Backbone, ctx: RunContext, folder: Path
    ) -> None:
        self.advice, self.task, self.backbone, self.ctx = advice, task, backbone, ctx
        self.folder = RunFolder.create(folder)
        self.deadline_s = math.inf
        self.events: list[Event] = []

    def prepare(
        self, max_trials: int | None = None, only: str | None = None, owner: str = COORDINATOR
    ) -> Search:
        n_val = len(self.task.val)
        contest = make_contest(
            self.advice, max(n_val, 1), only=only, max_trials=max_trials, shortest_s=1.0
        )
        self.folder.enter("searching", math.inf)
        return Search(
            self.task.hide_test(),
            self.backbone,
            self.ctx,
            self.folder,
            Trials(f"sqlite:///{self.folder.path / 'study.db'}", list(STRATEGIES), owner=owner),
            contest,
            Clock(self.deadline_s, 0, n_val, 0.001),
            Interrupt(),
            self.events.append,
        )

    def __call__(self, max_trials: int | None = None, only: str | None = None) -> SearchResult:
        search = self.prepare(max_trials, only)
        search.run()
        return search.result()

    def study(self, name: str) -> optuna.Study:
        storage = f"sqlite:///{self.folder.path / 'study.db'}"
        return optuna.load_study(study_name=name, storage=storage)

    def lines(self) -> list[dict[str, Any]]:
        text = (self.folder.path / "trials.jsonl").read_text()
        return [json.loads(x) for x in text.splitlines()]


@pytest.fixture
def run(
    measured: tuple[Advice, Path], task: ImageTask, backbone: Backbone, tmp_path: Path
) -> Runner:
    advice, cache = measured
    return Runner(advice, task, backbone, RunContext(ArrayCache(cache)), tmp_path / "run")


def score(record: TrialRecord) -> float:
    assert record.val_accuracy is not None
    return record.val_accuracy.mid


def test_the_probe_comes_first_and_a_classifier_is_on_disk(run: Runner) -> None:
    found = run(max_trials=1)
    assert [t.strategy for t in found.trials] == ["linear_probe"]
    saved = ImageClassifier.load(run.folder.classifier())
    paths = [p.path for p in run.task.val]
    np.testing.assert_allclose(
        saved.predict_proba(paths), found.classifier.predict_proba(paths), atol=1e-6
    )


def test_every_trial_is_in_the_study_and_in_the_list(run: Runner) -> None:
    found = run(max_trials=4, only="layer_svm")
    trials = run.study("layer_svm").trials
    assert len(found.trials) == len(run.lines()) == len(trials) == 4
    assert [t.value for t in trials] == [score(t) for t in found.trials]
    one_picture = 1.5 / len(run.task.val)
    assert score(found.best) >= max(map(score, found.trials)) - one_picture


def test_the_first_trial_is_the_advice(run: Runner) -> None:
    run(max_trials=1, only="layer_svm")
    advised = next(r for r in run.advice.recommendations if r.strategy == "layer_svm")
    assert run.study("layer_svm").trials[0].params == dict(advised.hyperparameters)


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


def test_a_winning_probe_is_fitted_once_more_with_val(run: Runner) -> None:
    found = run(max_trials=1)
    assert found.refitted
    expected = LinearProbe(**found.best.hyperparameters).fit(
        run.task.hide_test().with_val_in_train(), run.backbone, run.ctx
    )
    paths = [p.path for p in run.task.fit_split]
    np.testing.assert_allclose(
        found.classifier.predict_proba(paths), expected.predict_proba(paths), atol=1e-6
    )


def test_no_time_is_out_of_time(run: Runner) -> None:
    run.deadline_s = 0.0
    with pytest.raises(OutOfTime, match="--time"):
        run()


def test_nothing_to_select_on_is_refused(run: Runner) -> None:
    run.task = replace(run.task, val=())
    with pytest.raises(DataError, match="--val"):
        run()


def test_a_probe_is_tried_once_and_the_rest_of_the_time_goes_to_a_training(run: Runner) -> None:
    tried = [t.strategy for t in run(max_trials=4).trials]
    assert tried.count("linear_probe") == 1
    assert set(tried) & {"partial_fine_tune", "full_fine_tune"}
    assert "from_scratch" not in tried
