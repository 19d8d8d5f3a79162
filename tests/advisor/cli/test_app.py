"""The commands tl-advise and tl-auto, run as a user runs them."""

import csv
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from advisor.cli.app import advise_app, auto_app
from advisor.cli.options import parse_duration_s
from advisor.tune.scheduler import Scheduler, make_scheduler
from advisor.types.advice import SCHEMA_VERSION
from strategies.data import inspection
from strategies.registry import STRATEGIES

runner = CliRunner()


@pytest.fixture
def cache(warm_cache: Path) -> list[str]:
    return ["--cache-dir", str(warm_cache), "--input-px", "64"]


def test_a_wrong_path_gives_an_error_with_advice_within_half_a_second() -> None:
    start = time.perf_counter()
    code = "from advisor.cli.app import tl_advise; tl_advise()"
    found = subprocess.run(
        [sys.executable, "-c", code, "/does/not/exist"], capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    assert found.returncode == 2
    assert found.stdout == ""
    assert "/does/not/exist does not exist. Give a folder" in found.stderr
    assert "Traceback" not in found.stderr
    baseline = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import typer, rich.console"], check=True)
    assert seconds < 0.5 + (time.perf_counter() - baseline)


@pytest.mark.parametrize("app", [advise_app, auto_app])
def test_help_exits_with_code_0(app: object) -> None:
    found = runner.invoke(app, ["--help"])  # type: ignore[arg-type]
    assert found.exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--demo"),
        (["{data}", "--demo"], "cannot be used together"),
        (["{data}", "--strategy", "linear_prob"], "linear_probe"),
        (["{data}", "--backbone", "resnet1"], "resnet"),
        (["{data}", "--device", "warp"], "--device warp"),
        (["{data}/class0"], "no subfolders"),
    ],
)
def test_user_errors_exit_with_code_2_and_a_message(
    arguments: list[str], message: str, make_folder: Callable[..., Path], cache: list[str]
) -> None:
    data = make_folder("data", 4)
    found = runner.invoke(advise_app, [a.format(data=data) for a in arguments] + cache)
    assert found.exit_code == 2
    assert found.stdout == ""
    assert message in " ".join(found.stderr.split())


def test_the_advice_is_for_the_time_that_was_given(
    make_folder: Callable[..., Path], cache: list[str]
) -> None:
    asked = [str(make_folder("data", 12)), "--time", "1h", *cache]
    found = runner.invoke(advise_app, [*asked, "--json"])
    assert found.exit_code == 0, found.output
    record = json.loads(found.stdout)
    assert record["time_s"] == 3600
    assert "--time 3600s" in record["command"]
    report = runner.invoke(advise_app, asked).stdout
    assert report.splitlines()[1].startswith("The advice is for a fit of at most 1 h. ")


def test_json_is_the_only_output_on_stdout_and_complete(
    make_folder: Callable[..., Path], cache: list[str]
) -> None:
    data = make_folder("data", 12)
    (data / "class0" / "broken.png").write_bytes(b"no image")
    found = runner.invoke(advise_app, [str(data), "--json", *cache])
    assert found.exit_code == 0, found.output
    record = json.loads(found.stdout)
    assert record["schema_version"] == SCHEMA_VERSION
    best = record["recommendations"][0]
    assert set(best) == {
        "strategy",
        "backbone",
        "accuracy",
        "seconds",
        "hyperparameters",
        "reasons",
        "image_passes",
        "cases",
        "input_px",
        "measured",
        "peak_bytes",
    }
    assert record["time_s"] is None
    assert record["frontier"]["picks"][-1]["time_s"] is None
    assert best["accuracy"]["low"] <= best["accuracy"]["mid"] <= best["accuracy"]["high"]
    assert len(record["recommendations"]) + len(record["rejections"]) == len(STRATEGIES)
    assert {"size", "domain", "rule", "borderline"} <= set(record["quadrant"])
    assert 0 <= record["similarity"]["mid"] <= 1
    assert record["quarantine"][0]["path"].endswith("broken.png")
    assert any(f["code"] == "TL001" for f in record["findings"])
    assert record["findings"][0].keys() >= {"code", "severity", "title", "detail", "action"}


def test_the_report_fits_80_columns_and_names_every_strategy(
    make_folder: Callable[..., Path], cache: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    from advisor.cli import app as cli

    page = io.StringIO()
    monkeypatch.setattr(cli, "stdout", Console(file=page, width=80))
    data = str(make_folder("data", 12))
    found = runner.invoke(advise_app, [data, *cache])
    assert found.exit_code == 0, found.output
    short = page.getvalue()
    assert len(short.splitlines()) <= 45
    assert runner.invoke(advise_app, [data, "--full", *cache]).exit_code == 0
    text = page.getvalue().removeprefix(short)
    assert max(map(len, page.getvalue().splitlines())) <= 80
    for name in ("linear_probe", "layer_svm", "partial_fine_tune", "full_fine_tune"):
        assert name in text
        assert name in short
    assert "Runner-up: " in text
    assert "tl-advise" in text
    assert "●" in text


def test_html_and_markdown_show_the_same_accuracy(
    make_folder: Callable[..., Path], cache: list[str], tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    asked = [str(make_folder("data", 8)), "--html", str(page), "--markdown", *cache]
    found = runner.invoke(advise_app, asked)
    assert found.exit_code == 0, found.output
    assert found.stdout.startswith("# data: ")
    best = found.stdout.split("\n")[0].removeprefix("# data: ")
    expected = next(
        x for x in found.stdout.splitlines() if f"| {best.replace('_', chr(92) + '_')} |" in x
    )
    accuracy = expected.split("|")[3].strip().replace("\\", "")
    assert accuracy in page.read_text(encoding="utf-8")


def test_json_and_markdown_together_are_rejected(make_folder: Callable[..., Path]) -> None:
    found = runner.invoke(advise_app, [str(make_folder("data", 4)), "--json", "--markdown"])
    assert found.exit_code == 2
    assert "cannot be used together" in found.stderr


def test_full_and_quiet_together_are_rejected(make_folder: Callable[..., Path]) -> None:
    found = runner.invoke(advise_app, [str(make_folder("data", 4)), "--full", "--quiet"])
    assert found.exit_code == 2
    assert "cannot be used together" in found.stderr


def test_html_into_a_missing_folder_is_rejected(tmp_path: Path) -> None:
    target = tmp_path / "none" / "report.html"
    found = runner.invoke(advise_app, [str(tmp_path), "--html", str(target)])
    assert found.exit_code == 2
    assert "there is no folder" in " ".join(found.stderr.split())


def test_explain_prints_a_finding_and_suggests_similar_codes() -> None:
    found = runner.invoke(advise_app, ["--explain", "tl003"])
    assert found.exit_code == 0
    assert found.stdout.startswith("## TL003: ")
    assert "TL004" not in found.stdout
    wrong = runner.invoke(advise_app, ["--explain", "TL903"])
    assert wrong.exit_code == 2
    assert "Did you mean TL" in " ".join(wrong.stderr.split())


@pytest.mark.parametrize(("app", "name"), [(advise_app, "TL_ADVISE"), (auto_app, "TL_AUTO")])
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_scripts_are_available(app: object, name: str, shell: str) -> None:
    program = name.lower().replace("_", "-")
    found = runner.invoke(
        app,  # type: ignore[arg-type]
        [],
        prog_name=program,
        env={f"_{name}_COMPLETE": f"source_{shell}"},
    )
    assert found.exit_code == 0, found.output
    assert f"_{name}_COMPLETE" in found.stdout


def test_fail_on_sets_the_exit_code_and_prints_the_advice_all_the_same(
    make_folder: Callable[..., Path], cache: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_folder("data", 12)
    (data / "class0" / "broken.png").write_bytes(b"no image")
    monkeypatch.setattr(inspection, "SETTLED_S", 0.0)  # new files may be cached
    asked = [str(data), "--json", *cache]
    measured = runner.invoke(advise_app, [*asked, "--fail-on", "tip"])
    assert measured.exit_code == 3, measured.output
    findings = json.loads(measured.stdout)["findings"]
    assert measured.stderr.endswith(
        "--fail-on tip: " + ", ".join(f["code"] for f in findings) + "\n"
    )
    failing = {
        "never": [],
        "void": [f["code"] for f in findings if f["voids_advice"]],
        "issue": [f["code"] for f in findings if f["severity"] == "issue"],
        "tip": [f["code"] for f in findings],
    }
    assert failing["issue"] != failing["tip"]
    for name, codes in failing.items():
        found = runner.invoke(advise_app, [*asked, "--fail-on", name])
        assert "the advice comes from the cache" in found.stderr
        assert found.exit_code == (3 if codes else 0)
        assert found.stdout == measured.stdout
        assert (f"--fail-on {name}: {', '.join(codes)}\n" in found.stderr) == bool(codes)


def test_verbose_logs_what_was_chosen_and_what_was_cached(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    asked = [str(make_folder("data", 12)), "--json", "-v"]
    asked += ["--cache-dir", str(tmp_path / "cache"), "--input-px", "64"]
    found = runner.invoke(advise_app, asked, env={"TL_ADVISOR_SEED": "3"})
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["seed"] == 3
    log = found.stderr
    assert " INFO advisor.cli.options: --seed is 3: from TL_ADVISOR_SEED\n" in log
    assert " INFO advisor.cli.app: advice in the cache: none\n" in log
    assert " INFO strategies.core.context: device cpu, " in log
    assert " at 64 px: 30 images to compute" in log
    assert runner.invoke(advise_app, [a for a in asked if a != "-v"]).stderr.count("INFO") == 0


def test_profile_prints_phase_times_to_stderr(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    asked = [str(make_folder("data", 8)), "--json", "--profile", "--input-px", "64"]
    found = runner.invoke(advise_app, [*asked, "--cache-dir", str(tmp_path / "cache")])
    assert found.exit_code == 0, found.output
    json.loads(found.stdout)
    rows = [line.rsplit(maxsplit=3) for line in found.stderr.splitlines()]
    seconds = {row[0].strip(): float(row[1]) for row in rows if len(row) == 4 and row[2] == "s"}
    assert {"imports", "images", "features", "probes", "similarity"} <= seconds.keys()
    assert all(s >= 0 for s in seconds.values())


def test_cache_info_and_cache_clear(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    where = ["--cache-dir", str(tmp_path / "cache")]
    runner.invoke(advise_app, [str(make_folder("data", 8)), "--input-px", "64", *where])

    full = runner.invoke(auto_app, ["cache", "info", *where])
    cleared = runner.invoke(auto_app, ["cache", "clear", *where])
    empty = runner.invoke(auto_app, ["cache", "info", *where])

    assert full.exit_code == cleared.exit_code == empty.exit_code == 0
    assert "cache.sqlite" in full.stdout.replace("\n", "")
    assert int(full.stdout.splitlines()[-1].split()[0]) > 20
    assert int(empty.stdout.splitlines()[-1].split()[0]) == 0


def test_run_then_predict(
    make_folder: Callable[..., Path], cache: list[str], tmp_path: Path
) -> None:
    data, out = make_folder("data", 12), tmp_path / "run"
    found = runner.invoke(
        auto_app, ["run", str(data), "--out", str(out), "--trials", "2", "--json", *cache]
    )
    assert found.exit_code == 0, found.output
    record = json.loads(found.stdout)
    assert record == json.loads((out / "outcome.json").read_text())
    assert set(record["best"]) >= {"strategy", "hyperparameters", "val_accuracy"}
    assert record["test_accuracy"]["low"] <= record["test_accuracy"]["high"]
    for name in ("advice.json", "study.db", "trials.jsonl", "classifier", "report.html"):
        assert (out / name).exists()
    for name in ("checkpoints", "soup_candidates"):
        assert not (out / name).exists()
    listed = json.loads((out / "findings.json").read_text())["findings"]
    counted = json.loads((out / "advice.json").read_text())["findings"]
    assert [f["code"] for f in listed] == [f["code"] for f in counted]
    assert [len(f["affected"]) for f in listed] == [f["n_affected"] for f in counted]

    again = runner.invoke(auto_app, ["run", str(data), "--out", str(out), *cache])
    assert again.exit_code == 2
    assert "not empty" in " ".join(again.stderr.split())

    (data / "class0" / "broken.png").write_bytes(b"no image")
    predicted = runner.invoke(auto_app, ["predict", str(out), str(data), "--json", "--top", "2"])
    assert predicted.exit_code == 0, predicted.output
    predictions = json.loads(predicted.stdout)
    assert len(predictions["predictions"]) == 36
    assert all(len(p["classes"]) == 2 for p in predictions["predictions"])
    assert [Path(q["path"]).name for q in predictions["quarantine"]] == ["broken.png"]

    table = runner.invoke(auto_app, ["predict", str(out), str(data / "class1"), "--csv"])
    rows = list(csv.DictReader(io.StringIO(table.stdout)))
    assert len(rows) == 12
    assert {r["class"] for r in rows} <= {"class0", "class1", "class2"}


def test_a_forced_strategy_is_the_only_one_searched(
    make_folder: Callable[..., Path], cache: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = ["run", str(make_folder("data", 8)), "--out", str(out), "--trials", "2"]
    arguments += ["--no-report"]
    found = runner.invoke(auto_app, [*arguments, "--strategy", "layer_svm", "--json", *cache])
    assert found.exit_code == 0, found.output
    lines = [json.loads(x) for x in (out / "trials.jsonl").read_text().splitlines()]
    assert [x["strategy"] for x in lines] == ["layer_svm", "layer_svm"]


def test_a_run_passes_the_preference_to_the_scheduler(
    make_folder: Callable[..., Path],
    cache: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schedulers: list[Scheduler] = []

    def record_scheduler(*args: Any, **given: Any) -> Scheduler:
        schedulers.append(make_scheduler(*args, **given))
        return schedulers[-1]

    monkeypatch.setattr("advisor.tune.driver.make_scheduler", record_scheduler)
    arguments = ["run", str(make_folder("data", 8)), "--out", str(tmp_path / "run")]
    arguments += ["--trials", "1", "--no-control", "--no-report", "--prefer", "cheap", *cache]
    found = runner.invoke(auto_app, arguments)
    assert found.exit_code == 0, found.output
    assert [s.prefer for s in schedulers] == ["cheap"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("45", 45)]
)
def test_durations_are_parsed(text: str, seconds: float) -> None:
    assert parse_duration_s("--time", text) == seconds


def test_an_invalid_duration_is_rejected(make_folder: Callable[..., Path]) -> None:
    found = runner.invoke(auto_app, ["run", str(make_folder("data", 4)), "--time", "soon"])
    assert found.exit_code == 2
    assert "10m" in found.stderr
