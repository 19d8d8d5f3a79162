"""tl-auto predict --explain: files, page and JSON; what is refused, missing or unreadable."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from advisor.deploy import explain as module
from advisor.deploy.evaluate import evaluate_dataset
from advisor.deploy.evaluation_page import evaluation_page
from advisor.deploy.explain import check_out, explain, explain_evaluation
from advisor.deploy.predict import predict
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.run_dir.images import image_rows
from strategies.core.context import RunContext, make_context
from strategies.core.errors import DataError, StorageError
from strategies.core.progress import Reporter

Predict = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tl_auto_predict(tmp_path: Path) -> Predict:
    """Return a function that runs ``tl-auto predict`` in a process of its own."""

    def run(*arguments: object, exits: int = 0) -> subprocess.CompletedProcess[str]:
        code = "from advisor.cli.app import tl_auto; tl_auto()"
        found = subprocess.run(
            [sys.executable, "-c", code, "predict", *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "80", "XDG_CACHE_HOME": str(tmp_path / "cache")},
        )
        assert found.returncode == exits, found.stderr
        return found

    return run


def written(out: Path) -> Any:
    return json.loads((out / "explanations.json").read_text(encoding="utf-8"))


def files_below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_command_writes_files_a_page_and_json_and_prints_as_before(
    tl_auto_predict: Predict, finished: Path, run_data: Path, tmp_path: Path
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "new" / "out"
    photos.mkdir()
    shutil.copy(run_data / "class1" / "000.png", photos / "a b<&.png")
    Image.open(run_data / "class2" / "003.png").convert("RGB").resize((90, 40)).save(
        photos / "wide.jpg"
    )
    (photos / "torn.png").write_bytes(b"no image")
    before = files_below(photos) | files_below(finished)

    found = tl_auto_predict(finished, photos, "--csv", "--explain", out)
    plain = tl_auto_predict(finished, photos, "--csv")
    assert found.stdout == plain.stdout
    assert "torn.png" in found.stderr
    assert str(out / "index.html") in found.stderr.replace("\n", "")
    assert files_below(photos) | files_below(finished) == before

    record = written(out)
    assert record["method"] == "CAM"
    assert record["notes"] == []
    assert [Path(q["path"]).name for q in record["quarantine"]] == ["torn.png"]
    assert [i["file"] for i in record["images"]] == ["00001-a_b_.jpg", "00003-wide.jpg"]
    rows = list(csv.DictReader(io.StringIO(plain.stdout)))
    train = {str(r.path): r.label for r in image_rows(RunDir(finished)) if r.split == "train"}
    for image, row in zip(record["images"], rows, strict=True):
        assert image["path"] == row["path"]
        assert image["explained_class"] == image["classes"][0]["class"] == row["class"]
        assert image["classes"][0]["probability"] == pytest.approx(float(row["probability"]))
        assert [train[n["path"]] for n in image["similar"]] == [
            n["class"] for n in image["similar"]
        ]
        assert len(image["similar"]) == 3
        with Image.open(out / image["file"]) as sheet:
            assert sheet.format == "JPEG"
            assert not sheet.getexif()
    wide = record["images"][1]
    left, top, right, bottom = wide["seen_box"]  # crop_pct 0.875 of the short side
    assert (right - left, bottom - top) == pytest.approx((35, 35), abs=1)
    assert left == pytest.approx(90 - right, abs=2)
    assert wide["seen_share"] == pytest.approx(35 * 35 / 3600, abs=0.02)


def test_the_page_is_small_self_contained_and_shows_what_the_json_says(
    finished: Path, run_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = [run_data / "class0" / f"{i:03d}.png" for i in range(4)]
    list(explain(finished, given, out, make_context(cache_dir=tmp_path / "cache")))
    text = (out / "index.html").read_text(encoding="utf-8")
    assert len(text) < 200_000
    assert "script-src &#39;none&#39;" in text or "script-src 'none'" in text
    assert "<script" not in text
    assert not re.findall(r'(?:src|href)="(?!data:image/webp|#|0000\d-)', text)
    assert "4 images explained" in text
    for image in written(out)["images"]:
        assert f'href="{image["file"]}"' in text
        best = image["classes"][0]
        assert f"<bdi>{best['class']}</bdi> {100 * best['probability']:.1f}%" in text
        for near in image["similar"]:
            assert f'alt="a train image of {near["class"]}"' in text
    assert "The network saw the middle 77% of it." in text
    assert text.count('alt=""') == 0


def test_the_page_shows_the_first_images_and_the_folder_has_all(
    finished: Path, run_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_ON_PAGE", 3)
    monkeypatch.setattr(module, "CHUNK", 2)
    monkeypatch.setattr("advisor.deploy.predict.CHUNK", 2)
    out = tmp_path / "out"
    given = sorted((run_data / "class0").iterdir())[:5]
    ctx = make_context(cache_dir=tmp_path / "cache")
    batches = list(explain(finished, given, out, ctx))
    assert [len(b.rows) for b in batches] == [2, 2, 1]
    expected = [row for batch in predict(finished, given) for row in batch.rows]
    assert [row for batch in batches for row in batch.rows] == expected
    text = (out / "index.html").read_text(encoding="utf-8")
    assert text.count('<article class="prediction">') == 3
    assert "This page shows the first 3" in text
    assert len(written(out)["images"]) == len(list(out.glob("*.jpg"))) == 5


def test_the_map_of_a_file_is_that_of_its_predicted_class(
    finished: Path, run_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explained = []
    maps = module.class_maps

    def watch(classifier: Any, pixels: Any, classes: Any) -> Any:
        explained.extend(classifier.classes[c] for c in classes)
        return maps(classifier, pixels, classes)

    monkeypatch.setattr(module, "class_maps", watch)
    given = [run_data / f"class{c}" / "002.png" for c in (2, 0, 1)]
    ctx = make_context(cache_dir=tmp_path / "cache")
    (batch,) = explain(finished, given, tmp_path / "out", ctx)
    assert explained == [row[0][0] for _, row in batch.rows]
    with Image.open(tmp_path / "out" / "00001-002.jpg") as sheet:
        pixels = np.asarray(sheet).astype(int)
    left, right = pixels[8:56, 8:56], pixels[8:56, 64:112]  # image and map, 48 px each
    with Image.open(given[0]) as image:
        assert np.abs(left - np.asarray(image.convert("RGB"))).mean() < 12
    assert (right.max(axis=2) - right.min(axis=2)).max() > 100  # colour


def test_a_classifier_alone_has_maps_but_no_similar_images(
    finished: Path, run_data: Path, tmp_path: Path
) -> None:
    notes: list[str] = []
    ctx = make_context(cache_dir=tmp_path / "cache", reporter=Reporter(on_note=notes.append))
    given = [run_data / "class0" / "000.png"]
    list(explain(finished / "classifier", given, tmp_path / "out", ctx))
    record = written(tmp_path / "out")
    assert record["images"][0]["similar"] == []
    assert record["notes"] == notes
    assert "There are no similar images" in notes[0]

    moved = tmp_path / "run"
    shutil.copytree(finished, moved)
    text = (moved / "images.csv").read_text(encoding="utf-8")
    (moved / "images.csv").write_text(text.replace("/data/class0", "/gone/class0"), "utf-8")
    list(explain(moved, given, tmp_path / "second", ctx))
    record = written(tmp_path / "second")
    assert {n["class"] for n in record["images"][0]["similar"]} <= {"class1", "class2"}
    assert re.search(r"\d+ of its \d+ train images are missing", record["notes"][0])


def test_folders_in_use_and_folders_of_the_images_are_refused(
    tl_auto_predict: Predict, finished: Path, run_data: Path, tmp_path: Path
) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "mine.txt").write_text("mine", encoding="utf-8")
    found = tl_auto_predict(finished, run_data, "--explain", used, exits=2)
    assert "is not empty. Give a new or empty folder." in found.stderr.replace("\n", " ")
    assert [p.name for p in used.iterdir()] == ["mine.txt"]
    with pytest.raises(StorageError, match="is not empty"):
        next(explain(finished, [run_data], used, make_context()))
    with pytest.raises(StorageError, match="is a file"):
        check_out(used / "mine.txt", [run_data])
    with pytest.raises(StorageError, match="whose images are explained"):
        check_out(run_data / "out", [run_data])
    check_out(tmp_path / "new", [run_data, run_data / "class0" / "000.png"])


def test_unreadable_and_no_images(finished: Path, tmp_path: Path, ctx: RunContext) -> None:
    (tmp_path / "torn.png").write_bytes(b"no image")
    (batch,) = explain(finished, [tmp_path / "torn.png"], tmp_path / "out", ctx)
    assert (batch.rows, len(batch.skipped)) == ((), 1)
    assert written(tmp_path / "out")["images"] == []
    assert "0 images explained" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image in the given files"):
        list(explain(finished, [tmp_path / "empty"], tmp_path / "none", ctx))


def test_the_page_of_an_evaluation_explains_its_mistakes(
    finished: Path, tmp_path: Path, make_folder: Callable[..., Path], ctx: RunContext
) -> None:
    data = make_folder("wrong", 3, seed=11)
    (data / "class0").rename(data / "held")
    (data / "class1").rename(data / "class0")
    (data / "held").rename(data / "class1")  # most images of these classes are mistakes
    found = evaluate_dataset(finished, data, ctx)
    assert len(found.scores.mistakes) >= 3
    explained = explain_evaluation(found, ctx)
    assert list(explained.by_path) == [m.path for m in found.scores.mistakes]
    text = evaluation_page(found, explained=explained)
    n = len(found.scores.mistakes)
    assert text.count('alt="map of where it speaks for') == n
    assert text.count("Most similar train images") == n
    assert len(text) < 5_000_000
    assert 'alt="map of' not in evaluation_page(found)
