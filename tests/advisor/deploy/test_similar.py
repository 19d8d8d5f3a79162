"""The most similar images of a collection."""

import csv
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from advisor.deploy import features
from advisor.deploy.features import classifier_embedder
from advisor.deploy.labelled import LabelledFile
from advisor.deploy.similar import find_similar, similar_images
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.run_dir.images import image_rows
from strategies.core.cache import Rows
from strategies.core.context import RunContext
from strategies.core.errors import DataError, StorageError
from strategies.data.dataset import Dataset
from strategies.models.classifier import ImageClassifier
from strategies.models.explain import nearest
from strategies.models.explain.nearest import descriptors
from tests.advisor.deploy.conftest import TlAuto, json_of


def test_the_command_lists_the_nearest_train_images(
    tl_auto: TlAuto, finished: Path, tmp_path: Path
) -> None:
    train = [r for r in image_rows(RunDir(finished)) if r.split == "train"]
    copy = tmp_path / "copy.png"
    shutil.copy(train[3].path, copy)
    record = json_of(tl_auto("similar", finished, copy, train[5].path, "-k", 4, "--json"))
    assert record["n_searched"] == len(train)
    first, second = record["similar"]
    assert first["neighbours"][0]["path"] == str(train[3].path)
    assert first["neighbours"][0]["similarity"] == pytest.approx(1, abs=1e-3)
    assert first["neighbours"][0]["class"] == train[3].label
    assert str(train[5].path) not in [n["path"] for n in second["neighbours"]]
    for row in record["similar"]:
        values = [n["similarity"] for n in row["neighbours"]]
        assert len(values) == 4
        assert values == sorted(values, reverse=True)


def test_another_folder_is_searched_and_printed_as_table_and_csv(
    tl_auto: TlAuto,
    on_terminal: Callable[..., str],
    finished: Path,
    run_data: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(run_data / "class1", folder / "deep")
    (folder / "torn.png").write_bytes(b"no image")
    query = run_data / "class1" / "000.png"
    asked = ["similar", finished, query, "--in", folder]
    found = tl_auto(*asked)
    assert max(map(len, on_terminal(*asked).splitlines())) <= 80
    assert "000.png" in found.stdout
    assert "torn.png" in found.stderr
    rows = list(csv.reader(io.StringIO(tl_auto(*asked, "--csv").stdout)))
    assert rows[0] == ["image", "rank", "path", "class", "similarity"]
    assert rows[1][:3] == [str(query), "1", str(folder / "deep" / "000.png")]
    assert len(rows) == 6
    assert "does not exist" in tl_auto("similar", finished, "gone.png", exits=2).stderr


def test_neighbours_are_those_of_all_pairs_however_the_images_are_chunked(
    finished: Path, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = ImageClassifier.load(finished / "classifier")
    searched = [LabelledFile(p.path, str(p.label), "") for p in small_dataset.train]
    given = [LabelledFile(p.path, "", "") for p in small_dataset.val]
    rows = classifier_embedder(classifier, ctx).rows
    whole = similar_images(classifier, given, searched, ctx, k=3, by="features")
    monkeypatch.setattr(features, "CHUNK", 7)
    chunked = similar_images(classifier, given, searched, ctx, k=3, by="features")

    x, y = rows(small_dataset.val), rows(small_dataset.train)
    lengths = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=1)
    cosines = x @ y.T / lengths
    for found in (whole, chunked):
        for row, (_, near) in zip(cosines, found.found, strict=True):
            best = np.sort(row)[::-1][:3]
            np.testing.assert_allclose([n.similarity for n in near], best, atol=1e-5)
            places = [[f.path for f in searched].index(n.path) for n in near]
            np.testing.assert_allclose(row[places], best, atol=1e-5)


def test_similarity_by_classifier_is_the_mean_of_cosine_and_agreement(
    finished: Path, small_dataset: Dataset, ctx: RunContext
) -> None:
    classifier = ImageClassifier.load(finished / "classifier")
    images = small_dataset.val
    rows = classifier_embedder(classifier, ctx).rows(images)
    one, both = (descriptors(rows, classifier, by) for by in ("features", "classifier"))
    roots = np.sqrt(classifier.predict_proba([p.path for p in images]))
    expected = (one @ one.T + roots @ roots.T) / 2
    np.testing.assert_allclose(both @ both.T, expected, atol=0.01)  # features are of float16
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), 1, atol=1e-5)


def test_features_are_cached_by_content_and_classifier(
    finished: Path, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = ImageClassifier.load(finished / "classifier")
    first = classifier_embedder(classifier, ctx).rows(small_dataset.val)
    paths: list[Path] = []

    def computed(network: object, given: list[Path], *_: object) -> Rows:
        paths.extend(given)
        return np.zeros((len(given), first.shape[1]), np.float32)

    monkeypatch.setattr(nearest, "outputs_of", computed)
    again = classifier_embedder(ImageClassifier.load(finished / "classifier"), ctx)
    np.testing.assert_array_equal(again.rows(small_dataset.val), first)
    assert paths == []
    with monkeypatch.context() as patch:
        patch.setattr(nearest, "weights_digest", lambda state: "another")
        other = classifier_embedder(classifier, ctx)
    assert not other.rows(small_dataset.val).any()  # nothing is cached for other weights
    assert len(paths) == len(small_dataset.val)


def test_a_missing_train_image_is_an_error_that_names_it(
    finished: Path, run_data: Path, tmp_path: Path, ctx: RunContext
) -> None:
    moved = tmp_path / "run"
    shutil.copytree(finished, moved)
    text = (moved / "images.csv").read_text(encoding="utf-8")
    (moved / "images.csv").write_text(text.replace("/data/class0", "/gone/class0"), "utf-8")
    with pytest.raises(DataError, match=r"cannot be read any more, e\.g\. .*/gone/class0"):
        find_similar(moved, [run_data / "class0" / "000.png"], ctx)
    with pytest.raises(StorageError, match=r"images\.csv does not exist"):
        find_similar(finished / "classifier", [run_data / "class0"], ctx)


def test_without_a_readable_query_there_is_an_error(
    finished: Path, tmp_path: Path, ctx: RunContext
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"None of the given files .*bad\.png"):
        find_similar(finished, [tmp_path / "bad.png"], ctx)
