"""Smoke tests of scripts that read committed rows, on a few datasets where all take long."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.conftest import BENCHMARKS

Load = Callable[[str], ModuleType]


def row_options(rows: Path) -> list[str]:
    return ["--results", str(rows / "results.jsonl"), "--evidence", str(rows / "evidence.jsonl")]


def test_priors_are_written_to_the_given_path(load: Load, tmp_path: Path) -> None:
    fit_priors = load("fit_priors")
    fit_priors.main(["--out", str(tmp_path)])
    names = {path.name for path in fit_priors.PRIORS.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (fit_priors.PRIORS / name).read_bytes()


def test_regret_of_a_few_datasets_is_printed(
    load: Load, rows_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load("regret").main([*row_options(rows_folder), "--cases"])
    printed = capsys.readouterr().out
    assert "| advisor, balanced |" in printed
    assert "share of fitting every strategy once |" in printed
    assert "| best | advised | regret in points |" in printed


@pytest.mark.parametrize(
    ("script", "expected"), [("regret", "| all | "), ("intervals", "Coverage over all cases")]
)
def test_totals_by_backbone_are_printed_where_backbones_are_left_out(
    load: Load,
    rows_folder: Path,
    capsys: pytest.CaptureFixture[str],
    script: str,
    expected: str,
) -> None:
    load(script).main([*row_options(rows_folder), "--leave-out", "backbone"])
    assert expected in capsys.readouterr().out


def test_regret_by_time_is_printed(
    load: Load, rows_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load("regret").main([*row_options(rows_folder), "--budgets"])
    printed = capsys.readouterr().out
    for limit in ("15 s", "300 s", "no limit"):
        assert f"| {limit} |" in printed


def test_coverage_of_intervals_is_printed(
    load: Load, rows_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load("intervals").main(row_options(rows_folder))
    assert "| full_fine_tune |" in capsys.readouterr().out


def test_what_strategies_add_is_printed(
    load: Load, rows_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load("strategy_table").main(row_options(rows_folder))
    printed = capsys.readouterr().out
    assert "tf_efficientnet_lite0, profiles at 224 px:" in printed
    assert "| strategy | best | lost without it, points | seconds |" in printed


def test_only_what_no_other_strategy_reaches_is_lost_without_one(load: Load) -> None:
    table = load("strategy_table")
    pack = load("rows").pack_hits
    hits = np.arange(40) < 20
    fits = {
        name: {"hits": pack(own), "n_test": 40}
        for name, own in (("worse", hits & False), ("good", hits), ("alike", hits))
    }
    best, lost = table.by_halves(fits, ("worse", "good"), seed=0)
    assert best.tolist() == [0, 1]
    assert lost[0] == 0
    assert lost[1] == pytest.approx(0.5, abs=0.05)
    best, lost = table.by_halves(fits, ("good", "alike"), seed=0)
    assert best.sum() == 1
    assert min(best) > 0.3
    assert np.abs(lost).max() == 0


def test_datasets_with_more_seeds_do_not_count_more(load: Load) -> None:
    case = load("rows").Case
    values = {case("a", 20, 0, 96): 0.2, case("a", 20, 1, 96): 0.4, case("b", 20, 0, 96): 0.9}
    assert load("strategy_table").dataset_mean(values) == pytest.approx(0.6)


def test_models_of_the_gain_are_compared(
    load: Load, rows_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load("gain_models").main(
        [*row_options(rows_folder), "--models", "squared", "interactions", "gp"]
    )
    printed = capsys.readouterr().out
    for name in ("lines", "squared", "interactions", "gp"):
        assert f"| {name} |" in printed


def test_tables_are_written_between_their_comments(
    load: Load, rows_folder: Path, tmp_path: Path
) -> None:
    document, end = tmp_path / "document.md", "<!-- end of table -->"
    command = f"intervals.py {' '.join(row_options(rows_folder))}"
    begin = f"<!-- table: {command}, tf_efficientnet_lite0, 96 px -->"
    document.write_text(f"before\n\n{begin}\nold\n{end}\n\nafter\n", encoding="utf-8")
    script, given = load("write_tables"), ["--document", str(document)]
    with pytest.raises(SystemExit, match="differs"):
        script.main([*given, "--check"])
    script.main(given)
    text = document.read_text(encoding="utf-8")
    assert text.startswith(f"before\n\n{begin}\n\n| strategy |")
    assert "| full_fine_tune |" in text
    assert "old" not in text
    assert text.endswith(f"\n\n{end}\n\nafter\n")
    script.main([*given, "--check"])


def test_the_figures_of_the_explanations_are_drawn(
    load: Load, rows_folder: Path, tmp_path: Path
) -> None:
    load("figures").main([*row_options(rows_folder), "--out", str(tmp_path)])
    drawn = {path.stem: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    for name, label in (
        ("gains", "full fine-tuning minus linear probe, points"),
        ("similarity", "domain similarity"),
        ("policies", "the rule of four quadrants"),
        ("coverage", "images per class"),
        ("within-a-time", "best fixed pair"),
    ):
        assert label in drawn[name], name


def test_transfer_risk_of_a_few_datasets_is_printed(
    load: Load, rows_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "risk.svg"
    load("transfer_risk").main([*row_options(rows_folder), "--cases", "--plot", str(plot)])
    assert "Area under the ROC curve" in capsys.readouterr().out
    assert plot.read_text(encoding="utf-8").startswith("<svg")


def test_claims_are_checked_on_a_few_datasets(
    load: Load,
    data_root: Path,
    rows_folder: Path,
    tmp_path: Path,
    cache_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["--data-root", str(data_root), "--cache-dir", str(cache_dir), "--input-px", "32"]
    given += ["--extra", str(rows_folder / "claims.jsonl"), "--plot", str(tmp_path / "plot.svg")]
    load("claims").main([*row_options(rows_folder), *given])
    printed = capsys.readouterr().out
    assert "| features with 1 image per class beat raw pixels with 10 |" in printed
    assert "| freezing" in printed or "frozen" in printed
    assert (tmp_path / "plot.svg").read_text(encoding="utf-8").startswith("<svg")


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("negative", ["table"], "| fit | cases |"),
        ("peers", ["--table"], "| strategy | mean gain over the best peer, points |"),
        ("probes", ["--table"], "| SVM minus probe, points |"),
        ("probe_speed", ["--table"], "| total |"),
        ("curves", ["pruners", "--orders", "1"], "| ASHA, patient (now) |"),
        ("fine_tune_defaults", ["--sets"], "| full fine-tune | hand-picked |"),
        ("prefix_cache", ["--sets"], "| speed-up |"),
        ("tuning", ["--sets", "--seconds", "60"], "run is "),
    ],
)
def test_a_table_of_the_committed_rows_is_printed(
    load: Load,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    given: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(BENCHMARKS.parent)
    load(name).main(given)
    assert expected in capsys.readouterr().out


SMOKE = {
    "fit_priors": test_priors_are_written_to_the_given_path,
    "gain_regression": test_priors_are_written_to_the_given_path,
    "rows": test_priors_are_written_to_the_given_path,
    "regret": test_regret_of_a_few_datasets_is_printed,
    "intervals": test_coverage_of_intervals_is_printed,
    "write_tables": test_tables_are_written_between_their_comments,
    "figures": test_the_figures_of_the_explanations_are_drawn,
    "strategy_table": test_what_strategies_add_is_printed,
    "gain_models": test_models_of_the_gain_are_compared,
    "leave_one_dataset_out": test_regret_of_a_few_datasets_is_printed,
    "transfer_risk": test_transfer_risk_of_a_few_datasets_is_printed,
    "claims": test_claims_are_checked_on_a_few_datasets,
    "claim_results": test_claims_are_checked_on_a_few_datasets,
    "frozen_stages": test_claims_are_checked_on_a_few_datasets,
}
