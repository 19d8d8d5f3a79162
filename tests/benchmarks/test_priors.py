"""Tests of fitting priors to rows, and of regret on datasets left out of the priors."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from advisor.decide.candidates import DecisionInputs
from advisor.decide.priors import SPREAD_KINDS, load_priors, priors_from_record
from strategies.data.dataset import Dataset, labels_of
from strategies.registry import STRATEGIES
from tests.advisor.profiles import curve_of, inputs_of

Row = dict[str, Any]


def suite(
    scripts: dict[str, ModuleType], n_datasets: int = 16
) -> tuple[list[Row], dict[Any, DecisionInputs]]:
    """Return rows of some datasets; fine-tuning gains more, the farther a dataset is."""
    rows: list[Row] = []
    inputs = {}
    for i in range(n_datasets):
        for n in (5, 20):
            case = scripts["rows"].Case(f"set{i}", n, 0, 96)
            probe = 0.9 - 0.025 * i
            given = {"n_per_class": n, "similarity": 1 - i / 16, "linear": probe, "svm": probe}
            inputs[case] = inputs_of(input_px=96, **given)
            about = {
                "set": case.dataset,
                "n_per_class": n,
                "seed": 0,
                "input_px": 96,
                "n_test": 500,
            }
            for strategy, grid, accuracy in (
                ("linear_probe", {}, probe),
                ("layer_svm", {}, probe),
                ("full_fine_tune", {"lr": 1e-4}, probe + 0.005),
                ("full_fine_tune", {}, probe - 0.1 + 0.03 * i),
                ("from_scratch", {}, 0.4),
            ):
                row = {"strategy": strategy, "grid": grid, "accuracy": min(accuracy, 0.99)}
                rows.append(about | row | {"hyperparameters": grid, "seconds": 1.0})
    return rows, inputs


def test_the_priors_are_rebuilt_from_the_rows_byte_for_byte(
    scripts: dict[str, ModuleType],
) -> None:
    rows, fit_priors = scripts["rows"], scripts["fit_priors"]
    record = fit_priors.fit(rows.read_rows(rows.RESULTS), rows.read_inputs())
    shipped = {path.name: path.read_text() for path in fit_priors.PRIORS.iterdir()}
    assert fit_priors.files_of(record) == shipped


def test_a_size_that_adds_no_images_is_no_case(
    scripts: dict[str, ModuleType], small_dataset: Dataset
) -> None:
    suite = scripts["run_suite"]
    most = max(np.bincount(labels_of(small_dataset.fit_split)))
    assert 5 < most <= 20
    assert [suite.adds_images(small_dataset, n) for n in suite.SIZES] == [True, True, False, False]


def test_shipped_priors_have_known_strategies_and_errors() -> None:
    priors = load_priors()
    assert set(priors.gains) == set(priors.cost) <= set(STRATEGIES)
    for model in priors.gains.values():
        assert set(model.weights) == set(priors.evidence) - {"control"}
        assert model.left_out_error >= model.fit_error > 0
        assert model.cases > 0
    assert set(priors.spreads) == set(SPREAD_KINDS)
    for spread in priors.spreads.values():
        assert 0 < spread.model < 1
        assert 0 < spread.measured < 5


def test_weights_respect_their_bounds(scripts: dict[str, ModuleType]) -> None:
    rows, inputs = suite(scripts)
    for priors in (
        priors_from_record(scripts["fit_priors"].fit(rows, inputs)),
        load_priors(),
    ):
        for model in priors.gains.values():
            assert model.weights["far"] >= 0
            assert model.weights["size"] >= 0
            assert model.weights["total"] >= 0
            assert model.weights["probe"] <= 0
            assert max(model.weights["lost"], model.weights["lost_near"]) <= 0


def test_advice_fine_tunes_far_and_probes_near_datasets(
    scripts: dict[str, ModuleType],
) -> None:
    advised = scripts["leave_one_dataset_out"].advise_all(*suite(scripts))
    table = scripts["regret"].policies(advised, {})
    assert len(advised) == 32
    fixed = [sum(v) for name, v in table.items() if name.startswith("always")]
    assert sum(table["advisor, accuracy"]) < min(fixed)
    assert all(min(v) >= 0 for v in table.values())
    assert "| advisor, balanced |" in scripts["regret"].report(advised, {})


def test_regret_is_measured_against_means_over_seeds(
    scripts: dict[str, ModuleType],
) -> None:
    rows, inputs = suite(scripts, 8)
    again = [row | {"seed": 1} for row in rows]
    lucky = {"set": "set0", "n_per_class": 5, "strategy": "full_fine_tune", "grid": {"lr": 1e-4}}
    for row, gained in ((r, s * 0.05) for s, group in ((1, rows), (-1, again)) for r in group):
        if lucky.items() <= row.items():
            row["accuracy"] += gained
    inputs |= {case._replace(seed=1): known for case, known in inputs.items()}
    both = {j.case: j for j in scripts["leave_one_dataset_out"].advise_all(rows + again, inputs)}
    one = {j.case: j for j in scripts["leave_one_dataset_out"].advise_all(rows, inputs)}
    entry, case = ("linear_probe", "{}", 96), scripts["rows"].Case("set0", 5, 0, 96)
    assert one[case].regret(entry) == pytest.approx(5.5)
    assert both[case].regret(entry) == pytest.approx(0.5)


def test_priors_of_other_backbones_know_nothing_of_a_cases_own_backbone(
    scripts: dict[str, ModuleType],
) -> None:
    rows, inputs = suite(scripts, 6)
    other = [{**row, "backbone": "another"} for row in rows]
    both = inputs | {case._replace(backbone="another"): known for case, known in inputs.items()}

    def expected(rows: list[Row], leave_out: str) -> list[Any]:
        advised = scripts["leave_one_dataset_out"].advise_all(rows, both, leave_out)
        own = [j for j in advised if j.case.backbone != "another"]
        assert {j.case.dataset for j in own} == {f"set{i}" for i in range(6)}
        return [[o.accuracy for o in j.decisions["advisor, balanced"].options] for j in own]

    worse = [{**row, "accuracy": 0.5 * row["accuracy"]} for row in rows]
    for leave_out in ("dataset", "backbone"):
        before, after = (expected(own + other, leave_out) for own in (rows, worse))
        assert (before == after) is (leave_out == "backbone")


def test_priors_of_another_collection_know_nothing_of_a_cases_own_collection(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, inputs = suite(scripts, 6)
    script = scripts["leave_one_dataset_out"]
    monkeypatch.setattr(script, "NEWER", ("set3", "set4", "set5"))

    def expected(rows: list[Row], leave_out: str) -> list[Any]:
        advised = script.advise_all(rows, inputs, leave_out)
        own = [j for j in advised if j.case.dataset == "set0"]
        return [[o.accuracy for o in j.decisions["advisor, balanced"].options] for j in own]

    for name in ("set1", "set4"):
        other = [{**r, "accuracy": r["accuracy"] * (0.5 if r["set"] == name else 1)} for r in rows]
        assert expected(rows, "dataset") != expected(other, "dataset")
        is_equal = expected(rows, "collection") == expected(other, "collection")
        assert is_equal is (name == "set1")


def test_a_fit_beside_another_job_hardly_widens_the_predicted_seconds(
    scripts: dict[str, ModuleType],
) -> None:
    rows, inputs = suite(scripts)
    rng = np.random.default_rng(0)
    for row in rows:
        row["seconds"] *= float(np.exp(rng.normal(0, 0.3)))

    def cost() -> Any:
        return scripts["fit_priors"].fit(rows, inputs)["strategies"]["from_scratch"]["cost"]

    alone = cost()
    assert alone["sd"] == pytest.approx(0.3, abs=0.1)
    beside = next(r for r in rows if r["strategy"] == "from_scratch")
    beside["seconds"] *= 30
    assert cost()["sd"] < alone["sd"] + 0.1


def test_rows_without_seconds_count_for_gains_and_not_for_costs(
    scripts: dict[str, ModuleType],
) -> None:
    rows, inputs = suite(scripts)
    before = scripts["fit_priors"].fit(rows, inputs)["strategies"]["from_scratch"]
    for row in rows:
        if row["set"] == "set3":
            row["seconds"] = None
    after = scripts["fit_priors"].fit(rows, inputs)["strategies"]["from_scratch"]
    assert after["gain"] == before["gain"]
    assert 0 < after["cost"]["cases"] < before["cost"]["cases"]
    advised = scripts["leave_one_dataset_out"].advise_all(rows, inputs)
    regret = scripts["regret"]
    assert {j.case.dataset for j in advised} - {j.case.dataset for j in regret.timed(advised)} == {
        "set3"
    }
    assert "| not recorded |" in regret.report(advised, {})


def test_an_entry_that_was_never_timed_costs_no_case(scripts: dict[str, ModuleType]) -> None:
    rows, inputs = suite(scripts)
    for row in rows:
        if row["strategy"] == "from_scratch":
            row["seconds"] = None
    regret, advised = scripts["regret"], scripts["leave_one_dataset_out"].advise_all(rows, inputs)
    timed = regret.timed(advised)
    assert [j.case for j in timed] == [j.case for j in advised]
    assert {name for j in advised for name, _, _ in j.rows} - {
        name for j in timed for name, _, _ in j.rows
    } == {"from_scratch"}
    for row in rows:
        row["seconds"] = None
    assert regret.timed(scripts["leave_one_dataset_out"].advise_all(rows, inputs)) == []


def test_an_oracle_loses_what_a_policy_loses_beyond_its_regret_by_halves(
    scripts: dict[str, ModuleType],
) -> None:
    regret = scripts["regret"]
    advised = scripts["leave_one_dataset_out"].advise_all(*suite(scripts))
    lines = [line.split("|") for line in regret.report(advised, {}).splitlines()]
    rows = [[cell.strip() for cell in line[1:-1]] for line in lines]
    regrets = [r for r in rows if len(r) == 5 and r[1][:1].isdigit()]
    found = {r[0]: [float(c.split()[0]) for c in r[1:4]] for r in regrets}
    oracle, policy = found[regret.ORACLE], found[regret.DEFAULT_POLICY]
    assert oracle[2] == 0
    assert oracle[0] == pytest.approx(policy[0] - policy[2], abs=0.11)


@pytest.mark.parametrize(
    ("strategy", "kind"),
    [("full_fine_tune", "training_runs"), ("from_scratch", "controls"), ("layer_svm", "heads")],
)
def test_a_kind_of_strategies_has_intervals_of_its_own_width(
    strategy: str, kind: str, scripts: dict[str, ModuleType]
) -> None:
    rows, inputs = suite(scripts)
    before = scripts["fit_priors"].fit(rows, inputs)["common"]["spreads"]
    for row in rows:
        if row["set"] == "set3" and row["strategy"] == strategy:
            row["accuracy"] = 0.99
    spreads = scripts["fit_priors"].fit(rows, inputs)["common"]["spreads"]
    assert {name for name in spreads if spreads[name] != before[name]} == {kind}


def test_a_dataset_far_from_the_model_moves_it_little(scripts: dict[str, ModuleType]) -> None:
    regression = scripts["gain_regression"]
    rows, inputs = suite(scripts)
    changed = [
        {**r, "accuracy": 0.05 if r["set"] == "set9" else r["accuracy"]}
        for r in rows
        if r["strategy"] == "full_fine_tune"
    ]
    prior = scripts["fit_priors"].prior_of_rows(rows, inputs)

    def moved(huber: float) -> float:
        predicted = []
        for given in (rows, changed):
            gains = regression.gains_of(given, "full_fine_tune", inputs, prior)
            x = regression.evidence_matrix(gains, inputs, prior)
            model = regression.fit_model(gains, x, prior, "full_fine_tune", huber)
            others = [g.case.dataset != "set9" for g in gains]
            predicted.append(regression.apply_model(model, x)[others])
        return float(np.abs(predicted[1] - predicted[0]).mean())

    assert moved(regression.HUBER) < 0.5 * moved(np.inf)


def test_a_case_with_few_test_images_has_little_weight(scripts: dict[str, ModuleType]) -> None:
    regression = scripts["gain_regression"]
    rows, inputs = suite(scripts)
    prior = scripts["fit_priors"].prior_of_rows(rows, inputs)
    weight = {}
    for n_test in (500, 10):
        changed = [r | {"n_test": n_test} if r["set"] == "set3" else r for r in rows]
        gains = regression.gains_of(changed, "from_scratch", inputs, prior)
        x = regression.evidence_matrix(gains, inputs, prior)
        model = regression.fit_model(gains, x, prior, "from_scratch")
        own = [g.case.dataset == "set3" for g in gains]
        weight[n_test] = float(model.case_weights[own].mean())
    assert 0 < weight[10] < 0.5 * weight[500]


def test_noisy_test_accuracies_increase_the_drift(
    scripts: dict[str, ModuleType],
) -> None:
    regression = scripts["gain_regression"]
    rows, inputs = suite(scripts)
    prior = scripts["fit_priors"].prior_of_rows(rows, inputs)
    drift = {}
    for n_test in (5000, 50):
        noisy = [r | {"n_test": n_test} for r in rows]
        gains = regression.gains_of(noisy, "from_scratch", inputs, prior)
        x = regression.evidence_matrix(gains, inputs, prior)
        model = regression.fit_model(gains, x, prior, "from_scratch")
        assert ((model.case_weights > 0) & (model.case_weights < 1)).all()
        drift[n_test] = regression.drift_of(model, x, prior, sd=0.5)
    assert 0 < drift[5000] < drift[50]


def test_two_fits_with_the_same_hyperparameters_count_with_their_mean(
    scripts: dict[str, ModuleType],
) -> None:
    rows, inputs = suite(scripts)
    again = [
        row | {"grid": {"lr": 1e-3}, "accuracy": row["accuracy"] + 0.02, "hyperparameters": {}}
        for row in rows
        if row["strategy"] == "full_fine_tune" and not row["grid"]
    ]
    for j in scripts["leave_one_dataset_out"].advise_all(rows + again, inputs):
        one, other = (j.expected["full_fine_tune", grid, 96] for grid in ("{}", '{"lr": 0.001}'))
        assert one == other == pytest.approx(j.rows["full_fine_tune", "{}", 96]["accuracy"] + 0.01)


def test_regret_is_given_as_a_share_of_the_best_fixed_entry(
    scripts: dict[str, ModuleType],
) -> None:
    regret = scripts["regret"]
    assert not regret.is_fixed(("full_fine_tune", "{}", 96))
    assert not regret.is_fixed(("full_fine_tune", '{"lr": 0.001}', 96))
    assert regret.is_fixed(("full_fine_tune", '{"blend": 1.0, "lr": 0.001}', 96))
    assert regret.is_fixed(("layer_svm", "{}", 96))
    advised = scripts["leave_one_dataset_out"].advise_all(*suite(scripts))
    best = "always linear_probe, default, 96 px"
    lost = {name: np.mean(v) for name, v in regret.policies(advised, {}).items()}
    lines = regret.against_best_fixed(advised, {}).splitlines()
    assert lines[0].startswith(f"| regret as a share of: {best} |")
    share = lost["advisor, accuracy"] / lost[best]
    assert f"| advisor, accuracy | {share:.2f} [" in "\n".join(lines)


def test_the_dataset_under_test_is_left_out(scripts: dict[str, ModuleType]) -> None:
    rows, inputs = suite(scripts, 8)
    for row in rows:
        if row["set"] == "set3" and row["strategy"] == "full_fine_tune":
            row["accuracy"] = 0.01
    after = {j.case: j for j in scripts["leave_one_dataset_out"].advise_all(rows, inputs)}
    before = {j.case: j for j in scripts["leave_one_dataset_out"].advise_all(*suite(scripts, 8))}
    case = scripts["rows"].Case("set3", 20, 0, 96)
    assert after[case].decisions == before[case].decisions
    other = scripts["rows"].Case("set4", 20, 0, 96)
    assert after[other].decisions != before[other].decisions


def test_the_inputs_of_a_decision_are_read_as_they_were_written(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    full = inputs_of(input_px=96, curve=curve_of(0.5, 0.5625))
    rows = scripts["rows"]
    about = {"set": "a", "n_per_class": 20, "seed": 0, "input_px": 96}
    rows.append_row(tmp_path / "e.jsonl", about | rows.inputs_record(full))
    back = rows.read_inputs(tmp_path / "e.jsonl")[rows.Case("a", 20, 0, 96)]
    assert rows.inputs_record(back) == rows.inputs_record(full)
    assert type(back.profile.curve) is type(full.profile.curve)
    assert [c.name for c in back.full_size] == [c.name for c in full.candidates]


def test_regret_by_halves_is_zero_for_equal_entries(scripts: dict[str, ModuleType]) -> None:
    rng = np.random.default_rng(0)
    plain, halves, behind = [], [], []
    for _ in range(100):
        right = rng.random((5, 300)) < 0.8
        plain.append(right.mean(axis=1).max() - right[0].mean())
        halves.append(
            scripts["leave_one_dataset_out"]._regret_by_halves(right[None].astype(float), rng)[0]
        )
        right[1:] |= rng.random((4, 300)) < 0.5  # the other entries are better by ten points
        behind.append(
            scripts["leave_one_dataset_out"]._regret_by_halves(right[None].astype(float), rng)[0]
        )
    assert np.mean(plain) > 0.015
    assert abs(np.mean(halves)) < 0.005
    assert np.mean(behind) == pytest.approx(0.1, abs=0.01)


def test_regret_by_halves_is_zero_if_only_training_noise_differs(
    scripts: dict[str, ModuleType],
) -> None:
    rng = np.random.default_rng(0)
    plain, halves = [], []
    for _ in range(60):
        noise = rng.normal(0, 0.05, (3, 5, 1))  # of every fit; no entry is better
        right = (rng.random((3, 5, 600)) < 0.7 + noise).astype(float)
        accuracy = right.mean(axis=(0, 2))
        plain.append(accuracy.max() - accuracy[0])
        halves.append(scripts["leave_one_dataset_out"]._regret_by_halves(right, rng)[0])
    assert np.mean(plain) > 0.02
    assert abs(np.mean(halves)) < 0.01


def test_hits_are_read_as_they_were_written(scripts: dict[str, ModuleType]) -> None:
    rows = scripts["rows"]
    for n in (1, 8, 599):
        hits = np.random.default_rng(n).random(n) < 0.7
        row = {"hits": rows.pack_hits(hits), "n_test": n}
        assert rows.hits_of(row).tolist() == hits.tolist()
