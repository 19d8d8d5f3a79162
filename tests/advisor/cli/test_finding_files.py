"""tl-advise --export-findings and --write-manifest, as a user runs them."""

import contextlib
import csv
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from advisor.advise import advise
from advisor.cli.app import advise_app
from advisor.findings import exports
from advisor.findings.exports import finding_rows
from advisor.types.options import Options
from strategies.data import inspection

PLANTED = {"TL001", "TL002", "TL003", "TL004", "TL005"}
runner = CliRunner()


@pytest.fixture
def planted(make_folder: Callable[..., Path]) -> Path:
    """Return a dataset with train and test in which five kinds of problems are planted."""
    make_folder("mine/train", 14)
    root = make_folder("mine/test", 5, seed=2).parent
    train = root / "train"
    shutil.copy(train / "class0/003.png", train / "class0/copy.png")
    shutil.copy(train / "class0/004.png", train / "class1/contra.png")
    shutil.copy(root / "test/class0/000.png", train / "class0/leak.png")
    Image.open(train / "class2/003.png").save(train / "class2/near.jpg", quality=90)
    (train / "class0/torn.png").write_bytes(b"torn")
    return root


@pytest.fixture
def cache(warm_cache: Path) -> list[str]:
    return ["--cache-dir", str(warm_cache), "--input-px", "32"]


def run(*arguments: object, cwd: Path) -> Result:
    with contextlib.chdir(cwd):
        return runner.invoke(advise_app, [*map(str, arguments)])


def digests(root: Path) -> dict[Path, str]:
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()}


def test_a_clean_manifest_has_none_of_the_findings_that_it_was_made_from(
    planted: Path, cache: list[str], tmp_path: Path
) -> None:
    before = digests(planted)
    asked = ["--json", *cache]
    first = run("mine", *asked, "--write-manifest", "clean.csv", cwd=tmp_path)
    assert first.exit_code == 0, first.stderr
    assert {f["code"] for f in json.loads(first.stdout)["findings"]} >= PLANTED
    notes = " ".join(first.stderr.split())
    assert "clean.csv: 57 of 61 images." in notes
    assert "TL001: 1 file left out: unreadable." in notes
    assert "TL002: 1 image left out (train 1): exact copies, of which one is kept." in notes
    assert "TL003: 2 images left out (train 2)" in notes
    assert "TL004: 1 image left out (train 1)" in notes
    assert "TL005: 2 near-duplicates grouped" in notes
    second = run("clean.csv", *asked, cwd=tmp_path)
    assert second.exit_code == 0, second.stderr
    record = json.loads(second.stdout)
    assert not PLANTED & {f["code"] for f in record["findings"]}
    assert record["split"]["test"] == 15
    assert digests(planted) == before


def test_exports_hold_what_the_advice_counts(
    planted: Path, cache: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "SETTLED_S", 0.0)  # new files may be cached
    found = run("mine", "--json", *cache, "--export-findings", "out", cwd=tmp_path)
    assert found.exit_code == 0, found.stderr
    assert f"DOCUMENT_ROOT is {tmp_path}" in " ".join(found.stderr.split())
    record = json.loads((tmp_path / "out/findings.json").read_text(encoding="utf-8"))
    counts = {f["code"]: f["n_affected"] for f in json.loads(found.stdout)["findings"]}
    assert {f["code"]: len(f["affected"]) for f in record["findings"]} == counts
    assert counts.keys() >= PLANTED
    with (tmp_path / "out/fiftyone.csv").open(encoding="utf-8", newline="") as file:
        samples = {row["filepath"]: row for row in csv.DictReader(file)}
    assert samples[str(planted / "train/class0/copy.png")]["codes"] == "TL002"
    assert str(planted / "train/class0/torn.png") not in samples
    warm = run("mine", "--json", *cache, cwd=tmp_path)
    assert "comes from the cache" in warm.stderr
    assert {f["code"]: f["n_affected"] for f in json.loads(warm.stdout)["findings"]} == counts
    assert "affected" not in json.loads(warm.stdout)["findings"][0]


def test_advice_in_python_has_all_rows(planted: Path, warm_cache: Path) -> None:
    options = Options(input_px=32, cache_dir=warm_cache)
    advice = advise(planted, options)
    rows = list(finding_rows(advice.findings))
    assert len(rows) == sum(f.n_affected for f in advice.findings)
    (copy,) = [row for row in rows if row.code == "TL002"]
    assert copy.path == planted / "train/class0/copy.png"
    assert copy.other_path == planted / "train/class0/003.png"
    assert copy.label == "class0"


def test_the_page_is_written_too(planted: Path, cache: list[str], tmp_path: Path) -> None:
    asked = [str(planted), "--quiet", "--html", str(tmp_path / "page.html")]
    asked += ["--export-findings", str(tmp_path / "out"), *cache]
    found = runner.invoke(advise_app, asked)
    assert found.exit_code == 0, found.output
    assert (tmp_path / "page.html").is_file()
    assert (tmp_path / "out/findings.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--write-manifest", "{mine}"], "already exists"),
        (["--write-manifest", "{mine}.parquet"], "no .csv or .tsv file"),
        (["--export-findings", "{mine}"], "is a file"),
        (["--export-findings", "{used}"], "already exists"),
        (["--suspicious-labels", "drop"], "needs --write-manifest"),
        (["--write-manifest", "{mine}2.csv", "--suspicious-labels", "dorp"], "'drop'"),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_image_is_read(
    arguments: list[str],
    message: str,
    planted: Path,
    cache: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "mine.csv").write_text("mine")
    (tmp_path / "used").mkdir()
    (tmp_path / "used/findings.json").write_text("mine")
    monkeypatch.setattr("strategies.data.inspection.read_bytes", pytest.fail)
    names = {"mine": tmp_path / "mine.csv", "used": tmp_path / "used"}
    asked = [argument.format(**names) for argument in arguments]
    found = runner.invoke(advise_app, [str(planted), *asked, *cache])
    assert found.exit_code == 2, found.output
    assert message in " ".join(found.stderr.split())
    assert found.stdout == ""


def test_a_manifest_of_a_sample_is_refused_before_measuring(
    planted: Path, cache: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["advisor.advise"], "measure", pytest.fail)
    asked = [str(planted), "--max-images", "20", "--write-manifest", str(tmp_path / "c.csv")]
    found = runner.invoke(advise_app, [*asked, *cache])
    assert found.exit_code == 2, found.output
    assert "--max-images 0" in " ".join(found.stderr.split())


def test_without_pyarrow_it_says_what_to_install_before_any_work(
    planted: Path, cache: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "has_pyarrow", lambda: False)
    asked = [str(planted), "--quiet", "--export-findings", str(tmp_path / "out"), *cache]
    found = runner.invoke(advise_app, asked)
    assert found.exit_code == 0, found.output
    notes = " ".join(found.stderr.split())
    install, written = "pip install 'tl-advisor[parquet]'", "fiftyone.csv"
    assert 0 < notes.find(install) < notes.find(written)
    assert not (tmp_path / "out/findings.parquet").exists()
    assert (tmp_path / "out/fiftyone.csv").is_file()
