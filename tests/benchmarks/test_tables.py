"""The scripts that read committed rows: each main path runs, on a few sets where all take long."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import BENCHMARKS

Load = Callable[[str], ModuleType]


def read_from(rows: Path) -> list[str]:
    return ["--results", str(rows / "results.jsonl"), "--evidence", str(rows / "evidence.jsonl")]


def test_the_priors_are_written_where_they_are_asked_for(load: Load, tmp_path: Path) -> None:
    fit_priors = load("fit_priors")
    fit_priors.main(["--out", str(tmp_path / "priors.json")])
    assert (tmp_path / "priors.json").read_bytes() == fit_priors.PRIORS.read_bytes()


def test_regret_is_told_of_a_few_sets(
    load: Load, some_rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load("regret").main([*read_from(some_rows), "--cases"])
    said = capsys.readouterr().out
    assert "| advisor, balanced |" in said
    assert "| share of fitting all once |" in said
    assert "| best | advised | regret |" in said


def test_the_risk_of_transfer_is_told_of_a_few_sets(
    load: Load, some_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "risk.svg"
    load("transfer_risk").main([*read_from(some_rows), "--cases", "--plot", str(plot)])
    assert "Area under the curve" in capsys.readouterr().out
    assert plot.read_text(encoding="utf-8").startswith("<svg")


def test_claims_are_held_against_a_few_sets(
    load: Load,
    data: Path,
    some_rows: Path,
    tmp_path: Path,
    kept: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["--data-root", str(data), "--cache-dir", str(kept), "--input-px", "32"]
    given += ["--extra", str(some_rows / "claims.jsonl"), "--plot", str(tmp_path / "plot.svg")]
    load("claims").main([*read_from(some_rows), *given])
    said = capsys.readouterr().out
    assert "| features with 1 image per class beat raw pixels with 10 |" in said
    assert "| freezing" in said or "frozen" in said
    assert (tmp_path / "plot.svg").read_text(encoding="utf-8").startswith("<svg")


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("negative", ["table"], "| with | cases |"),
        ("peers", ["--table"], "| strategy | mean lead over the best peer |"),
        ("probes", ["--table"], "| SVM minus probe |"),
        ("probe_speed", ["--table"], "| together |"),
        ("curves", ["pruners", "--orders", "1"], "| ASHA, patient (now) |"),
        ("fine_tune_defaults", ["--sets"], "| full fine-tune | by hand |"),
        ("prefix_cache", ["--sets"], "| times faster |"),
        ("tuning", ["--sets", "--seconds", "60"], "run is "),
    ],
)
def test_a_table_is_made_of_the_committed_rows(
    load: Load,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    given: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(BENCHMARKS.parent)
    load(name).main(given)
    assert says in capsys.readouterr().out


SMOKE = {
    "fit_priors": test_the_priors_are_written_where_they_are_asked_for,
    "gain_lines": test_the_priors_are_written_where_they_are_asked_for,
    "rows": test_the_priors_are_written_where_they_are_asked_for,
    "regret": test_regret_is_told_of_a_few_sets,
    "judged": test_regret_is_told_of_a_few_sets,
    "transfer_risk": test_the_risk_of_transfer_is_told_of_a_few_sets,
    "claims": test_claims_are_held_against_a_few_sets,
    "verdicts": test_claims_are_held_against_a_few_sets,
    "freezing": test_claims_are_held_against_a_few_sets,
}
