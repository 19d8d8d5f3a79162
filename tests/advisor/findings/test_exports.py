"""Exported findings hold all affected images, in the formats that other tools document."""

import csv
import importlib.util
import json
import os
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from advisor.findings import exports
from advisor.findings.exports import (
    COLUMNS,
    FILES,
    export_findings,
    finding_rows,
    findings_record,
    local_files_root,
)
from advisor.types.advice import AffectedImage, Finding
from strategies.core.errors import StorageError

ODD = "new\nline, 'quotes\" ümlaut.png"
RESERVED = {"id", "filepath", "media_type", "tags", "metadata", "created_at", "last_modified_at"}
"""Names of the fields that every sample of FiftyOne has."""


def finding(code: str, severity: str, *images: AffectedImage) -> Finding:
    return Finding(code, severity, "title", "detail", "action", affected=images)  # type: ignore[arg-type]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("cat/a.png", "cat/b.png", f"dog/{ODD}", "dog/torn.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"pixels")
    return tmp_path / "data"


@pytest.fixture
def findings(data: Path) -> tuple[Finding, ...]:
    a, b, odd = data / "cat/a.png", data / "cat/b.png", data / "dog" / ODD
    return (
        finding("TL001", "issue", AffectedImage(data / "dog/torn.png")),
        finding("TL002", "tip", AffectedImage(b, a, "cat", score=1.0)),
        finding("TL006", "tip"),
        finding(
            "TL009",
            "issue",
            AffectedImage(odd, label="dog", suggested_label="cat", score=0.95),
            AffectedImage(b, label="cat", suggested_label="dog", score=0.91),
        ),
    )


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_all_affected_images_with_the_code_and_severity(
    findings: tuple[Finding, ...], data: Path
) -> None:
    rows = list(finding_rows(findings))
    assert len(rows) == sum(f.n_affected for f in findings) == 4
    assert [row.code for row in rows] == ["TL001", "TL002", "TL009", "TL009"]
    assert rows[1].other_path == data / "cat/a.png"
    assert (rows[2].label, rows[2].suggested_label, rows[2].score) == ("dog", "cat", 0.95)


def test_json_and_parquet_hold_the_same_rows(
    findings: tuple[Finding, ...], data: Path, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    written = export_findings(findings, data, tmp_path / "new" / "out")
    assert sorted(path.name for path in written) == sorted(FILES)
    found = parquet.read_table(tmp_path / "new/out/findings.parquet")
    expected = ("code", "severity", "path", "other_path", "label", "suggested_label", "score")
    assert tuple(found.column_names) == COLUMNS == expected
    record = json.loads((tmp_path / "new/out/findings.json").read_text(encoding="utf-8"))
    from_json = [
        {"code": f["code"], "severity": f["severity"], **image}
        for f in record["findings"]
        for image in f["affected"]
    ]
    assert found.to_pylist() == from_json
    assert record["findings"][2]["n_affected"] == 0
    assert all(Path(row["path"]).is_file() for row in from_json)
    assert record == findings_record(findings, data)


def test_fiftyone_can_read_one_sample_per_readable_image(
    findings: tuple[Finding, ...], data: Path, tmp_path: Path
) -> None:
    export_findings(findings, data, tmp_path / "out")
    samples = table(tmp_path / "out" / "fiftyone.csv")
    assert "filepath" in samples[0]
    assert not RESERVED & (samples[0].keys() - {"filepath"})
    paths = [Path(sample["filepath"]) for sample in samples]
    assert all(path.is_absolute() and path.is_file() for path in paths)
    assert set(paths) == {data / "cat/b.png", data / "dog" / ODD}
    assert len(paths) == 2  # of several rows of one path it would keep only the last
    both = samples[paths.index(data / "cat/b.png")]
    assert both["codes"] == "TL002,TL009"  # a list
    assert both["severity"] == "issue"
    assert both["duplicate_of"] == str(data / "cat/a.png")
    assert (both["suggested_label"], both["suggestion_score"]) == ("dog", "0.91")
    assert samples[paths.index(data / "dog" / ODD)]["duplicate_of"] == ""  # a missing field


def test_label_studio_finds_the_images_below_its_folder_of_local_files(
    findings: tuple[Finding, ...], data: Path, tmp_path: Path
) -> None:
    export_findings(findings, data, tmp_path / "out")
    tasks = table(tmp_path / "out" / "label_studio.csv")
    root = local_files_root(findings, data)
    assert root == tmp_path
    assert {"image", "label", "suggested_label"} <= tasks[0].keys()
    found = []
    for task in tasks:
        address = urlsplit(task["image"])
        assert address.path == "/data/local-files/"
        (below,) = parse_qs(address.query)["d"]
        found.append(root / below)
    assert set(found) == {data / "cat/b.png", data / "dog" / ODD}
    elsewhere = finding("TL004", "tip", AffectedImage(tmp_path.parent / "test/a.png"))
    assert local_files_root((elsewhere,), data) == tmp_path.parent


def test_relative_paths_become_absolute(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = finding("TL013", "issue", AffectedImage(Path("data/cat/a.png"), label="cat"))
    export_findings((found,), Path("data"), Path("out"))
    assert table(Path("out/fiftyone.csv"))[0]["filepath"] == str(data / "cat/a.png")
    assert "d=data/cat/a.png" in table(Path("out/label_studio.csv"))[0]["image"]


def test_a_path_that_is_not_utf_8_keeps_its_bytes_in_csv_and_is_escaped_elsewhere(
    data: Path, tmp_path: Path
) -> None:
    odd = os.fsencode(data) + b"/cat/\xff.png"
    found = finding("TL013", "issue", AffectedImage(Path(os.fsdecode(odd)), label="cat"))
    export_findings((found,), data, tmp_path / "out")
    assert odd in (tmp_path / "out/fiftyone.csv").read_bytes()
    assert b"%FF.png" in (tmp_path / "out/label_studio.csv").read_bytes()
    text = (tmp_path / "out/findings.json").read_text(encoding="utf-8")
    assert json.loads(text)["findings"][0]["affected"][0]["path"].endswith("\\udcff.png")


def test_without_findings_the_tables_have_only_a_header(data: Path, tmp_path: Path) -> None:
    export_findings((), data, tmp_path / "out")
    for name in ("fiftyone.csv", "label_studio.csv"):
        assert len((tmp_path / "out" / name).read_text().splitlines()) == 1


def test_without_pyarrow_all_other_files_are_written(
    findings: tuple[Finding, ...], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find_spec(name)
    )
    assert not exports.has_pyarrow()
    written = export_findings(findings, data, tmp_path / "out")
    assert {p.name for p in written} == {p.name for p in (tmp_path / "out").iterdir()}
    assert {p.name for p in written} == set(FILES) - {"findings.parquet"}


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_overwritten(
    name: str, findings: tuple[Finding, ...], data: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(StorageError, match="already exists"):
        export_findings(findings, data, tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    assert not [other for other in FILES if other != name and (tmp_path / other).exists()]
    with pytest.raises(StorageError, match="is a file"):
        export_findings(findings, data, tmp_path / name)
