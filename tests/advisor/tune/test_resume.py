"""Resume after a kill at any point: no finished trial is lost and none counts twice."""

import math
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from advisor.tune.driver import begin_session
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.search import SearchResult
from advisor.tune.trials.study import Trials
from advisor.types.outcome import TrialRecord
from strategies.core.cache import ArrayCache
from strategies.core.errors import StorageError
from strategies.layer_svm import LayerSVM
from strategies.models.classifier import ImageClassifier
from strategies.models.features import extract_features
from strategies.training.loop import ROUNDS
from tests.advisor.searching import Runner


class Killed(BaseException):
    """Exception that no code catches: simulates kill -9 inside the process."""


def kill_at(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, *, call: int, before: bool
) -> None:
    """Raise `Killed` before or after the `call`-th call of a method."""
    original = getattr(owner, name)
    calls = 0

    def last(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and before:
            raise Killed
        result = original(*args, **kwargs)
        if calls == call:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, last)


def without_seconds(records: tuple[TrialRecord, ...]) -> list[dict[str, Any]]:
    return [{k: v for k, v in asdict(r).items() if k != "seconds"} for r in records]


KILL_POINTS: list[tuple[type, str, int, bool]] = [
    (optuna.Study, "ask", 2, False),
    (Trials, "begin", 2, False),
    (LayerSVM, "fit", 3, False),
    (RunDir, "save_best", 1, False),
    (optuna.Study, "tell", 2, True),
    (Trials, "tell", 3, False),
    (RunDir, "write_trials", 3, True),
]


@pytest.fixture(scope="module")
def uninterrupted(
    make_runner: Callable[[Path], Runner], tmp_path_factory: pytest.TempPathFactory
) -> SearchResult:
    """The result of a search that is not killed."""
    return make_runner(tmp_path_factory.mktemp("uninterrupted") / "run")(
        max_trials=3, only="layer_svm"
    )


@pytest.mark.parametrize(
    ("owner", "name", "call", "before"), KILL_POINTS, ids=[f"{m[1]}-{m[2]}" for m in KILL_POINTS]
)
def test_a_killed_search_has_the_result_of_an_uninterrupted_one(
    run: Runner,
    uninterrupted: SearchResult,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    call: int,
    before: bool,
) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, owner, name, call=call, before=before)
        with pytest.raises(Killed):
            run(max_trials=3, only="layer_svm")
    known = without_seconds(run.prepare().trials.snapshot().done)
    found = run.resume(max_trials=3, only="layer_svm")
    assert without_seconds(found.trials) == without_seconds(uninterrupted.trials)
    assert without_seconds(found.trials)[: len(known)] == known
    assert found.best.number == uninterrupted.best.number
    on_disk = run.folder.best()
    assert on_disk is not None
    assert on_disk[0] == found.best


def test_a_trial_that_kills_its_process_every_time_is_given_up(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*args: object) -> ImageClassifier:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(LayerSVM, "fit", die)
        for _ in range(3):
            with pytest.raises(Killed):
                run.resume(max_trials=2, only="layer_svm")
    found = run.resume(max_trials=2, only="layer_svm")
    assert [r.number for r in found.trials] == [0, 1]
    assert found.trials[0].val_accuracy is None
    assert "the process running it died 3 times" in str(found.trials[0].reason)
    assert found.best.number == 1


def test_an_interrupted_swap_leaves_the_old_classifier(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(max_trials=1)
    with monkeypatch.context() as patch:
        kill_at(patch, Path, "rename", call=1, before=False)
        with pytest.raises(Killed):
            run.folder.save_best(found.classifier, found.best, refitted=False)
    assert not (run.folder.path / "classifier").exists()
    assert run.folder.best() == (found.best, True)
    with run.folder.locked():
        assert (run.folder.path / "classifier").is_dir()
    ImageClassifier.load(run.folder.path / "classifier")


def test_a_truncated_line_damages_no_other_line(run: Runner) -> None:
    run.folder.log_event("session")
    with (run.folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"time": 1, "eve')
    run.folder.log_event("done")
    assert [e["event"] for e in run.folder.events()] == ["session", "done"]


def test_one_process_at_a_time_holds_the_lock_of_a_run(run: Runner) -> None:
    other = RunDir(run.folder.path)
    with run.folder.locked():
        assert other.is_locked()
        with pytest.raises(StorageError, match="in use"), other.locked():
            pass
    assert not other.is_locked()


def test_one_ctrl_c_keeps_the_best_and_a_second_stops_at_once(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = LayerSVM.fit, 0

    def fit(*args: Any) -> ImageClassifier:
        nonlocal calls
        calls += 1
        if calls == 3:  # call 2 refits the first trial with validation
            signal.raise_signal(signal.SIGINT)
        return original(*args)

    monkeypatch.setattr(LayerSVM, "fit", fit)
    search = run.prepare(max_trials=3, only="layer_svm")
    with search.executor.interrupt.handle_sigint():
        search.run()
    found = search.result()
    assert search.executor.interrupt.requested
    assert [r.reason for r in found.trials] == [None, "interrupted"]
    assert found.best.number == 0
    with search.executor.interrupt.handle_sigint(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_training_run_continues_from_the_round_after_its_checkpoint(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, Trials, "report", call=4, before=False)
        with pytest.raises(Killed):
            run(max_trials=1, only="partial_fine_tune")
    seen = [e.step for e in run.events if e.kind == "round"]
    assert seen == [1, 2, 3, 4]
    run.events.clear()
    found = run.resume(max_trials=1, only="partial_fine_tune")
    seen = [e.step for e in run.events if e.kind == "round"]
    assert seen == list(range(5, ROUNDS + 1))
    assert [r.number for r in found.trials] == [0]
    values = run.study("partial_fine_tune").trials[-1].intermediate_values
    assert sorted(values) == list(range(1, ROUNDS + 1))


def test_a_run_that_may_have_read_the_test_split_tries_no_more_trials(run: Runner) -> None:
    search = run.prepare(max_trials=2, only="layer_svm")
    search.run(stop_at_first=True)
    for _ in range(2):  # killed and resumed twice while it was judging
        run.folder.set_phase("judging", math.inf)
        session = begin_session(run.folder, math.inf)
        assert session.is_judging
        search.run()
    assert [r.number for r in search.result().trials] == [0]


def test_a_waiting_trial_is_not_taken_for_the_first_classifier_on_measured_features(
    run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, Trials, "report", call=1, before=True)
        with pytest.raises(Killed):
            run(max_trials=1, only="partial_fine_tune")
    some = replace(run.ctx, cache=ArrayCache(tmp_path / "some"))
    few = [i for c in range(3) for i in run.dataset.fit_split if i.label == c]
    extract_features(few[: len(few) - 1], run.backbone, some)
    run.ctx = some
    search = run.prepare(max_trials=2)
    search.trials.requeue_dead(search.incumbent.trial)
    search.fit_on_measured()
    assert search.trials.snapshot().unfinished == ("partial_fine_tune",)
