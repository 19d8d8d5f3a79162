"""The images of a run: written when it is judged, and read as a manifest."""

from dataclasses import replace
from pathlib import Path

import pytest

from advisor.tune.run_dir.directory import RunDir
from advisor.tune.run_dir.images import IMAGES_FILE, image_rows, write_images
from strategies.core.errors import StorageError
from strategies.data.dataset import Dataset, load_dataset


def test_every_image_is_written_with_its_split_and_the_prediction_on_test(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    assert small_dataset.test
    first = small_dataset.test[0]
    write_images(RunDir(tmp_path), small_dataset, {first.path: ("class2", 0.75)})

    rows = list(image_rows(RunDir(tmp_path)))

    for name in ("train", "val", "test"):
        found = [(r.path, r.label, r.digest) for r in rows if r.split == name]
        images = getattr(small_dataset, name)
        assert found == [(p.path, small_dataset.classes[p.label], p.digest) for p in images]
    assert {r.path: r.predicted for r in rows if r.predicted} == {first.path: "class2"}


def test_the_file_is_a_manifest_with_the_same_splits(
    small_dataset: Dataset, tmp_path: Path
) -> None:
    write_images(RunDir(tmp_path), small_dataset, {})
    again = load_dataset(tmp_path / IMAGES_FILE)
    for name in ("train", "val", "test"):
        found = {(p.path, p.label, p.digest) for p in getattr(again, name)}
        assert found == {(p.path, p.label, p.digest) for p in getattr(small_dataset, name)}


def test_a_name_that_is_not_utf_8_keeps_its_bytes(small_dataset: Dataset, tmp_path: Path) -> None:
    odd = replace(small_dataset.train[0], path=Path("/data/a\udcff\n,b.png"))
    write_images(RunDir(tmp_path), replace(small_dataset, train=(odd,)), {})
    assert next(image_rows(RunDir(tmp_path))).path == odd.path


@pytest.mark.parametrize("text", [None, "path,label\na,b\n"])
def test_a_missing_or_damaged_file_is_a_storage_error(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / IMAGES_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(StorageError, match=IMAGES_FILE):
        list(image_rows(RunDir(tmp_path)))
