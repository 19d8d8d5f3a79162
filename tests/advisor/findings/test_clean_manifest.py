"""A clean manifest leaves out what the findings name, and nothing else."""

import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from advisor.findings.clean_manifest import (
    CleanManifest,
    check_manifest_path,
    clean_manifest,
    write_manifest,
)
from advisor.findings.data import check_data
from advisor.measure.probe_evidence import ProbeEvidence
from advisor.types.advice import AffectedImage, Finding
from strategies.core.errors import DataError, StorageError
from strategies.data.dataset import Dataset, load_dataset
from strategies.data.manifests import manifest_rows
from strategies.data.near_duplicates import find_matches
from tests.conftest import write_folder

Make = Callable[..., Path]


def cleaned(root: Path) -> CleanManifest:
    return clean_manifest(load_dataset(root), ())


def names(manifest: CleanManifest, split: str = "") -> set[str]:
    return {f"{r.path.parent.name}/{r.path.name}" for r in manifest.rows if r.split == split}


def all_images(root: Path) -> set[str]:
    return {f"{p.parent.name}/{p.name}" for p in root.rglob("*.*")}


def saved_again(source: Path, target: Path) -> None:
    """Save an image as a JPEG file: a near-duplicate."""
    Image.open(source).save(target, quality=90)


def test_a_clean_dataset_stays_whole_and_has_no_split_or_group(
    make_folder: Make, tmp_path: Path
) -> None:
    root = make_folder("d", 8)
    manifest = cleaned(root)
    assert names(manifest) == all_images(root)
    assert manifest.n == 24
    assert manifest.changes == {}
    write_manifest(manifest, tmp_path / "clean.csv")
    header = (tmp_path / "clean.csv").read_text().splitlines()[0]
    assert header == "path,label"


def test_of_exact_copies_one_is_kept(make_folder: Make) -> None:
    root = make_folder("d", 8)
    for name in ("copy1.png", "copy2.png"):
        shutil.copy(root / "class0/003.png", root / "class0" / name)
    manifest = cleaned(root)
    assert len(all_images(root) - names(manifest)) == 2
    assert len(names(manifest) & {"class0/003.png", "class0/copy1.png", "class0/copy2.png"}) == 1
    assert manifest.changes.keys() == {"TL002"}
    assert "2 images left out" in manifest.changes["TL002"]


def test_images_under_two_labels_are_left_out_with_all_their_copies(make_folder: Make) -> None:
    root = make_folder("d", 8)
    shutil.copy(root / "class0/003.png", root / "class1/contra.png")
    shutil.copy(root / "class0/003.png", root / "class0/copy.png")
    saved_again(root / "class2/005.png", root / "class1/nearly.jpg")
    manifest = cleaned(root)
    wrong = {"class0/003.png", "class1/contra.png", "class0/copy.png"}
    wrong |= {"class2/005.png", "class1/nearly.jpg"}
    assert all_images(root) - names(manifest) == wrong
    assert manifest.changes.keys() == {"TL003"}


def test_leaks_leave_train_and_validation_and_never_test(make_folder: Make) -> None:
    make_folder("d/train", 8)
    make_folder("d/val", 5, seed=1)
    root = make_folder("d/test", 5, seed=2).parent
    test = root / "test"
    shutil.copy(test / "class0/000.png", root / "train/class0/leak.png")
    shutil.copy(test / "class0/001.png", root / "val/class0/leak.png")
    saved_again(test / "class1/002.png", root / "train/class1/near.jpg")
    shutil.copy(root / "val/class1/003.png", root / "train/class1/of_val.png")
    shutil.copy(test / "class2/000.png", test / "class2/copy.png")
    manifest = cleaned(root)
    assert names(manifest, "test") == all_images(test)
    assert all_images(root / "val") - names(manifest, "val") == {"class0/leak.png"}
    out = {"class0/leak.png", "class1/near.jpg", "class1/of_val.png"}
    assert all_images(root / "train") - names(manifest, "train") == out
    assert manifest.changes.keys() == {"TL004"}
    assert "train 3, validation 1" in manifest.changes["TL004"]


def test_what_one_rule_leaves_out_does_not_count_for_the_next(make_folder: Make) -> None:
    make_folder("d/train", 8)
    root = make_folder("d/test", 5, seed=2).parent
    shutil.copy(root / "test/class0/000.png", root / "train/class0/leak.png")
    shutil.copy(root / "test/class0/000.png", root / "train/class1/leak.png")
    manifest = cleaned(root)
    assert manifest.changes.keys() == {"TL004"}
    assert len(manifest.rows) == manifest.n - 2


def test_near_duplicates_share_a_group_and_others_have_none(make_folder: Make) -> None:
    root = make_folder("d", 8)
    saved_again(root / "class0/003.png", root / "class0/near.jpg")
    manifest = cleaned(root)
    assert names(manifest) == all_images(root)
    groups = Counter(row.group for row in manifest.rows)
    assert groups.pop("") == manifest.n - 2
    assert list(groups.values()) == [2]
    assert {r.path.name for r in manifest.rows if r.group} == {"003.png", "near.jpg"}
    assert manifest.changes.keys() == {"TL005"}


@pytest.mark.parametrize("suspicious", ["keep", "drop", "relabel"])
def test_suspicious_labels_are_changed_only_on_request(suspicious: str, make_folder: Make) -> None:
    root = make_folder("d", 8)
    dataset = load_dataset(root)
    path = dataset.train[0].path
    label = dataset.classes[dataset.train[0].label]
    other = next(name for name in dataset.classes if name != label)
    image = AffectedImage(path, label=label, suggested_label=other, score=0.97)
    found = Finding("TL009", "issue", "", "", "", affected=(image,))
    manifest = clean_manifest(dataset, (found,), suspicious)  # type: ignore[arg-type]
    expected = {"keep": label, "drop": None, "relabel": other}[suspicious]
    labels = {row.path: row.label for row in manifest.rows}
    assert labels.get(path) == expected
    assert len(labels) == manifest.n - (suspicious == "drop")
    assert manifest.changes.keys() == {"TL009"}
    with pytest.raises(DataError, match="Did you mean 'relabel'"):
        clean_manifest(dataset, (), "relable")  # type: ignore[arg-type]


def test_a_sample_and_a_lost_class_are_refused(make_folder: Make) -> None:
    root = make_folder("d", 12)
    with pytest.raises(DataError, match="--max-images 0"):
        clean_manifest(load_dataset(root, max_images=15), ())
    for path in (root / "class0").iterdir():
        shutil.copy(path, root / "class1" / f"also-{path.name}")
    with pytest.raises(DataError, match="no image of class0 would be left"):
        cleaned(root)


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_manifest_is_read_back_without_the_findings(
    suffix: str, make_folder: Make, tmp_path: Path
) -> None:
    make_folder("d/train", 12)
    root = make_folder("d/test", 5, seed=2).parent
    shutil.copy(root / "train/class0/003.png", root / "train/class0/copy.png")
    shutil.copy(root / "train/class0/004.png", root / "train/class1/contra.png")
    shutil.copy(root / "test/class0/000.png", root / "train/class0/leak.png")
    saved_again(root / "train/class2/003.png", root / "train/class2/near.jpg")
    (root / "train/class0/torn.png").write_bytes(b"torn")
    dataset = load_dataset(root)
    planted = {"TL001", "TL002", "TL003", "TL004", "TL005"}
    assert planted <= codes(dataset)
    manifest = clean_manifest(dataset, ())
    assert manifest.changes.keys() == planted
    path = tmp_path / f"clean{suffix}"
    write_manifest(manifest, path)
    rows = list(manifest_rows(path))
    assert [(tmp_path / row.path, row.label, row.split, row.group) for row in rows] == [
        (row.path, row.label, row.split, row.group) for row in manifest.rows
    ]
    again = load_dataset(path)
    assert not planted & codes(again)
    assert again.classes == dataset.classes
    assert {p.digest for p in again.test or ()} == {p.digest for p in dataset.test or ()}
    assert clean_manifest(again, ()).changes.keys() == {"TL005"}


def codes(dataset: Dataset) -> set[str]:
    return {f.code for f in check_data(dataset, ProbeEvidence(64))}


def test_paths_are_absolute_outside_the_folder_of_the_manifest(
    make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder("d", 5)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    manifest = cleaned(Path("d"))
    write_manifest(manifest, Path("elsewhere/clean.csv"))
    write_manifest(manifest, Path("clean.csv"))
    outside, inside = (list(manifest_rows(Path(p))) for p in ("elsewhere/clean.csv", "clean.csv"))
    assert all(Path(row.path).is_absolute() for row in outside)
    assert inside[0].path == "d/class0/000.png"
    assert len(load_dataset(Path("elsewhere/clean.csv")).fit_split) > 5


def test_a_manifest_names_the_members_of_an_archive(make_folder: Make, tmp_path: Path) -> None:
    root = make_folder("d", 6)
    shutil.copy(root / "class0/003.png", root / "class0/copy.png")
    with tarfile.open(tmp_path / "d.tar", "w") as archive:
        archive.add(root, ".")
    write_manifest(cleaned(tmp_path / "d.tar"), tmp_path / "clean.csv")
    again = load_dataset(tmp_path / "clean.csv")
    assert len(again.fit_split + (again.test or ())) == 18
    assert not again.skipped


def test_a_manifest_overwrites_nothing_and_needs_a_known_suffix(
    make_folder: Make, tmp_path: Path
) -> None:
    manifest = cleaned(make_folder("d", 5))
    (tmp_path / "mine.csv").write_text("mine")
    for name, message in (
        ("mine.csv", "already exists"),
        ("clean.parquet", "no .csv or .tsv file"),
        ("none/clean.csv", "there is no folder"),
    ):
        with pytest.raises(StorageError, match=message):
            check_manifest_path(tmp_path / name)
        with pytest.raises(StorageError, match=message):
            write_manifest(manifest, tmp_path / name)
    assert (tmp_path / "mine.csv").read_text() == "mine"


def test_given_groups_are_kept(make_folder: Make) -> None:
    root = make_folder("d", 6)
    dataset = load_dataset(root, group_by=r"00([01])")
    manifest = clean_manifest(dataset, ())
    groups = Counter(row.group for row in manifest.rows if row.group)
    assert sorted(groups.values()) == [6 - 3, 3]


def test_matches_are_found_among_what_is_left_only_within_groups(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "d", 10)
    for i in range(3):
        saved_again(root / f"class0/00{i}.png", root / f"class0/near{i}.jpg")
    dataset = load_dataset(root)
    write_manifest(clean_manifest(dataset, ()), tmp_path / "clean.csv")
    again = load_dataset(tmp_path / "clean.csv")
    images = again.train + again.val + (again.test or ())
    matches = find_matches(images)
    assert len(matches) == 3
    split_of = {id(p): n for n in ("train", "val", "test") for p in getattr(again, n)}
    for match in matches:
        assert split_of[id(images[match.first])] == split_of[id(images[match.second])]
    assert all(pair.is_grouped for pair in again.pairs)
    ungrouped = replace(again, pairs=tuple(replace(p, is_grouped=False) for p in again.pairs))
    assert "TL005" in codes(ungrouped)
