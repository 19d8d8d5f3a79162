"""Smoke tests of scripts that fit classifiers to images, on small striped datasets."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from advisor.similarity.reference import read_reference
from strategies import fine_tuning, from_scratch
from strategies.data.dataset import load_dataset
from strategies.models.backbone import Backbone
from strategies.registry import STRATEGIES, get_strategy
from strategies.training.optimiser import MAX_FIRST_LOSS
from tests.benchmarks.conftest import rows_in
from tests.conftest import write_folder

Load = Callable[[str], ModuleType]
QUICK = {"steps": 2}


@pytest.fixture
def options(data_root: Path, cache_dir: Path, tmp_path: Path) -> list[str]:
    """Return the options of most scripts: data root, cache and file of rows."""
    given = ["--data-root", str(data_root), "--cache-dir", str(cache_dir)]
    return [*given, "--out", str(tmp_path / "rows.jsonl")]


def test_the_suite_adds_missing_rows(
    load: Load, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = load("run_suite")
    for strategy, given in suite.GRID:
        get_strategy(strategy).from_hyperparameters(given)
    monkeypatch.setattr(suite, "GRID", (("linear_probe", {}), ("full_fine_tune", QUICK)))
    out, evidence = tmp_path / "rows.jsonl", tmp_path / "evidence.jsonl"
    given = [
        "--data-root",
        str(data_root),
        "--out",
        str(out),
        "--evidence",
        str(evidence),
    ]
    given += ["--grid", "0", "1", "--n-per-class", "5", "--seeds", "0", "--input-px", "32"]
    suite.main(given)
    suite.main(given)
    assert [r["strategy"] for r in rows_in(out)] == ["linear_probe", "full_fine_tune"]
    (case,) = suite.read_inputs(evidence)
    assert case == load("rows").Case("striped", 5, 0, 32)


def test_training_runs_are_recorded_and_averaged(
    load: Load,
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    curves = load("curves")
    monkeypatch.setattr(curves, "SETS", {"striped": 6})
    monkeypatch.setattr(curves, "N_TRIALS", 2)
    monkeypatch.setattr(curves, "POOLS", (2,))
    monkeypatch.setattr(curves, "FEWER_STEPS", 30)
    given = [*options, "--weights", str(tmp_path / "weights"), "--sets", "striped"]
    curves.main(["record", "soups", *given])
    assert "striped, 2 trials" in capsys.readouterr().out
    assert len(rows_in(tmp_path / "rows.jsonl")) == 2


def test_planted_leaks_series_and_wrong_labels_are_detected(
    load: Load,
    data_root: Path,
    cache_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quality = load("data_quality")
    for path in (data_root / "striped").rglob("*.png"):
        frames = tmp_path / "tracks" / path.parent.name
        frames.mkdir(parents=True, exist_ok=True)
        for n, copy in enumerate((quality.unchanged, quality.rotated)):
            copy(path, frames / f"{path.stem}_{n}")
    for part, root, name in (
        ("leaks", data_root, "striped"),
        ("altered", data_root, "striped"),
        ("pairs", data_root, "striped"),
        ("series", tmp_path, "tracks"),
        ("labels", data_root, "striped"),
        ("quality", data_root, "striped"),
    ):
        given = [str(root), "--part", part, "--sets", name, "--seeds", "0"]
        quality.main([*given, "--cache-dir", str(cache_dir)])
    printed = capsys.readouterr().out
    assert "unchanged  found 100.0%" in printed
    assert re.search(r"striped +mirrored +found", printed)
    assert re.search(r"striped +60 images +\d+ pairs", printed)
    assert "pairs of one track in the same split" in printed
    assert "planted errors in the top tenth" in printed
    assert "TL018   0, planted 100.0%" in printed


def test_default_hyperparameters_are_fitted_and_printed(
    load: Load,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    defaults = load("fine_tune_defaults")
    monkeypatch.setattr(defaults, "ROWS", {("striped", 4): 99.0})
    given = ["--sets", "striped", "--seeds", "0", "--input-px", "32", "--steps", "2"]
    defaults.main([*options, *given])
    assert "| striped, 4 |" in capsys.readouterr().out


def test_default_and_given_learning_rates_are_fitted_and_printed(
    load: Load,
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script, out = load("learning_rates"), tmp_path / "rows.jsonl"
    monkeypatch.setattr(script, "LEARNING_RATES", {"norm_tune": (1e-5,)})
    given = ["--data-root", str(data_root), "--out", str(out), "--sets", "striped", "--steps", "2"]
    given += ["--seeds", "0", "--n-per-class", "8", "--input-px", "32"]
    for _ in range(2):
        script.main([*given, "--backbone", "tf_efficientnet_lite0", "--strategies", "norm_tune"])
    assert len(out.read_text(encoding="utf-8").splitlines()) == 2
    printed = capsys.readouterr().out
    assert "| norm_tune | striped |" in printed
    assert "| **norm_tune** | mean of 1 |" in printed
    assert "| 1 | not measured |" in printed


def test_the_default_is_compared_with_the_learning_rate_that_is_best_with_other_seeds(
    load: Load,
) -> None:
    accuracies = {None: (0.8, 0.8, 0.8), 1e-3: (0.9, 0.7, 0.7), 1e-2: (0.6, 0.78, 0.78)}
    rows = [
        {"strategy": "s", "set": name, "seed": seed, "grid": {} if lr is None else {"lr": lr}}
        | {"accuracy": accuracy + (0.1 if name == "b" and lr is None else 0)}
        for name in ("a", "b")
        for lr, by_seed in accuracies.items()
        for seed, accuracy in enumerate(by_seed)
    ]
    lines = load("learning_rates").table(rows).splitlines()
    # Without seed 0, 0.01 is best, and has 60% there. Without seed 1 or 2, 0.001 is, and has 70%.
    assert lines[2] == "| s | a | 80.0 | 76.7 (0.001) | +3.3 | 3 | +13.3 |"
    assert lines[4] == "| **s** | mean of 2 | | | **+8.3 ± 5.0** | | **+18.3 ± 5.0** |"


def test_losses_after_the_first_update_are_printed(
    load: Load, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, given = load("first_step"), ["--data-root", str(data_root), "--sets", "striped"]
    script.main([*given, "--n-per-class", "8", "--input-px", "32"])
    [row] = [line for line in capsys.readouterr().out.splitlines() if "| striped |" in line]
    assert 0 < float(row.split("|")[3].split(",")[0]) < MAX_FIRST_LOSS


def test_training_with_cached_frozen_stages_is_timed(
    load: Load, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--sets", "striped", "--seeds", "0", "--frozen", "3", "--n-per-class", "6"]
    load("prefix_cache").main([*options, *given, "--input-px", "32"])
    assert "| striped | 32 | 3 |" in capsys.readouterr().out


def test_every_strategy_is_fitted_once_and_stands_in_the_table(
    load: Load,
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script, out = load("all_strategies"), tmp_path / "rows.jsonl"
    some = {name: STRATEGIES[name] for name in ("linear_probe", "layer_svm")}
    monkeypatch.setattr(script, "STRATEGIES", some)
    given = ["--data-root", str(data_root), "--out", str(out), "--sets", "striped"]
    given += ["--seeds", "0", "--n-per-class", "5", "--input-px", "32"]
    for _ in range(2):
        script.main(given)
    assert [r["strategy"] for r in rows_in(out)] == list(some)
    assert "| `layer_svm` | " in capsys.readouterr().out


def test_flip_asymmetry_is_measured_and_flips_are_fitted(
    load: Load, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--sets", "striped", "--seeds", "0", "--n-per-class", "5", "--input-px", "32"]
    load("mirror").main([*options, *given, "--fit", "--steps", "2"])
    assert "| striped, 5 |" in capsys.readouterr().out


def test_linear_heads_are_fitted_and_compared_in_pairs(
    load: Load, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    probes = load("probes")
    given = ["--sets", "striped", "--seeds", "0", "--n-per-class", "5", "--input-px", "32"]
    probes.main([*options, *given])
    probes.main([*options, "--table"])
    assert "| striped, 5 (1) |" in capsys.readouterr().out


def test_the_regularisation_path_is_timed_against_scikit_learn(
    load: Load, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    speed = load("probe_speed")
    speed.main([*options, "--set", "striped", "--n-per-class", "6", "--depths", "1", "0"])
    speed.main([*options, "--table"])
    speed.main(["--synthetic", "60"])
    printed = capsys.readouterr().out
    assert "| all |" in printed
    assert '"peak_gb"' in printed


def test_interventions_are_fitted_on_a_harmful_backbone(
    load: Load,
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    negative = load("negative")
    for name, value in (("FOREIGN", "striped"), ("TARGETS", ("striped",)), ("NEAR", ("striped",))):
        monkeypatch.setattr(negative, name, value)
    for intervention in negative.INTERVENTIONS.values():
        get_strategy("full_fine_tune").from_hyperparameters(intervention)
    stages = {"stages": negative.INTERVENTIONS["stages"]}
    monkeypatch.setattr(negative, "INTERVENTIONS", stages)
    given = [*options, "--backbone-folder", str(tmp_path / "harmful"), "--input-px", "32"]
    given += ["--steps", "2", "--fit-steps", "2", "--seeds", "1"]
    for part in ("harm", "warn", "near", "interventions", "table"):
        negative.main([part, *given])
    printed = capsys.readouterr().out
    assert "| harmful | striped | 1 |" in printed
    assert "| best on validation, all | 1 |" in printed


def test_risks_are_compared_with_gains_on_networks_of_other_domains(
    load: Load,
    options: list[str],
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = load("harmful_sources")
    for name in ("striped", "dotted"):
        shutil.copytree(data_root / "striped", tmp_path / "data" / name)
    monkeypatch.setattr(script, "SOURCES", ("striped",))
    monkeypatch.setattr(script, "TARGETS", ("striped", "dotted"))
    monkeypatch.setattr(script, "FITTED", ("linear_probe", "layer_svm"))
    given = [*options, "--sources-folder", str(tmp_path / "sources"), "--input-px", "32"]
    given += ["--data-root", str(tmp_path / "data")]
    for module in (fine_tuning, from_scratch):
        monkeypatch.setattr(module, "default_steps", lambda n_train, batch_size: 3)
    for part in ("make", "fit", "fit", "table"):
        script.main([part, *given, "--steps", "2"])
    printed = capsys.readouterr().out
    assert printed.count("striped dotted") == 1
    assert "striped striped" not in printed
    assert "| trained further | layer_svm |" in printed


def test_every_section_of_the_domain_benchmark_is_printed(
    load: Load,
    shared_root: Path,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    domain = small_domain("domain", load, shared_root, monkeypatch)
    monkeypatch.setattr(domain, "NEAR", ("flowers5", "cats_dogs"))
    monkeypatch.setattr(domain, "FAR", ("mnist5k",))
    monkeypatch.setattr(domain, "N_VARIANTS", 4)
    wide = replace(domain.calibration(), far=20 * domain.calibration().far)
    # Striped images are farther from ImageNet than any real dataset.
    monkeypatch.setattr(domain, "calibration", lambda: wide)
    monkeypatch.setattr(domain, "RULER_IMAGES", (4, 8))
    lines = [str(n) for n in domain.LINES]
    given = ["--cache-dir", str(cache_dir), "--most-draws", "2"]
    given += ["--input-px", "128"]  # the smallest size whose features are in the reference
    domain.main([*given, "--lines", *lines])
    assert capsys.readouterr().out.count("###") == len(lines)


def test_the_similarity_calibration_is_fitted(
    load: Load, shared_root: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_domain = small_domain("fit_domain", load, shared_root, monkeypatch)
    for name, value in (("N_SAME", 4), ("N_SCATTER", 12), ("DRAWS", 4)):
        monkeypatch.setattr(fit_domain, name, value)
    before = fit_domain.MAPS.read_bytes()
    fit_domain.main(["--cache-dir", str(cache_dir), "--out", str(tmp_path / "domain.json")])
    found = json.loads((tmp_path / "domain.json").read_text(encoding="utf-8"))
    assert found.keys() == json.loads(before).keys()
    assert found["calibration"].keys() == json.loads(before)["calibration"].keys()
    assert fit_domain.MAPS.read_bytes() == before


def test_a_reference_is_measured_and_written(
    load: Load, shared_root: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = small_domain("make_reference", load, shared_root, monkeypatch)
    name = "tf_efficientnet_lite0"
    monkeypatch.setattr(script, "SIZES", {name: (32, 64)})
    monkeypatch.setattr(script, "FEATURES", {name: (64,)})
    script.main(["--cache-dir", str(cache_dir), "--out", str(tmp_path), name])
    made = read_reference(tmp_path / f"{name}.safetensors")
    assert (set(made.moments), set(made.features)) == ({32, 64}, {64})


def small_domain(name: str, load: Load, root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a script that reads the shared datasets, with tiny ones in their place."""
    datasets = load("shared_datasets")
    monkeypatch.setattr(datasets, "DATA", root)
    few = {k: v for k, v in datasets.DESCRIPTIONS.items() if (root / k).is_dir()}
    monkeypatch.setattr(datasets, "DESCRIPTIONS", few)
    return load(name)


def test_advice_on_shuffled_labels_is_printed(
    load: Load, data_root: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data-root", str(data_root), "--cache-dir", str(cache_dir), "--sets", "striped"]
    given += ["--seeds", "1", "--n-per-class", "16", "--input-px", "32"]
    load("shuffled_labels").main(given)
    printed = capsys.readouterr().out
    assert "| striped | 0 | 33.3% |" in printed
    assert "of 1 draws." in printed


def test_similar_images_are_compared_with_nearest_neighbours(
    load: Load, separable_root: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data-root", str(separable_root), "--cache-dir", str(cache_dir)]
    load("similar").main([*given, "--sets", "coloured", "--seeds", "2", "--input-px", "32"])
    row = capsys.readouterr().out.splitlines()[-1]
    name, sizes, *shares = row.strip("| ").split(" | ")
    assert (name, sizes) == ("coloured", "30, 9")
    means = [float(share.split(" ± ")[0]) for share in shares]
    assert len(means) == 4
    assert all(80 <= mean <= 100 for mean in means)


def test_maps_are_compared_with_covering_at_random_and_with_random_weights(
    load: Load, separable_root: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load("explanations")
    given = ["--data-root", str(separable_root), "--cache-dir", str(cache_dir)]
    script.main([*given, "--sets", "coloured", "--images", "6", "--input-px", "64"])
    row = capsys.readouterr().out.splitlines()[-1]
    name, n, accuracy, method, top, chance, *intervals = row.strip("| ").split(" | ")
    assert (name, n, method) == ("coloured", "6", "CAM")
    assert float(accuracy[:-1]) > 60
    middle, low, high = (
        float(x) for x in re.fullmatch(r"(\S+) \[(\S+), (\S+)\]", intervals[0]).groups()
    )
    assert low <= middle <= high
    assert middle == pytest.approx(float(top) - float(chance), abs=0.11)
    pixels = np.zeros((2, 10, 10, 3), np.uint8)
    maps = np.zeros((2, 10, 10), np.float32)
    maps[0, :2] = maps[1, :, :2] = 1
    covered = script.cover(pixels, maps, (1.0, 0.5, 0.0))
    assert (covered[0, :2] == (255, 128, 0)).all()
    assert (covered[1, :, :2] == (255, 128, 0)).all()
    assert (covered > 0).any(axis=3).sum() == 2 * 20


@pytest.mark.usefixtures("exported_once")
def test_exports_are_compared_with_predictions(
    load: Load,
    convnext: Backbone,
    separable_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = load("exports")
    monkeypatch.setattr(script, "load_backbone", lambda input_px: convnext)
    precisions = {"onnx": ("float32", "int8"), "timm": ("float32",)}
    monkeypatch.setattr(script, "PRECISIONS", precisions)
    given = ["--data-root", str(separable_root), "--cache-dir", str(tmp_path / "cache")]
    given += ["--scratch", str(tmp_path / "scratch"), "--fits", "coloured:linear_probe:64"]
    script.main([*given, "--images", "12"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    files = [row[2] for row in rows]
    assert files[:2] == ["tl-auto predict", "bfloat16"]
    assert files[2:] == ["onnx float32", "onnx int8", "timm float32"]
    for row in rows:
        assert row[:2] == ["coloured", "linear_probe"]
    assert rows[0][3:5] == ["100.0%", "0.0000"]
    assert rows[2][3] == "100.0%"
    assert float(rows[2][4]) <= 0.001
    assert rows[0][8:] == ["0.0%", "0.0%"]
    assert [row[8][-1] for row in rows] == ["%", "%", "%", "%", "–"]  # timm has no unknown score


def test_unknown_images_are_measured_once_for_every_class_left_out(
    load: Load,
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    unknown, out = load("unknown"), tmp_path / "unknown.jsonl"
    write_folder(tmp_path / "data" / "one", 16)
    write_folder(tmp_path / "data" / "two", 16, seed=3)
    given = ["--data-root", str(tmp_path / "data"), "--cache-dir", str(cache_dir)]
    given += ["--seeds", "0", "--input-px", "32", "--out", str(out), "--sets", "one"]
    unknown.main([*given, "two", "--left", "1"])
    rows = rows_in(out)
    assert [(r["set"], r["left"] is None) for r in rows] == [
        ("one", True), ("one", False), ("two", True), ("two", False),
    ]  # fmt: skip
    assert all(0 <= r["auroc"] <= 1 for r in rows)
    for row in rows:
        sets = [row["prediction_sets"][str(rate)] for rate in unknown.STATED]
        for lower, higher in pairwise(sets):
            assert row["accuracy"] <= lower["coverage"] <= higher["coverage"]
            assert 1 <= lower["size"] <= higher["size"]
            assert lower["if_empty"] <= lower["coverage"]
    printed = capsys.readouterr().out
    assert printed.count("| one | ") == printed.count("| two | ") == 2
    assert "| above the accuracy | difference |" in printed
    unknown.main([*given, "two", "--left", "1"])
    assert rows_in(out) == rows

    monkeypatch.setattr(fine_tuning, "default_steps", lambda n_train, batch_size: 2)
    unknown.main([*given, "--left", "0", "--strategy", "full_fine_tune"])
    assert "20 are needed" in rows_in(out)[-1]["reason"]


def test_many_images_are_fitted_by_the_default_schedule(
    load: Load,
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = load("schedule")
    for split in ("train", "test"):
        shutil.copytree(data_root / "striped", tmp_path / "images" / split)
    monkeypatch.setattr(script, "HELD_OUT", 4)
    monkeypatch.setattr(script, "BEFORE", {"steps": 2, "batch_size": 8})
    monkeypatch.setattr(fine_tuning, "default_steps", lambda n_train, batch_size: 3)
    given = ["--fit", "--images", str(tmp_path / "images"), "--scratch", str(tmp_path / "new")]
    script.main([*given, "--n", "50"])
    printed = capsys.readouterr().out
    assert "| 20,000 | 128 | 2.00 | 625 | 4.00 |" in printed
    assert "| default | 32 | 3 | 1 |" in printed
    assert "| 600 steps of 32 | 8 | 2 | 0 |" in printed
    assert not (tmp_path / "new" / "many-images").exists()


def test_the_suite_keeps_the_splits_of_its_first_rows(load: Load, shared: Path) -> None:
    root = shared / "hymenoptera"
    pinned, today = load("pinned_split").load_pinned(root), load_dataset(root)
    names = [p.path.relative_to(root).as_posix() for p in pinned.test]
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    assert digest.startswith("58cbdd4ca8f85e22")
    assert set(pinned.fit_split + pinned.test) == set(today.fit_split + (today.test or ()))


SMOKE = {
    "pinned_split": test_the_suite_keeps_the_splits_of_its_first_rows,
    "schedule": test_many_images_are_fitted_by_the_default_schedule,
    "exports": test_exports_are_compared_with_predictions,
    "similar": test_similar_images_are_compared_with_nearest_neighbours,
    "explanations": test_maps_are_compared_with_covering_at_random_and_with_random_weights,
    "unknown": test_unknown_images_are_measured_once_for_every_class_left_out,
    "shuffled_labels": test_advice_on_shuffled_labels_is_printed,
    "run_suite": test_the_suite_adds_missing_rows,
    "curves": test_training_runs_are_recorded_and_averaged,
    "data_quality": test_planted_leaks_series_and_wrong_labels_are_detected,
    "all_strategies": test_every_strategy_is_fitted_once_and_stands_in_the_table,
    "fine_tune_defaults": test_default_hyperparameters_are_fitted_and_printed,
    "learning_rates": test_default_and_given_learning_rates_are_fitted_and_printed,
    "first_step": test_losses_after_the_first_update_are_printed,
    "prefix_cache": test_training_with_cached_frozen_stages_is_timed,
    "mirror": test_flip_asymmetry_is_measured_and_flips_are_fitted,
    "probes": test_linear_heads_are_fitted_and_compared_in_pairs,
    "probe_speed": test_the_regularisation_path_is_timed_against_scikit_learn,
    "negative": test_interventions_are_fitted_on_a_harmful_backbone,
    "harmful_sources": test_risks_are_compared_with_gains_on_networks_of_other_domains,
    "domain": test_every_section_of_the_domain_benchmark_is_printed,
    "shared_datasets": test_every_section_of_the_domain_benchmark_is_printed,
    "fit_domain": test_the_similarity_calibration_is_fitted,
    "make_reference": test_a_reference_is_measured_and_written,
}
