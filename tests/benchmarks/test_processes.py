"""Smoke tests of scripts that start processes; most of these are run in the test's process."""

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from advisor.advise import prepare
from advisor.cli.finding_files import FindingFiles, advise_with_files
from advisor.types.options import Options
from strategies.heads import principal_axes
from tests.benchmarks.conftest import rows_in, run_in_process

Load = Callable[[str], ModuleType]
Patch = Callable[[ModuleType], None]
RunProcess = Callable[..., subprocess.CompletedProcess[str]]


class FinishedProcess:
    """Stand-in for a `subprocess.Popen` whose command was already run in the test's process."""

    pid = -1

    def __init__(self, code: int) -> None:
        self.code = code

    def poll(self) -> int:
        return self.code

    def wait(self, timeout: float | None = None) -> int:
        return self.code


def test_a_run_is_compared_with_its_time_limit(
    load: Load,
    in_process: Patch,
    separable_root: Path,
    cache_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    budget = load("budget")
    in_process(budget)
    out = tmp_path / "budget.jsonl"
    given = ["--data", str(separable_root), "--sets", "coloured", "--times", "60s"]
    given += ["--cache-dir", str(cache_dir), "--input-px", "32", "--out", str(out)]
    budget.main(given)
    (row,) = rows_in(out)
    assert row["exit"] == 0, row["said"]
    assert row["ended"] in budget.NOTHING_LEFT
    assert row["trials"] > 0
    assert "1 more ended early because nothing was left to try" in capsys.readouterr().out


def test_a_killed_run_is_resumed_and_compared(
    load: Load,
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kill = load("kill")
    really_start = kill.start

    def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes] | FinishedProcess:
        if arguments[0] == "run" and any("killed-" in a for a in arguments):
            started: subprocess.Popen[bytes] = really_start(arguments, log)
            return started
        if any(a.endswith("warm") for a in arguments):  # the test needs no warm cache
            return FinishedProcess(0)
        done = run_in_process([*kill.COMMAND, *arguments])
        with log.open("a") as file:
            file.write(done.stdout + done.stderr)
        return FinishedProcess(done.returncode)

    monkeypatch.setattr(kill, "start", start)
    given = ["--kills", "1", "--trials", "1", "--input-px", "32", "--strategy", "linear_probe"]
    given += ["--no-control", "--out", str(tmp_path / "out")]
    code = kill.main([str(data_root / "striped"), *given])
    printed = capsys.readouterr().out
    assert code == 0, printed + (tmp_path / "out/output.log").read_text()
    assert '"same": true' in printed


def test_loading_a_few_hard_links_is_measured(
    load: Load, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--images", str(data_root / "striped"), "--scratch", str(tmp_path)]
    load("million_files").main([*given, "--classes", "3", "--per-class", "10"])
    row = json.loads(capsys.readouterr().out)
    assert (row["files"], row["classes"], row["torch_imported"]) == (30, 3, False)
    assert not (tmp_path / "million-files").exists()


def test_advice_is_timed_with_both_ways_to_wait(
    make_folder: Callable[..., Path],
    load: Load,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    busy_machine = load("busy_machine")
    given: list[dict[str, str]] = []

    def run(command: Sequence[object], env: dict[str, str], **options: Any) -> None:
        given.append({k: v for k, v in env.items() if "OMP_" in k})
        assert run_in_process(command).returncode == 0

    monkeypatch.setattr(busy_machine.subprocess, "run", run)
    images = ["--images", str(make_folder("d", 12)), "--input-px", "32"]
    busy_machine.main([*images, "--others", "0", "--repeat", "1"])

    assert given == [busy_machine.SPIN, {}]
    assert re.search(r"^\| 0 \| \d+ \(.*\| \d+ \(", capsys.readouterr().out, re.MULTILINE)


def test_busy_processes_end_with_the_measurement(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy_machine = load("busy_machine")
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str]) -> subprocess.Popen[bytes]:
        started.append(process := popen(command))
        return process

    popen = subprocess.Popen
    monkeypatch.setattr(busy_machine.subprocess, "Popen", start)
    with busy_machine.busy_processes(2):
        assert [process.poll() for process in started] == [None, None]
    assert all(process.returncode for process in started)


def test_all_figures_of_large_datasets_are_measured(
    load: Load, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large_datasets = load("large_datasets")
    monkeypatch.setattr(principal_axes, "MAX_IN_MEMORY", principal_axes.MAX_IN_MEMORY)
    said: dict[str, str] = {}

    def measure(title: str, code: str, *arguments: object) -> None:
        done = run_in_process([sys.executable, "-c", code, *arguments])
        assert done.returncode == 0, done.stderr
        said[title] = done.stdout + done.stderr

    monkeypatch.setattr(large_datasets, "measure", measure)
    given = ["--source", str(data_root / "striped"), "--scratch", str(tmp_path)]
    large_datasets.main([*given, "--n", "60", "--few", "30", "--input-px", "32"])

    assert len(list((tmp_path / "copies-60").rglob("*.*"))) == 60
    assert said.keys() == {
        "tl-advise of 30 images",
        "tl-advise of 60 images",
        "reading the images and finding duplicates",
        "softmax head of 60 generated rows",
        "squared_hinge head of 60 generated rows",
        "tl-auto run of 60 images",
    }
    assert "encoded again: " in said["reading the images and finding duplicates"]
    assert "6 rows in memory: " in said["softmax head of 60 generated rows"]
    assert list((tmp_path / "run").iterdir())


def test_peers_fit_the_same_images(
    load: Load,
    in_process: Patch,
    data_root: Path,
    cache_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    peers = load("peers")
    in_process(peers)
    out, own = tmp_path / "peers.jsonl", ["linear_probe", "layer_svm", "full_fine_tune"]
    given = ["--data-root", str(data_root), "--cache-dir", str(cache_dir), "--out", str(out)]
    given += ["--python", sys.executable, "--sets", "striped", "--n-per-class", "5"]
    given += ["--seeds", "0", "--input-px", "32", "--steps", "1"]
    peers.main([*given, "--who", *peers.SKLEARN, *own, "timm_1e-3"])
    peers.main(["--table", "--out", str(out)])
    assert [r["who"] for r in rows_in(out)] == [*peers.SKLEARN, *own, "timm_1e-3"]
    assert "| striped, 5 (1) |" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["fastai", "autogluon"])
def test_an_installed_peer_fine_tunes(
    load: Load, in_process: Patch, data_root: Path, cache_dir: Path, how: str
) -> None:
    pytest.importorskip(how, reason=f"{how} is not installed: it needs its own environment")
    peers, suite = load("peers"), load("run_suite")
    in_process(peers)
    backbone = peers.load_backbone(input_px=32)
    dataset = suite.subsample(peers.load_dataset(data_root / "striped"), 5, 0)
    row = peers.run_training(how, dataset, backbone, 0, 10.0, Path(sys.executable))
    assert row["n_test"] == len(dataset.test)


@pytest.mark.parametrize(
    ("who", "seconds"), [("run", "60"), ("advice", "60"), ("random", "4"), ("optuna", "4")]
)
def test_a_search_method_is_run_and_summarised(
    load: Load,
    in_process: Patch,
    separable_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    who: str,
    seconds: str,
) -> None:
    tuning = load("tuning")
    in_process(tuning)
    out = tmp_path / "tuning.jsonl"
    given = ["--data-root", str(separable_root), "--sets", "coloured", "--out", str(out)]
    given += ["--who", who]
    given += ["--n-per-class", "8", "--seeds", "0", "--seconds", seconds, "--input-px", "32"]
    tuning.main(given)
    (row,) = rows_in(out)
    assert row["who"] == who
    assert row["accuracy"] is not None
    assert row["trials"] > 0
    assert ("run " in capsys.readouterr().out) == (who == "run")


def test_the_time_of_the_help_text_is_printed(
    load: Load, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--figures", "7", "--repeat", "1", "--images", str(data_root / "striped")]
    load("speed").main(given)
    assert "| 7 | `tl-advise --help`" in capsys.readouterr().out


def test_all_speed_figures_are_measured(
    load: Load,
    run_or_reuse: RunProcess,
    data_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    speed = load("speed")
    advised: list[str] = []
    rates: dict[str, str] = {}

    def run(bench: Any, code: str, *arguments: object) -> Any:
        advises = "tl_advise" in code and "--help" not in arguments
        if advises and len(advised) > 1:  # reuse the first result
            Path(str(arguments[arguments.index("--cache-dir") + 1])).mkdir(exist_ok=True)
            return speed.ProcessResult(1.0, 1.0, advised[0])
        if speed.KEEP_MEMORY not in arguments and code in rates:
            return speed.ProcessResult(1.0, 1.0, rates[code])
        small = ["--input-px", "32"] if advises else []
        done = run_or_reuse([sys.executable, "-c", code, *arguments, *small])
        assert done.returncode == 0, done.stderr
        if "our_pass" in code:
            rates[code] = done.stdout
        advised.extend([done.stdout + done.stderr] if advises else [])
        return speed.ProcessResult(1.0, 1.0, done.stdout + done.stderr)

    monkeypatch.setattr(speed.Bench, "run", run)
    small = {"SETTLED_S": 0.0, "N": 9, "N_NEW": 3, "MANY": 12, "SOME": 9, "FEW": 6}
    for name, value in small.items():
        monkeypatch.setattr(speed, name, value)
    speed.main(["--repeat", "1", "--images", str(data_root / "striped")])
    printed = capsys.readouterr().out
    figures = speed.FIGURES.items()
    assert all(f"| {number} | {figure.what} |" in printed for number, figure in figures)


def test_the_guard_fails_if_existing_figures_are_slow(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = load("speed")
    measured: list[Sequence[int]] = []

    def measure(bench: Any, figures: list[int], repeat: int) -> dict[int, float]:
        measured.append(figures)
        assert len(list(bench.source.iterdir())) == 10
        return {n: 0.01 if speed.FIGURES[n].at_least else 100.0 for n in figures}

    monkeypatch.setattr(speed, "measure", measure)
    with pytest.raises(SystemExit, match="Much slower"):
        speed.main(["--guard"])
    assert measured == [list(speed.GUARDED)]


def test_a_screenshot_is_saved_with_few_colours(
    load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    screenshots = load("screenshots")
    png = io.BytesIO()
    Image.effect_noise((64, 64), 80).convert("RGB").save(png, "PNG")
    screenshots.save(png.getvalue(), tmp_path / "shot.png")
    with Image.open(tmp_path / "shot.png") as image:
        assert len(image.getcolors() or ()) <= screenshots.COLOURS
    assert "bytes" in capsys.readouterr().out


# Chromium's sockets stay open after the test.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_screenshots_are_taken_of_a_report(
    load: Load, data_root: Path, cache_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not (shutil.which("chromium") or shutil.which("chromium-browser")):
        pytest.skip("Chromium is not installed")
    options = Options(input_px=32, cache_dir=cache_dir)
    prepared = prepare(data_root / "striped", options)
    advise_with_files(prepared, None, tmp_path / "report.html", FindingFiles())
    load("screenshots").main(["--run", str(tmp_path), "--out", str(tmp_path / "images")])
    found = {p.name for p in (tmp_path / "images").iterdir()}
    assert found == {"report-light.png", "report-dark.png", "map-dark.png"}


def test_a_terminal_is_drawn_in_both_themes(load: Load, tmp_path: Path) -> None:
    code = "import sys; print('\\033[1mbold\\033[0m', sys.stdout.isatty())"
    load("screenshots").main(["--out", str(tmp_path), "--terminal", sys.executable, "-c", code])
    for theme in ("light", "dark"):
        svg = (tmp_path / f"terminal-{theme}.svg").read_text(encoding="utf-8")
        assert "bold" in svg
        assert "True" in svg
        assert "http" not in svg.replace("http://www.w3.org", "").replace(
            "https://www.textual", ""
        )
    with pytest.raises(SystemExit, match="ended with 1"):
        load("screenshots").main(["--terminal", sys.executable, "-c", "raise SystemExit(1)"])


def test_the_gpu_path_is_measured_part_by_part(
    load: Load,
    run_or_reuse: RunProcess,
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gpu, started = load("gpu"), []

    def run(command: Sequence[object], **given: Any) -> subprocess.CompletedProcess[str]:
        words = list(map(str, command))
        started.append(words)
        if words[2:5:2] == ["features", "vit"]:
            raise subprocess.TimeoutExpired(words, given["timeout"])
        return subprocess.run(words, **given) if "pytest" in words else run_or_reuse(words)

    monkeypatch.setattr(gpu, "subprocess", SimpleNamespace(run=run))
    given = ["--device", "cpu", "--smoke", "--out", str(tmp_path / "gpu.json"), "--parts"]
    given += [*gpu.SMOKE_PARTS, "features vit"]
    assert {name.split(" ")[0] for name in gpu.PLAN} == {n.split(" ")[0] for n in gpu.SMOKE_PARTS}
    data = ["--data-root", str(data_root), "--set", "striped"]
    gpu.main([*given, *data])
    parts = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["parts"]
    assert [name for name, part in parts.items() if "error" in part] == ["features vit"]
    assert parts["features cnn"]["without_decoding"] > 0
    assert parts["training resnet"]["flops_per_image"] > 0
    assert parts["tl-auto run"]["accuracy"] > 0.5
    assert parts["gpu tests"]["counts"].get("failed", 0) == 0
    assert parts["compiled-features vit"]["rows_differ"] == 0  # traced, but not compiled
    for name, key in (("features", "cuda_graphs"), ("features", "compiled")):
        assert parts[f"compiled-{name} vit"][key]["rate"] > 0
    assert parts["compiled-training vit"]["compiled"]["rate"] > 0
    assert parts["decoding"]["largest_difference"] <= 1  # Pillow and torchvision use libjpeg
    printed = capsys.readouterr().out
    assert "| features cnn: pass / bare forward |" in printed
    assert "| features vit | TimeoutExpired:" in printed
    assert "| training resnet: host syncs in a step | not applicable |" in printed
    assert "| compiled-features vit: rows differ by | 0.0e+00 | ≤ 0.02 | yes |" in printed
    assert "less time" in printed
    assert "| decoding: on the device |" in printed
    n_started = len(started)
    gpu.main([*given, *data])  # only what failed is measured again
    assert [words[2:5:2] for words in started[n_started:]] == [["features", "vit"]]
    with pytest.raises(SystemExit, match="another machine or version"):
        gpu.main([*given, "--data-root", str(tmp_path)])  # with generated images


def test_parts_that_do_not_fit_into_the_time_are_left_to_the_next_start(
    load: Load,
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gpu, now = load("gpu"), [0.0]
    assert gpu.TOTAL_S == 8 * 60
    assert max(part.limit_s for part in gpu.PLAN.values()) < gpu.TOTAL_S
    monkeypatch.setattr(gpu, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def slow(bench: object, limit_s: float) -> dict[str, float]:
        now[0] += limit_s
        return {"limit_s": limit_s}

    bench = gpu.Bench("cpu", data_root, tmp_path, False)
    plan = {name: gpu.Part(slow, 200) for name in ("first", "second", "third")}
    for expected in (["first", "second"], ["first", "second", "third"]):
        now[0] = 0.0
        found = gpu.measure(plan, bench, tmp_path / "gpu.json")
        assert list(found["parts"]) == expected
    assert "third: no time left, start the script again" in capsys.readouterr().err


def test_generated_images_can_be_told_apart_by_class(load: Load, tmp_path: Path) -> None:
    root = load("gpu").write_images(tmp_path / "generated", 30)
    folders = sorted(root.iterdir())
    assert [len(list(folder.iterdir())) for folder in folders] == [6] * 5
    means = [
        np.mean([np.asarray(Image.open(p)).mean((0, 1)) for p in folder.iterdir()], axis=0)
        for folder in folders
    ]
    assert [int(mean.argmax()) for mean in means[:3]] == [0, 1, 2]


SMOKE = {
    "gpu": test_the_gpu_path_is_measured_part_by_part,
    "gpu_parts": test_the_gpu_path_is_measured_part_by_part,
    "gpu_setup": test_the_gpu_path_is_measured_part_by_part,
    "gpu_features": test_the_gpu_path_is_measured_part_by_part,
    "gpu_training": test_the_gpu_path_is_measured_part_by_part,
    "gpu_table": test_the_gpu_path_is_measured_part_by_part,
    "budget": test_a_run_is_compared_with_its_time_limit,
    "kill": test_a_killed_run_is_resumed_and_compared,
    "large_datasets": test_all_figures_of_large_datasets_are_measured,
    "million_files": test_loading_a_few_hard_links_is_measured,
    "peers": test_peers_fit_the_same_images,
    "peer_training": test_peers_fit_the_same_images,
    "tuning": test_a_search_method_is_run_and_summarised,
    "busy_machine": test_advice_is_timed_with_both_ways_to_wait,
    "speed": test_all_speed_figures_are_measured,
    "screenshots": test_a_screenshot_is_saved_with_few_colours,
}
