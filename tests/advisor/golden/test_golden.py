"""Golden tests: decisions, advice and runs stay the same when code is renamed or moved.

Strategies that are registered later may be ranked between those of the golden files, or rejected;
they may not change the order of these.
"""

import os
from pathlib import Path
from typing import Any

import pytest

from advisor.advise import advise_on
from strategies.core import context
from tests.advisor.golden import behaviour
from tests.advisor.searching import Runner

ORDER_KEYS = ("quadrant", "n", "findings", "quarantined")


def test_every_benchmark_profile_leads_to_the_same_decision() -> None:
    known = behaviour.golden("decisions")
    found = dict(behaviour.decisions())
    assert found.keys() == known.keys()
    for case, decision in found.items():
        expected = known[case]
        assert decision["rejected"] == expected["rejected"], case
        assert decision["quadrant"] == expected["quadrant"], case
        known_ones = _of_golden_strategies(decision["recommended"], expected["recommended"])
        for ours, theirs in zip(known_ones, expected["recommended"], strict=True):
            assert ours[0] == theirs[0], case
            assert ours[1:4] == pytest.approx(theirs[1:4], abs=1e-6), case
            assert_same_settings(ours[4], theirs[4], rel=1e-6)
        for prefer in behaviour.PREFERENCES:
            assert decision[prefer] == expected[prefer], case


@pytest.mark.parametrize("name", behaviour.DATASETS)
def test_small_datasets_get_the_same_advice(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "choose_precision", behaviour.in_full_precision)
    known = behaviour.golden("advice")[name]
    folder = behaviour.write_dataset(name, tmp_path / "data" / name)
    prepared = behaviour.prepared(folder, tmp_path / "cache")
    found = behaviour.advice_record(advise_on(prepared))
    golden = {recommended[0] for recommended in known["recommended"]} | set(known["rejected"])
    assert golden & set(found["rejected"]) == set(known["rejected"])
    for key in ORDER_KEYS:
        assert found[key] == known[key], key
    known_ones = _of_golden_strategies(found["recommended"], known["recommended"])
    for ours, theirs in zip(known_ones, known["recommended"], strict=True):
        assert ours[0] == theirs[0]
        assert ours[1:4] == pytest.approx(theirs[1:4], abs=0.02)
        assert_same_settings(ours[4], theirs[4], rel=0.02)
    assert found["similarity"] == pytest.approx(known["similarity"], abs=0.01)
    assert found["shifts"] == pytest.approx(known["shifts"], rel=0.02, abs=1e-3)
    for key in ("probes", "random_probes", "layer_svm"):
        assert _flat(found[key]) == pytest.approx(_flat(known[key]), abs=0.03), key
    for key in ("transfer_gain", "knn"):
        assert found[key] == pytest.approx(known[key], abs=0.03), key
    assert found["risks"] == pytest.approx(known["risks"], abs=0.02)


def test_a_run_with_a_number_of_trials_has_the_same_trials_and_the_same_best(run: Runner) -> None:
    found = run(max_trials=4)
    if "WRITE_GOLDEN" in os.environ:
        trials = [behaviour.trial_record(t) for t in found.trials]
        behaviour.write("run", {"trials": trials, "best": found.best.number})
    assert_same_run([*found.trials], found.best)


def test_a_run_killed_twice_and_resumed_has_the_same_trials_and_the_same_best(run: Runner) -> None:
    for last in (0, 2):

        def die(event: Any, last: int = last) -> None:
            if event.kind == "ended" and event.number == last:
                raise SystemExit

        search = run.prepare(4)
        search.trials.requeue_dead(search.incumbent.trial)
        object.__setattr__(search, "on_event", die)
        with pytest.raises(SystemExit):
            search.run()
        assert len(run.lines()) == last + 1
    found = run.resume(4)
    assert_same_run([*found.trials], found.best)


def _of_golden_strategies(found: list[Any], known: list[Any]) -> list[Any]:
    names = {recommended[0] for recommended in known}
    return [recommended for recommended in found if recommended[0] in names]


def assert_same_run(trials: list[Any], best: Any) -> None:
    known = behaviour.golden("run")
    found = [behaviour.trial_record(t) for t in trials]
    assert len(found) == len(known["trials"])
    for ours, theirs in zip(found, known["trials"], strict=True):
        for key in ("number", "strategy", "has_reason"):
            assert ours[key] == theirs[key]
        assert_same_settings(ours["hyperparameters"], theirs["hyperparameters"], rel=0.02)
        assert ours["val_accuracy"] == pytest.approx(theirs["val_accuracy"], abs=0.12)
    assert best.number == known["best"]


def assert_same_settings(ours: Any, theirs: Any, rel: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        is_exact = isinstance(value, str | bool | int | None)
        assert ours[name] == (value if is_exact else pytest.approx(value, rel=rel)), name


def _flat(rows: Any) -> list[float]:
    rows = rows if rows and isinstance(rows[0], list) else [rows]
    return [value for row in rows for value in row]
