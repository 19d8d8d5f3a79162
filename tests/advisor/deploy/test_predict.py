"""Prediction with a saved classifier on files and folders."""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advisor.deploy import predict as predict_module
from advisor.deploy.predict import Asked, UnknownCount, predict
from strategies.core.errors import DataError, TransferError
from strategies.core.progress import ignore
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier, make_network
from strategies.models.reliability.reliability import ENOUGH_IMAGES


@pytest.fixture
def saved(backbone: Backbone, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    depths = (backbone.n_depths,)
    network = make_network(backbone, depths, 3).eval()
    folder = tmp_path / "classifier"
    ImageClassifier(("a", "b", "c"), backbone, depths, network, "linear_probe", {}).save(folder)
    return folder


def test_readable_images_get_probabilities_and_unreadable_ones_a_reason(
    saved: Path, make_folder: Callable[..., Path]
) -> None:
    data = make_folder("data", 25)  # more than one batch
    bad = [data / "class0" / "000x.png", data / "class2" / "zzz.png"]
    for path in bad:
        path.write_bytes(b"no image")
    paths = sorted(p for p in data.rglob("*.png") if p not in bad)
    progress: list[tuple[int, int]] = []

    (found,) = predict(saved, [data], on_progress=lambda _, *counts: progress.append(counts))

    assert [path for path, _ in found.rows] == paths
    assert [s.path for s in found.skipped] == bad
    assert progress[-1][0] == 77
    expected = ImageClassifier.load(saved).predict_proba(paths)
    rows = [[dict(row)[name] for name in "abc"] for _, row in found.rows]
    np.testing.assert_allclose(rows, expected, atol=0.02)  # the pass may be in bfloat16
    assert all(row[0][1] >= row[1][1] >= row[2][1] for _, row in found.rows)


def test_a_batch_without_a_readable_image_has_no_predictions(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")

    (found,) = predict(saved, [tmp_path / "bad.png"], on_progress=ignore)

    assert found.rows == ()
    assert [s.path.name for s in found.skipped] == ["bad.png"]


def test_images_in_memory_are_predicted_like_their_files(
    saved: Path, make_folder: Callable[..., Path]
) -> None:
    paths = sorted(make_folder("data", 2).rglob("*.png"))
    images = [Image.open(path).convert("RGB") for path in paths]
    given = [images[0], np.asarray(images[1]), *map(str, paths[2:4]), *images[4:]]

    (found,) = predict(saved, given, device="cpu")
    (expected,) = predict(saved, paths, device="cpu")

    assert [name for name, _ in found.rows] == [0, 1, *paths[2:4], 4, 5]
    assert [row for _, row in found.rows] == [row for _, row in expected.rows]


def test_an_image_in_memory_that_cannot_be_used_raises_an_error(saved: Path) -> None:
    given = [np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9, 3))]
    with pytest.raises(DataError, match=r"Image 1, in memory, .* float64"):
        list(predict(saved, given))


def test_an_empty_folder_raises_an_error(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image"):
        list(predict(saved, [tmp_path / "empty"], on_progress=ignore))


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Return an image of another kind than striped ones: a bright disc on black."""
    y, x = np.mgrid[0:48, 0:48] - 24
    path = tmp_path / "foreign.png"
    Image.fromarray(np.where(x**2 + y**2 < 100, 255, 0).astype(np.uint8)).save(path)
    return path


def test_an_image_unlike_the_training_images_is_unknown(
    finished: Path, run_data: Path, foreign: Path
) -> None:
    known = sorted(run_data.rglob("*.png"))
    (found,) = predict(finished, [foreign, *known], asked=Asked(coverage=0.8))
    assert found.judgements is not None
    first, *others = found.judgements
    assert first.unknown
    assert first.score > max(j.score for j in others)
    assert np.mean([j.unknown for j in others]) < 0.1
    for (_, ranked), judgement in zip(found.rows, found.judgements, strict=True):
        names = [name for name, _ in ranked]
        assert judgement.prediction_set
        assert list(judgement.prediction_set) == names[: len(judgement.prediction_set)]


def test_more_false_alarms_make_more_images_unknown(finished: Path, run_data: Path) -> None:
    counts = []
    for rate in (0.05, 0.3, 0.8):
        (found,) = predict(finished, [run_data], asked=Asked(rate))
        counts.append(sum(j.unknown for j in found.judgements or ()))
    assert counts[0] < counts[1] < counts[2]


def test_too_many_unknown_images_are_said_to_come_from_elsewhere(
    finished: Path, run_data: Path, foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_module, "CHUNK", 7)
    elsewhere, like_train = UnknownCount(), UnknownCount()
    for batch in predict(finished, 30 * [foreign]):
        elsewhere.add(batch)
    for batch in predict(finished, [run_data]):
        like_train.add(batch)
    assert (elsewhere.n_images, elsewhere.n_unknown) == (30, 30)
    assert elsewhere.warning is not None
    assert elsewhere.warning.startswith("30 of 30 images are unknown (100%).")
    assert like_train.warning is None
    assert like_train.chance is not None
    assert like_train.chance > 0.05


def test_one_unknown_image_may_be_chance(finished: Path, foreign: Path) -> None:
    count = UnknownCount()
    for batch in predict(finished, [foreign]):
        count.add(batch)
    assert count.n_unknown == 1
    assert count.warning is None


def test_the_command_warns_of_images_from_elsewhere(
    finished: Path, run_data: Path, foreign: Path
) -> None:
    printed = _tl_auto("predict", finished, *30 * [foreign], "--json")
    found = json.loads(printed.stdout)["unknown_images"]
    assert (found["n_images"], found["n_unknown"], found["stated"]) == (30, 30, 0.05)
    assert found["chance"] < 0.001
    assert found["warning"] in " ".join(printed.stderr.split())
    assert "also among those" not in _tl_auto("predict", finished, run_data, "--csv").stderr


def test_what_a_classifier_without_reliability_is_asked_is_refused(
    saved: Path, make_folder: Callable[..., Path]
) -> None:
    (found,) = predict(saved, [make_folder("data", 1)])
    assert found.judgements is None
    with pytest.raises(TransferError, match="cannot tell unknown images"):
        list(predict(saved, ["x.png"], asked=Asked(coverage=0.9)))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked(0.001), "needs at least 999 held-out images"),
        (Asked(0.0), "above 0 and below 1, got 0"),
        (Asked(coverage=1.0), "coverage must be above 0 and below 1, got 1"),
    ],
)
def test_impossible_rates_are_refused_before_an_image_is_read(
    finished: Path, asked: Asked, said: str
) -> None:
    with pytest.raises(TransferError, match=said):
        list(predict(finished, ["no such file.png"], asked=asked))


def test_the_command_prints_unknown_images_and_sets(
    finished: Path, run_data: Path, foreign: Path, tmp_path: Path
) -> None:
    known = run_data / "class1/000.png"
    printed = _tl_auto("predict", finished, foreign, known, "--coverage", "0.9", "--json")
    first, second = json.loads(printed.stdout)["predictions"]
    assert (first["unknown"], second["unknown"]) == (True, False)
    assert first["unknown_score"] > second["unknown_score"]
    assert second["prediction_set"][0] == second["classes"][0]["class"]
    assert "Their coverage is not promised with fewer than 100." in " ".join(
        printed.stderr.split()
    )
    facts = json.loads(printed.stdout)["reliability"]
    assert facts["unknown"]["threshold"] < first["unknown_score"]
    assert facts["prediction_sets"]["promised"] is False

    table = _tl_auto("predict", finished, foreign, known, "--csv", "--coverage", "0.9").stdout
    header, *rows = csv.reader(table.splitlines())
    assert header == [
        "path", "class", "probability", "unknown", "unknown_score", "prediction_set",
    ]  # fmt: skip
    assert [row[3] for row in rows] == ["true", "false"]
    assert rows[1][5].split("|") == second["prediction_set"]

    shown = _tl_auto("predict", finished, foreign, known).stdout
    assert [line.endswith("unknown") for line in shown.splitlines()] == [True, True, False]
    wrong = _tl_auto("predict", finished, known, "--false-alarms", "5", exits=2)
    assert "above 0 and below 1, got 5" in " ".join(wrong.stderr.split())


def test_a_terminal_shows_predictions_on_lines_of_their_own_with_whole_names(
    on_terminal: Callable[..., str], finished: Path, run_data: Path, tmp_path: Path
) -> None:
    classifier = ImageClassifier.load(finished / "classifier")
    names = tuple(f"a-long-name-of-class-{c}" for c in range(len(classifier.classes)))
    replace(classifier, classes=names).save(tmp_path / "long")
    images = sorted((run_data / "class1").glob("*.png"))[:2]
    shown = on_terminal("predict", tmp_path / "long", *images, "--coverage", "0.5", progress=True)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).splitlines()
    assert any(line.startswith("image ") for line in lines), lines  # not behind the bar
    assert sum(any(name in line for name in names) for line in lines) >= len(images)
    assert "…" not in shown


def test_with_enough_images_sets_are_said_to_cover_at_least_what_is_asked(
    finished: Path, run_data: Path, tmp_path: Path
) -> None:
    classifier = ImageClassifier.load(finished / "classifier")
    known = classifier.reliability
    assert known is not None
    more = replace(
        known,
        unknown=np.repeat(known.unknown, ENOUGH_IMAGES),
        nonconformity=np.repeat(known.nonconformity, ENOUGH_IMAGES),
    )
    replace(classifier, reliability=more).save(tmp_path / "more")
    image = run_data / "class1/000.png"
    said = " ".join(
        _tl_auto("predict", tmp_path / "more", image, "--coverage", "0.9").stderr.split()
    )
    assert "in at least 90% of cases" in said
    assert "not promised" not in said
    assert "at least" not in _tl_auto("predict", tmp_path / "more", image).stderr


def test_a_classifier_of_an_older_release_predicts_as_before(
    saved: Path, make_folder: Callable[..., Path]
) -> None:
    image = next(make_folder("data", 1).rglob("*.png"))
    printed = _tl_auto("predict", saved, image, "--json")
    (row,) = json.loads(printed.stdout)["predictions"]
    assert row["unknown"] is None
    assert row["unknown_score"] is None
    assert json.loads(printed.stdout)["reliability"] is None
    assert json.loads(printed.stdout)["unknown_images"] is None
    assert "An older release made it" in json.loads(printed.stdout)["not_calibrated"]
    assert "cannot tell unknown images" in printed.stderr
    refused = _tl_auto("predict", saved, image, "--coverage", "0.9", exits=2)
    assert "cannot tell unknown images" in refused.stderr


def _tl_auto(*arguments: object, exits: int = 0) -> subprocess.CompletedProcess[str]:
    """Run ``tl-auto`` in a process of its own."""
    code = "from advisor.cli.app import tl_auto; tl_auto()"
    found = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
    )
    assert found.returncode == exits, found.stderr
    return found
