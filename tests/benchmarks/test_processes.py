"""The scripts that start processes: each main path runs, in one process wherever that can be."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from advisor.advise import advise
from advisor.types.options import Options
from tests.benchmarks.conftest import rows_in, run_here

Load = Callable[[str], ModuleType]
Patch = Callable[[ModuleType], None]
Here = Callable[..., subprocess.CompletedProcess[str]]


class Ended:
    """A process that ran to its end in this one."""

    pid = -1

    def __init__(self, code: int) -> None:
        self.code = code

    def poll(self) -> int:
        return self.code

    def wait(self, timeout: float | None = None) -> int:
        return self.code


def test_a_run_is_held_against_its_time(
    load: Load,
    here: Patch,
    easy: Path,
    kept: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    budget = load("budget")
    here(budget)
    out = tmp_path / "budget.jsonl"
    given = ["--data", str(easy), "--sets", "coloured", "--times", "60s", "--cache-dir", str(kept)]
    budget.main([*given, "--input-px", "32", "--out", str(out)])
    (row,) = rows_in(out)
    assert row["exit"] == 0, row["said"]
    assert row["ended"] in budget.NOTHING_LEFT
    assert row["trials"] > 0
    assert "1 more ended early and said" in capsys.readouterr().out


def test_a_killed_run_is_resumed_and_compared(
    load: Load,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kill = load("kill")
    really_start = kill.start

    def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes] | Ended:
        if arguments[0] == "run" and any("killed-" in a for a in arguments):
            started: subprocess.Popen[bytes] = really_start(arguments, log)
            return started
        if any(a.endswith("warm") for a in arguments):  # nothing is to be warmed here
            return Ended(0)
        done = run_here([*kill.COMMAND, *arguments])
        with log.open("a") as file:
            file.write(done.stdout + done.stderr)
        return Ended(done.returncode)

    monkeypatch.setattr(kill, "start", start)
    given = ["--kills", "1", "--trials", "1", "--input-px", "32", "--strategy", "linear_probe"]
    given += ["--pilot", "off", "--no-control", "--out", str(tmp_path / "out")]
    code = kill.main([str(data / "striped"), *given])
    said = capsys.readouterr().out
    assert code == 0, said + (tmp_path / "out/output.log").read_text()
    assert '"same": true' in said


def test_a_few_links_are_listed_and_measured(
    load: Load, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--images", str(data / "striped"), "--scratch", str(tmp_path)]
    load("million_files").main([*given, "--classes", "3", "--per-class", "10"])
    row = json.loads(capsys.readouterr().out)
    assert (row["files"], row["classes"], row["torch_imported"]) == (30, 3, False)
    assert not (tmp_path / "million-files").exists()


def test_alternatives_fit_the_same_images(
    load: Load,
    here: Patch,
    data: Path,
    kept: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    peers = load("peers")
    here(peers)
    out, own = tmp_path / "peers.jsonl", list(peers.STRATEGIES)
    given = ["--data-root", str(data), "--cache-dir", str(kept), "--out", str(out)]
    given += ["--python", sys.executable, "--sets", "striped", "--n-per-class", "5"]
    given += ["--seeds", "0", "--input-px", "32", "--steps", "1"]
    peers.main([*given, "--who", *peers.SKLEARN, *own, "timm_1e-3"])
    peers.main(["--table", "--out", str(out)])
    assert [r["who"] for r in rows_in(out)] == [*peers.SKLEARN, *own, "timm_1e-3"]
    assert "| striped, 5 (1) |" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["fastai", "autogluon"])
def test_a_peer_that_is_installed_trains(
    load: Load, here: Patch, data: Path, kept: Path, how: str
) -> None:
    pytest.importorskip(how, reason=f"{how} lives in an environment of its own")
    peers, suite = load("peers"), load("run_suite")
    here(peers)
    backbone = peers.load_backbone(input_px=32)
    dataset = suite.subsample(peers.load_dataset(data / "striped"), 5, 0)
    row = peers.run_training(how, dataset, backbone, 0, 10.0, Path(sys.executable))
    assert row["n_test"] == len(dataset.test)


@pytest.mark.parametrize(
    ("who", "seconds"), [("run", "60"), ("advice", "60"), ("random", "4"), ("optuna", "4")]
)
def test_a_way_to_spend_the_time_is_tried_and_summed_up(
    load: Load,
    here: Patch,
    easy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    who: str,
    seconds: str,
) -> None:
    tuning = load("tuning")
    here(tuning)
    out = tmp_path / "tuning.jsonl"
    given = ["--data-root", str(easy), "--out", str(out), "--sets", "coloured", "--who", who]
    given += ["--n-per-class", "8", "--seeds", "0", "--seconds", seconds, "--input-px", "32"]
    tuning.main(given)
    (row,) = rows_in(out)
    assert row["who"] == who
    assert row["accuracy"] is not None
    assert row["trials"] > 0
    assert ("run " in capsys.readouterr().out) == (who == "run")


def test_the_time_of_the_help_text_is_told(
    load: Load, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--figures", "7", "--repeat", "1", "--images", str(data / "striped")]
    load("speed").main(given)
    assert "| 7 | `tl-advise --help`" in capsys.readouterr().out


def test_all_figures_of_speed_are_measured(
    load: Load,
    quickly: Here,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    speed = load("speed")
    advised: list[str] = []
    passed: dict[str, str] = {}

    def run(bench: Any, code: str, *arguments: object) -> Any:
        advises = "tl_advise" in code and "--help" not in arguments
        if advises and len(advised) > 1:  # the same once more
            Path(str(arguments[arguments.index("--cache-dir") + 1])).mkdir(exist_ok=True)
            return speed.Spent(1.0, 1.0, advised[0])
        if "kept" not in arguments and code in passed:
            return speed.Spent(1.0, 1.0, passed[code])
        small = ["--input-px", "32"] if advises else []
        done = quickly([sys.executable, "-c", code, *arguments, *small])
        assert done.returncode == 0, done.stderr
        if "our_pass" in code:
            passed[code] = done.stdout
        advised.extend([done.stdout + done.stderr] if advises else [])
        return speed.Spent(1.0, 1.0, done.stdout + done.stderr)

    monkeypatch.setattr(speed.Bench, "run", run)
    small = {"SETTLED_S": 0.0, "N": 9, "N_NEW": 3, "MANY": 12, "SOME": 9, "FEW": 6}
    for name, value in small.items():
        monkeypatch.setattr(speed, name, value)
    speed.main(["--repeat", "1", "--images", str(data / "striped")])
    said = capsys.readouterr().out
    assert all(f"| {number} | {figure.what} |" in said for number, figure in speed.FIGURES.items())


def test_the_guard_looks_at_figures_that_there_are(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = load("speed")
    asked: list[Sequence[int]] = []

    def measure(bench: Any, figures: list[int], repeat: int) -> dict[int, float]:
        asked.append(figures)
        assert len(list(bench.source.iterdir())) == 10
        slow = {n: speed.FIGURES[n].at_least for n in figures}
        return {n: 0.01 if slow[n] else 100.0 for n in figures}

    monkeypatch.setattr(speed, "measure", measure)
    with pytest.raises(SystemExit, match="Much slower"):
        speed.main(["--guard"])
    assert asked == [list(speed.GUARDED)]


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


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Chromium's sockets outlive the test
def test_screenshots_are_taken_of_a_page(
    load: Load, data: Path, kept: Path, tmp_path: Path
) -> None:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not (shutil.which("chromium") or shutil.which("chromium-browser")):
        pytest.skip("there is no chromium on this machine")
    options = Options(input_px=32, cache_dir=kept, pilot="off")
    advise(data / "striped", options, html=tmp_path / "report.html")
    load("screenshots").main(["--run", str(tmp_path), "--out", str(tmp_path / "images")])
    found = {p.name for p in (tmp_path / "images").iterdir()}
    assert found == {"report-light.png", "map-dark.png"}


SMOKE = {
    "budget": test_a_run_is_held_against_its_time,
    "kill": test_a_killed_run_is_resumed_and_compared,
    "million_files": test_a_few_links_are_listed_and_measured,
    "peers": test_alternatives_fit_the_same_images,
    "peer_training": test_alternatives_fit_the_same_images,
    "tuning": test_a_way_to_spend_the_time_is_tried_and_summed_up,
    "speed": test_all_figures_of_speed_are_measured,
    "screenshots": test_a_screenshot_is_saved_with_few_colours,
}
