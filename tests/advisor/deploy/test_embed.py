"""Features of a dataset in a file."""

import csv
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from advisor.deploy import features
from advisor.deploy.embed import check_out, embed_dataset
from advisor.deploy.features import backbone_embedder, classifier_embedder
from advisor.deploy.predict import load_classifier
from strategies.core.context import RunContext
from strategies.core.errors import DataError, StorageError
from strategies.data.dataset import load_dataset
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier
from strategies.models.features import extract_features
from tests.advisor.deploy.conftest import TlAuto


def test_the_command_writes_the_backbones_features_with_labels_and_digests(
    tl_auto: TlAuto, make_folder: Callable[..., Path], tmp_path: Path, backbone: Backbone
) -> None:
    data, out = make_folder("data", 4), tmp_path / "x.parquet"
    (data / "class1" / "torn.png").write_bytes(b"no image")
    found = tl_auto("embed", data, "--out", out, "--input-px", 64)
    assert "12 images, 1,280 features" in found.stdout
    assert "torn.png" in found.stderr
    table = parquet.read_table(out)
    assert table.column_names == ["path", "label", "digest", "features"]
    assert str(table.schema.field("features").type) == "fixed_size_list<element: float>[1280]"
    dataset = load_dataset(data)
    images = {str(p.path): p for p in (*dataset.fit_split, *(dataset.test or ()))}
    assert sorted(images) == sorted(table["path"].to_pylist())
    for row in table.to_pylist():
        image = images[row["path"]]
        assert (row["label"], row["digest"]) == (dataset.classes[image.label], image.digest)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npz"])
def test_every_kind_of_file_holds_the_features_in_order(
    suffix: str,
    make_folder: Callable[..., Path],
    tmp_path: Path,
    backbone: Backbone,
    ctx: RunContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(features, "CHUNK", 5)  # several row groups
    data, out = tmp_path / "split", tmp_path / f"x{suffix}"
    for name, seed in (("train", 1), ("test", 2)):
        shutil.copytree(make_folder(name, 2, seed=seed), data / name)
    written = embed_dataset(data, out, backbone_embedder(backbone.name, 64, ctx), ctx)
    assert (written.n, written.columns) == (12, ("path", "label", "split", "digest"))
    if suffix == ".parquet":
        table = parquet.read_table(out).to_pydict()
    elif suffix == ".csv":
        with out.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        table = {name: [row[name] for row in rows] for name in written.columns}
        table["features"] = [[float(row[f"f{i}"]) for i in range(1280)] for row in rows]
    else:
        with np.load(out) as arrays:  # without pickles
            table = {name: arrays[name].tolist() for name in arrays}
    dataset = load_dataset(data)
    images = {str(p.path): p for p in (*dataset.fit_split, *(dataset.test or ()))}
    expected = extract_features([images[p] for p in table["path"]], backbone, ctx).pooled[-1]
    np.testing.assert_allclose(np.array(table["features"]), expected, rtol=1e-5, atol=1e-6)
    assert [Path(p).parent.parent.name for p in table["path"]] == table["split"]
    assert not list(tmp_path.glob("*.part"))


def test_a_folder_of_images_without_classes_has_no_labels(
    make_folder: Callable[..., Path], tmp_path: Path, finished: Path, ctx: RunContext
) -> None:
    folder = make_folder("data", 3) / "class1"
    (folder / "notes.txt").write_text("not an image", encoding="utf-8")
    embedder = classifier_embedder(load_classifier(finished, ctx.device), ctx)
    written = embed_dataset(folder, tmp_path / "x.npz", embedder, ctx)
    assert written.columns == ("path", "digest")
    classifier = ImageClassifier.load(finished / "classifier")
    with np.load(tmp_path / "x.npz") as arrays:
        scores = arrays["features"] @ classifier.network.head.weight.detach().numpy().T
        scores += classifier.network.head.bias.detach().numpy()
        found = classifier.predict_proba([Path(p) for p in arrays["path"]])
    np.testing.assert_array_equal(scores.argmax(axis=1), found.argmax(axis=1))
    assert [s.path.name for s in written.skipped] == ["notes.txt"]


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old.csv").write_text("mine", encoding="utf-8")
    for name, message in (
        ("old.csv", "already exists"),
        ("x.parqet", r"Did you mean '\.parquet'"),
        ("gone/x.csv", "there is no folder"),
    ):
        with pytest.raises(StorageError, match=message):
            check_out(tmp_path / name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(StorageError, match=r"pip install 'tl-advisor\[parquet\]'"):
        check_out(tmp_path / "x.parquet")


def test_a_folder_without_a_readable_image_leaves_no_file(
    tmp_path: Path, backbone: Backbone, ctx: RunContext
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no image")
    embedder = backbone_embedder(backbone.name, 64, ctx)
    with pytest.raises(DataError, match="no readable image"):
        embed_dataset(tmp_path / "bad", tmp_path / "x.csv", embedder, ctx)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["bad"]


def test_the_network_of_a_run_cannot_be_chosen(tl_auto: TlAuto, finished: Path) -> None:
    given = ["embed", finished, "--out", "x.csv", "--run", finished]
    for more in (["--backbone", "resnet18"], ["--input-px", 64]):
        said = " ".join(tl_auto(*given, *more, exits=2).stderr.split())
        assert f"--run and {more[0]} cannot be used together" in said
