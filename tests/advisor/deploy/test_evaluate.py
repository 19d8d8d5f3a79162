"""Evaluation of a saved classifier on labelled images."""

import csv
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics

from advisor.deploy.evaluate import evaluate_dataset, evaluation_record
from advisor.deploy.evaluation_page import evaluation_page, remarks
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.run_dir.images import image_rows
from strategies.core.context import RunContext
from strategies.core.devices import predict_precision
from strategies.core.errors import DataError, StorageError
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier, make_network
from tests.advisor.deploy.conftest import TlAuto, json_of
from tests.conftest import write_folder


@pytest.fixture
def new_data(tmp_path: Path) -> Path:
    """Return class folders of images that the run has not seen, with some noise to confuse it."""
    data = write_folder(tmp_path / "new", 9, seed=77)
    rng = np.random.default_rng(0)
    for path in sorted(data.rglob("*.png"))[::4]:
        Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(path)
    return data


def test_the_command_gives_scikit_learns_scores_with_intervals(
    tl_auto: TlAuto, finished: Path, new_data: Path
) -> None:
    (new_data / "class0" / "torn.png").write_bytes(b"no image")
    record = json_of(tl_auto("evaluate", finished, new_data, "--json"))

    classifier = ImageClassifier.load(finished / "classifier")
    paths = sorted(p for p in new_data.rglob("*.png") if p.name != "torn.png")
    precision = predict_precision(torch.device("cpu"))
    found = classifier.predict_proba(paths, precision=precision)
    labels = np.array([classifier.classes.index(p.parent.name) for p in paths])
    guesses = found.argmax(axis=1)
    expected = {
        "accuracy": metrics.accuracy_score(labels, guesses),
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, guesses),
        "log_loss": metrics.log_loss(labels, found / found.sum(axis=1, keepdims=True)),
    }
    for name, value in expected.items():
        assert record[name]["mid"] == pytest.approx(value, abs=1e-4)
        assert record[name]["low"] < value < record[name]["high"]
    scores = metrics.precision_recall_fscore_support(labels, guesses, zero_division=np.nan)
    for row, precise, recall, f1, n in zip(record["per_class"], *scores, strict=True):
        assert row["n"] == n
        assert row["recall"]["mid"] == pytest.approx(recall)
        assert row["f1"]["mid"] == pytest.approx(f1)
        assert row["precision"]["mid"] == pytest.approx(precise)
    np.testing.assert_array_equal(record["confusion"], metrics.confusion_matrix(labels, guesses))
    assert record["split"] == "all"
    assert record["top_5"] is None
    assert record["seen_in_training"] == {"n_train": 0, "n_val": 0, "examples": []}
    assert [Path(s["path"]).name for s in record["quarantine"]] == ["torn.png"]
    assert 0 < expected["accuracy"] < 1  # else the comparison would say little


def test_the_report_fits_80_columns_and_the_page_is_written(
    on_terminal: Callable[..., str], finished: Path, new_data: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    printed = on_terminal("evaluate", finished, new_data, "--html", page)
    assert max(map(len, printed.splitlines())) <= 80
    for word in ("balanced accuracy", "log loss", "precision", "class2", "Reliability diagram"):
        assert word in printed
    text = page.read_text(encoding="utf-8")
    assert "Confusion matrix" in text
    assert "predicted as" in text


def test_the_test_split_is_the_default_where_there_is_one(
    finished: Path, new_data: Path, tmp_path: Path, ctx: RunContext
) -> None:
    split = tmp_path / "split"
    shutil.copytree(new_data, split / "train")
    write_folder(split / "test", 3, seed=8)
    assert evaluate_dataset(finished, split, ctx).scores.n == 9
    assert evaluate_dataset(finished, split, ctx).split == "test"
    assert evaluate_dataset(finished, split, ctx, split="train").scores.n == 27
    assert evaluate_dataset(finished, split, ctx, split="all").scores.n == 36
    with pytest.raises(DataError, match="has no val split: it has train, test"):
        evaluate_dataset(finished, split, ctx, split="val")
    with pytest.raises(DataError, match="it is not split"):
        evaluate_dataset(finished, new_data, ctx, split="test")


def test_manifests_and_archives_give_the_scores_of_the_folder(
    finished: Path, new_data: Path, tmp_path: Path, ctx: RunContext
) -> None:
    expected = evaluate_dataset(finished, new_data, ctx).scores.confusion
    manifest, archive = tmp_path / "images.csv", tmp_path / "images.tar"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        rows = [[p, p.parent.name, "test"] for p in sorted(new_data.rglob("*.png"))]
        csv.writer(file).writerows([["path", "label", "split"], *rows])  # there is no train
    with tarfile.open(archive, "w") as tar:
        tar.add(new_data, arcname=".")
    assert evaluate_dataset(finished, manifest, ctx).scores.confusion == expected
    assert evaluate_dataset(finished, manifest, ctx).split == "test"
    assert evaluate_dataset(finished, archive, ctx).scores.confusion == expected


def test_unknown_classes_are_named_and_can_be_left_out(
    tl_auto: TlAuto, finished: Path, new_data: Path, ctx: RunContext
) -> None:
    shutil.copytree(new_data / "class2", new_data / "clas2")
    said = " ".join(tl_auto("evaluate", finished, new_data, exits=2).stderr.split())
    assert "'clas2' (did you mean" in said
    assert "'class2'" in said
    assert "--ignore-unknown-classes" in said
    record = json_of(tl_auto("evaluate", finished, new_data, "--ignore-unknown-classes", "--json"))
    assert record["ignored_classes"] == {"clas2": 9}
    assert record["n"] == 27
    found = evaluate_dataset(finished, new_data, ctx, ignore_unknown=True)
    assert "Left out: 9 images of unknown classes: clas2 (9)." in remarks(found)


def test_a_dataset_without_a_known_class_cannot_be_evaluated(
    finished: Path, tmp_path: Path, ctx: RunContext
) -> None:
    write_folder(tmp_path / "other", 2, n_classes=1)
    (tmp_path / "other" / "class0").rename(tmp_path / "other" / "elephants")
    with pytest.raises(DataError, match="elephants"):
        evaluate_dataset(finished, tmp_path / "other", ctx, ignore_unknown=True)


def test_names_that_differ_in_case_are_matched_and_missing_classes_are_said(
    finished: Path, new_data: Path, ctx: RunContext
) -> None:
    shutil.rmtree(new_data / "class2")
    (new_data / "class1").rename(new_data / "CLASS1")
    found = evaluate_dataset(finished, new_data, ctx)
    assert found.renamed == (("CLASS1", "class1"),)
    assert found.missing == ("class2",)
    assert [c.n for c in found.per_class] == [9, 9, 0]
    assert found.per_class[2].recall is None
    assert found.per_class[2].f1 is None
    assert "No image of 1 of the classifier's classes: class2." in remarks(found)
    assert found.balanced_accuracy.mid == pytest.approx(
        np.mean([c.recall.mid for c in found.per_class[:2] if c.recall is not None])
    )


def test_images_that_the_run_was_made_from_are_counted(
    finished: Path, run_data: Path, new_data: Path, ctx: RunContext
) -> None:
    rows = list(image_rows(RunDir(finished)))
    of = {split: [r.path for r in rows if r.split == split] for split in ("train", "val")}
    shutil.copy(of["train"][0], new_data / "class0" / "seen.png")
    shutil.copy(of["val"][0], new_data / "class0" / "seen too.png")
    found = evaluate_dataset(finished, new_data, ctx)
    assert found.seen is not None
    assert (found.seen.n_train, found.seen.n_val) == (1, 1)
    assert remarks(found)[0].startswith("Byte-identical to 1 train images and 1 validation")
    everything = evaluate_dataset(finished, run_data, ctx).seen
    assert everything is not None
    assert (everything.n_train, everything.n_val) == (len(of["train"]), len(of["val"]))


def test_a_classifier_folder_without_its_run_can_be_evaluated(
    finished: Path, new_data: Path, ctx: RunContext
) -> None:
    found = evaluate_dataset(finished / "classifier", new_data, ctx)
    assert found.seen is None
    assert found.run_accuracy is None
    assert found.scores == evaluate_dataset(finished, new_data, ctx).scores
    assert evaluate_dataset(finished, new_data, ctx).run_accuracy is not None
    with pytest.raises(StorageError, match="no readable classifier"):
        evaluate_dataset(new_data, new_data, ctx)


def test_many_classes_have_top_5_and_names_cannot_break_the_page(
    backbone: Backbone, tmp_path: Path, ctx: RunContext, make_folder: Callable[..., Path]
) -> None:
    data = make_folder("many", 2, 12)
    (data / "class3").rename(data / "<script>alert(1)<")
    classes = tuple(sorted(p.name for p in data.iterdir()))
    network = make_network(backbone, (backbone.n_depths,), 12).eval()
    ImageClassifier(classes, backbone, (backbone.n_depths,), network, "a", {}).save(tmp_path / "c")
    found = evaluate_dataset(tmp_path / "c", data, ctx)
    assert found.scores.top_5 is not None
    assert found.scores.top_5.mid >= found.scores.accuracy.mid
    text = evaluation_page(found)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;" in text
    assert evaluation_record(found)["top_5"].keys() == {"low", "mid", "high"}


def test_a_folder_without_a_readable_image_is_an_error(
    finished: Path, tmp_path: Path, ctx: RunContext
) -> None:
    (tmp_path / "bad" / "class0").mkdir(parents=True)
    (tmp_path / "bad" / "class0" / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="no readable image"):
        evaluate_dataset(finished, tmp_path / "bad", ctx)
