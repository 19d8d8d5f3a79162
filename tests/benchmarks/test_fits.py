"""The scripts that learn from images: each main path runs on a few striped ones."""

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from advisor.similarity.reference import read_reference
from strategies.models.catalogue import CATALOGUE
from strategies.registry import get_strategy
from tests.benchmarks.conftest import rows_in

Load = Callable[[str], ModuleType]
QUICK = {"steps": 2}


@pytest.fixture
def small(data: Path, kept: Path, tmp_path: Path) -> list[str]:
    """Options that most of the scripts have: where images come from, and where rows go."""
    given = ["--data-root", str(data), "--cache-dir", str(kept)]
    return [*given, "--out", str(tmp_path / "rows.jsonl")]


def test_the_suite_measures_and_fits_what_is_missing(
    load: Load, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = load("run_suite")
    for strategy, given in suite.GRID:
        get_strategy(strategy)(**given)
    monkeypatch.setattr(suite, "GRID", (("linear_probe", {}), ("full_fine_tune", QUICK)))
    out, evidence = tmp_path / "rows.jsonl", tmp_path / "evidence.jsonl"
    given = ["--data-root", str(data), "--out", str(out), "--evidence", str(evidence), "--pilot"]
    given += ["--grid", "0", "1", "--n-per-class", "5", "--seeds", "0", "--input-px", "32"]
    suite.main(given)
    suite.main(given)
    assert [r["strategy"] for r in rows_in(out)] == ["linear_probe", "full_fine_tune"]
    (case,) = suite.read_profiles(evidence)
    assert case == ("striped", 5, 0, 32)


def test_training_runs_are_recorded_averaged_and_replayed(
    load: Load,
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    curves = load("curves")
    monkeypatch.setattr(curves, "SETS", {"striped": 6})
    monkeypatch.setattr(curves, "N_TRIALS", 2)
    monkeypatch.setattr(curves, "POOLS", (2,))
    monkeypatch.setattr(curves, "FEWER_STEPS", 30)
    given = [*small, "--weights", str(tmp_path / "weights"), "--sets", "striped"]
    curves.main(["record", "soups", *given])
    assert "striped, 2 trials" in capsys.readouterr().out
    assert len(rows_in(tmp_path / "rows.jsonl")) == 2


def test_leaks_series_and_wrong_labels_are_planted_and_found(
    load: Load, data: Path, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quality = load("data_quality")
    for path in (data / "striped").rglob("*.png"):
        frames = tmp_path / "tracks" / path.parent.name
        frames.mkdir(parents=True, exist_ok=True)
        for n, turn in enumerate((quality.as_it_is, quality.turned)):
            turn(path, frames / f"{path.stem}_{n}")
    for part, root, name in (
        ("leaks", data, "striped"),
        ("series", tmp_path, "tracks"),
        ("labels", data, "striped"),
    ):
        given = [str(root), "--part", part, "--sets", name, "--seeds", "0"]
        quality.main([*given, "--cache-dir", str(kept)])
    said = capsys.readouterr().out
    assert "as_it_is   found 100.0%" in said
    assert "pairs of one track on one side" in said
    assert "planted errors in the first tenth" in said


def test_default_hyperparameters_are_fitted_and_tabled(
    load: Load,
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    defaults = load("fine_tune_defaults")
    monkeypatch.setattr(defaults, "ROWS", {("striped", 4): 99.0})
    given = ["--sets", "striped", "--seeds", "0", "--input-px", "32", "--steps", "2"]
    defaults.main([*small, *given])
    assert "| striped, 4 |" in capsys.readouterr().out


def test_a_cached_prefix_is_trained_behind_and_timed(
    load: Load, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--sets", "striped", "--seeds", "0", "--frozen", "3", "--n-per-class", "6"]
    load("prefix_cache").main([*small, *given, "--input-px", "32"])
    assert "| striped | 32 | 3 |" in capsys.readouterr().out


def test_leans_are_measured_and_mirrored_training_runs_fitted(
    load: Load, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--sets", "striped", "--seeds", "0", "--n-per-class", "5", "--input-px", "32"]
    load("mirror").main([*small, *given, "--fit", "--steps", "2"])
    assert "| striped, 5 |" in capsys.readouterr().out


def test_probes_are_fitted_and_compared_in_pairs(
    load: Load, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    probes = load("probes")
    given = ["--sets", "striped", "--seeds", "0", "--n-per-class", "5", "--input-px", "32"]
    probes.main([*small, *given])
    probes.main([*small, "--table"])
    assert "| striped, 5 (1) |" in capsys.readouterr().out


def test_the_path_of_strengths_is_timed_against_scikit_learn(
    load: Load, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    speed = load("probe_speed")
    speed.main([*small, "--set", "striped", "--n-per-class", "6", "--depths", "1", "0"])
    speed.main([*small, "--table"])
    speed.main(["--synthetic", "60"])
    said = capsys.readouterr().out
    assert "| all |" in said
    assert '"peak_gb"' in said


def test_a_harmful_backbone_is_made_warned_of_and_remedied(
    load: Load,
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    negative = load("negative")
    for name, value in (("FOREIGN", "striped"), ("TARGETS", ("striped",)), ("NEAR", ("striped",))):
        monkeypatch.setattr(negative, name, value)
    for remedied in negative.REMEDIED.values():
        get_strategy("full_fine_tune")(**remedied)
    monkeypatch.setattr(negative, "REMEDIED", {"stages": negative.REMEDIED["stages"]})
    given = [*small, "--backbone-folder", str(tmp_path / "harmful"), "--input-px", "32"]
    given += ["--steps", "2", "--fit-steps", "2", "--seeds", "1"]
    for part in ("harm", "warn", "near", "interventions", "table"):
        negative.main([part, *given])
    said = capsys.readouterr().out
    assert "| harmful | striped | 1 |" in said
    assert "| best on validation, all | 1 |" in said


def test_the_domain_is_measured_line_by_line(
    load: Load,
    shared_sets_root: Path,
    kept: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    domain = small_domain("domain", load, shared_sets_root, monkeypatch)
    monkeypatch.setattr(domain, "NEAR", ("flowers5", "cats_dogs"))
    monkeypatch.setattr(domain, "FAR", ("mnist5k",))
    monkeypatch.setattr(domain, "N_VARIANTS", 4)
    wide = {k: replace(v, far=20 * v.far) for k, v in domain.calibrations().items()}
    monkeypatch.setattr(domain, "calibrations", lambda: wide)  # stripes are farther than any set
    lines = [str(n) for n in domain.LINES if n != 8 or _are_installed("lite1", "lite2")]
    small = ["--input-px", "128"]  # the smallest with features in the reference
    domain.main(["--cache-dir", str(kept), "--most-draws", "2", *small, "--lines", *lines])
    assert capsys.readouterr().out.count("###") == len(lines)


def test_the_maps_of_the_domain_are_fitted(
    load: Load, shared_sets_root: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_domain = small_domain("fit_domain", load, shared_sets_root, monkeypatch)
    for name, value in (("N_SAME", 4), ("N_SCATTER", 12), ("DRAWS", 4)):
        monkeypatch.setattr(fit_domain, name, value)
    before = fit_domain.MAPS.read_bytes()
    fit_domain.main(["--cache-dir", str(kept), "--out", str(tmp_path / "domain.json")])
    found = json.loads((tmp_path / "domain.json").read_text(encoding="utf-8"))
    assert found.keys() == json.loads(before).keys()
    assert found["calibrations"].keys() == json.loads(before)["calibrations"].keys()
    assert fit_domain.MAPS.read_bytes() == before


def test_a_reference_is_measured_and_written(
    load: Load, shared_sets_root: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = small_domain("make_reference", load, shared_sets_root, monkeypatch)
    name = "tf_efficientnet_lite0"
    monkeypatch.setattr(script, "SIZES", {name: (32, 64)})
    monkeypatch.setattr(script, "FEATURES", {name: (64,)})
    script.main(["--cache-dir", str(kept), "--out", str(tmp_path), name])
    made = read_reference(tmp_path / f"{name}.safetensors")
    assert (set(made.moments), set(made.features)) == ({32, 64}, {64})


def small_domain(name: str, load: Load, root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a script that reads the shared sets, with tiny ones in their place."""
    sets = load("shared_sets")
    monkeypatch.setattr(sets, "DATA", root)
    few = {k: v for k, v in sets.SPOKEN.items() if (root / k).is_dir()}
    monkeypatch.setattr(sets, "SPOKEN", few)
    return load(name)


def _are_installed(*names: str) -> bool:
    return all(find_spec(CATALOGUE[f"tf_efficientnet_{name}"].module) for name in names)


SMOKE = {
    "run_suite": test_the_suite_measures_and_fits_what_is_missing,
    "curves": test_training_runs_are_recorded_averaged_and_replayed,
    "data_quality": test_leaks_series_and_wrong_labels_are_planted_and_found,
    "fine_tune_defaults": test_default_hyperparameters_are_fitted_and_tabled,
    "prefix_cache": test_a_cached_prefix_is_trained_behind_and_timed,
    "mirror": test_leans_are_measured_and_mirrored_training_runs_fitted,
    "probes": test_probes_are_fitted_and_compared_in_pairs,
    "probe_speed": test_the_path_of_strengths_is_timed_against_scikit_learn,
    "negative": test_a_harmful_backbone_is_made_warned_of_and_remedied,
    "domain": test_the_domain_is_measured_line_by_line,
    "shared_sets": test_the_domain_is_measured_line_by_line,
    "fit_domain": test_the_maps_of_the_domain_are_fitted,
    "make_reference": test_a_reference_is_measured_and_written,
}
