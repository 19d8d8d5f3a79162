"""Tests of the benchmarks of negative transfer (transfer_risk.py and negative.py)."""

import math
from types import ModuleType
from typing import Any

from advisor.decide.candidates import DecisionInputs
from strategies.core.metrics import Interval
from tests.advisor.profiles import inputs_of

Row = dict[str, Any]


def suite(scripts: dict[str, ModuleType]) -> tuple[list[Row], dict[Any, DecisionInputs]]:
    """Return rows of ten datasets: on far ones probes lose to training from scratch.

    Fine-tunes lose on none.
    """
    rows: list[Row] = []
    inputs = {}
    for i in range(10):
        for n in (20, 100):
            case = scripts["rows"].Case(f"set{i}", n, 0, 96)
            probe = 0.95 - 0.06 * i
            gain = 0.4 - 0.045 * i
            inputs[case] = inputs_of(
                input_px=96,
                n_per_class=n,
                similarity=1 - i / 10,
                linear=probe,
                svm=probe,
                transfer_gain=Interval(gain - 0.05, gain, gain + 0.05),
            )
            about = {
                "set": case.dataset,
                "n_per_class": n,
                "seed": 0,
                "input_px": 96,
                "n_test": 500,
            }
            scratch = probe - 0.4 + 0.08 * i
            for strategy, accuracy in (
                ("linear_probe", probe),
                ("layer_svm", probe),
                ("full_fine_tune", max(probe, scratch) + 0.03),
                ("from_scratch", scratch),
            ):
                rows.append(
                    about
                    | {"strategy": strategy, "grid": {}, "accuracy": min(accuracy, 0.99)}
                    | {"seconds": 1.0}
                )
    return rows, inputs


def test_priors_of_other_datasets_predict_where_scratch_wins(
    scripts: dict[str, ModuleType],
) -> None:
    module = scripts["transfer_risk"]
    predictions = module.predict(*suite(scripts))
    assert {p.strategy for p in predictions} == {"linear_probe", "layer_svm", "full_fine_tune"}
    probes = [p for p in predictions if p.strategy == "linear_probe"]
    assert len(probes) == 20
    assert {p.case.dataset for p in probes if p.negative} == {f"set{i}" for i in range(6, 10)}
    assert module.area(probes) > 0.9
    low, high = module.area_interval(probes)
    assert 0.5 < low <= high <= 1
    assert not any(p.negative for p in predictions if p.strategy == "full_fine_tune")
    assert "| linear_probe | 20 | 8 |" in module.report(predictions)
    assert "(8 cases)" in module.fine_tuning_gain(*suite(scripts))


def test_a_prediction_does_not_depend_on_its_own_dataset(scripts: dict[str, ModuleType]) -> None:
    module = scripts["transfer_risk"]
    rows, inputs = suite(scripts)
    before = {(p.case, p.strategy): p.probability for p in module.predict(rows, inputs)}
    for row in rows:
        if row["set"] == "set3" and row["strategy"] == "from_scratch":
            row["accuracy"] = 0.99
    after = {(p.case, p.strategy): p.probability for p in module.predict(rows, inputs)}
    own = (scripts["rows"].Case("set3", 20, 0, 96), "linear_probe")
    other = (scripts["rows"].Case("set4", 20, 0, 96), "linear_probe")
    assert after[own] == before[own]
    assert after[other] != before[other]


def test_the_roc_area_is_nan_without_negative_cases(scripts: dict[str, ModuleType]) -> None:
    module = scripts["transfer_risk"]
    near = [p for p in module.predict(*suite(scripts)) if p.case.dataset < "set3"]
    assert math.isnan(module.area(near))


def test_a_run_would_choose_the_best_on_validation_not_on_test(
    scripts: dict[str, ModuleType],
) -> None:
    def row(kind: str, strategy: str, val: float, test: float, **given: Any) -> Row:
        about = {"set": "a", "seed": 0, "input_px": 64, "kind": kind, "strategy": strategy}
        return about | {"given": given, "val": val, "test": test}

    found = scripts["negative"].accuracies(
        [
            row("plain", "linear_probe", 0.2, 0.3),
            row("scratch", "from_scratch", 0.5, 0.4, steps=60),
            row("intervention", "full_fine_tune", 0.6, 0.35, steps=60, reset_stages=2),
            row("other backbone", "linear_probe", 0.9, 0.8),
        ]
    )
    assert found["best of plain and scratch, in hindsight"] == [0.4]
    assert found["best on validation, this backbone"] == [0.35]
    assert found["best on validation, all"] == [0.8]
    assert found["intervention: full_fine_tune {'reset_stages': 2}"] == [0.35]
