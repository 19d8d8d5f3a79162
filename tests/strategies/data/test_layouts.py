import csv
import importlib.util
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from strategies.core.errors import DataError
from strategies.data.dataset import load_dataset
from strategies.data.decoding import UnreadableImage, read_image
from strategies.data.layouts import natural_key, split_of
from strategies.data.listing import list_data
from strategies.data.sampling import MIN_PER_CLASS, Listing, Reservoir


def paint(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    return path


def paint_tree(root: Path, *folders: str, n: int = 4) -> Path:
    for i, folder in enumerate(folders):
        for j in range(n):
            paint(root / folder / f"{j}.png", 1000 * i + j)
    return root


def listed(data: Path, **options: object) -> Listing:
    given = {"root": None, "limit": None, "seed": 0} | options
    return list_data(data, **given)  # type: ignore[arg-type]


def counts(data: Path) -> dict[str, dict[str, int]]:
    return {name: r.counts for name, r in listed(data).splits.items()}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("TRAIN_SET", "train"),
        ("trainset", "train"),
        ("train_images", "train"),
        ("train2017", "train"),
        ("valid", "val"),
        ("Validation", "val"),
        ("dev", "val"),
        ("testing", "test"),
        ("Test-set", "test"),
        ("cats", None),
        ("trainers", None),
        ("test tube", None),
        ("123", None),
    ],
)
def test_common_names_of_splits_are_recognised(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_classes_are_sorted_in_natural_order(tmp_path: Path) -> None:
    assert sorted(["10", "9", "1", "b2", "B10"], key=natural_key) == ["1", "9", "10", "b2", "B10"]
    dataset = load_dataset(paint_tree(tmp_path / "d", "10", "9", "2"))
    assert dataset.classes == ("2", "9", "10")


def test_images_may_be_at_any_depth_below_their_class_folder(tmp_path: Path) -> None:
    data = paint_tree(tmp_path / "d", "cat", "dog/2019/a/b", "dog/x.png")
    assert counts(data) == {"train": {"cat": 4, "dog": 8}}


def test_split_folders_are_never_classes(tmp_path: Path) -> None:
    data = paint_tree(tmp_path / "d", "Train/cat", "Train/dog", "TESTING/cat", "valid/dog")
    dataset = load_dataset(data)
    assert dataset.classes == ("cat", "dog")
    assert (len(dataset.train), len(dataset.val), len(dataset.test or ())) == (8, 4, 4)
    assert dataset.listed == {"train": (4, 4), "val": (0, 4), "test": (4, 0)}


@pytest.mark.parametrize(
    "folders",
    [
        ("train/cat", "train/dog", "cat"),
        ("test/cat", "test/dog"),
        ("train/cat", "valid/cat", "val/cat"),
        ("cat/train", "cat/test", "dog/train"),
        ("test", "control"),
    ],
)
def test_an_ambiguous_layout_is_refused_with_the_tree(
    tmp_path: Path, folders: tuple[str, ...]
) -> None:
    with pytest.raises(DataError, match="ambiguous") as caught:
        listed(paint_tree(tmp_path / "d", *folders))
    assert all(f"{folder.split('/')[0]}/" in str(caught.value) for folder in folders)


def test_a_folder_without_class_folders_is_refused(tmp_path: Path) -> None:
    paint(tmp_path / "d" / "a.png")
    with pytest.raises(DataError, match=r"(?s)no subfolders.*\(1 files\)"):
        listed(tmp_path / "d")


def test_single_outer_folders_are_skipped(tmp_path: Path) -> None:
    paint_tree(tmp_path / "d" / "inner" / "data", "cat", "dog")
    assert counts(tmp_path / "d") == {"train": {"cat": 4, "dog": 4}}


def test_circular_links_are_listed_once(tmp_path: Path) -> None:
    data = paint_tree(tmp_path / "d", "cat", "dog")
    (data / "cat" / "loop").symlink_to(data / "cat")
    (data / "dog" / "up").symlink_to(data)
    (data / "dog" / "self.png").symlink_to(data / "dog" / "self.png")
    found = listed(data)
    assert found.splits["train"].counts["cat"] == 4
    assert any("already listed" in s.reason for s in found.skipped)
    dataset = load_dataset(data, max_quarantine=1.0)
    assert any("symbolic links" in s.reason for s in dataset.skipped)


def test_linked_class_folders_are_followed(tmp_path: Path) -> None:
    paint_tree(tmp_path / "elsewhere", "cat", "dog")
    (tmp_path / "d").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "d" / name).symlink_to(tmp_path / "elsewhere" / name)
    assert counts(tmp_path / "d") == {"train": {"cat": 4, "dog": 4}}


def test_a_folder_that_cannot_be_listed_is_reported_as_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = paint_tree(tmp_path / "d", "cat", "dog", "dog/locked")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = listed(data)
    assert found.splits["train"].counts == {"cat": 4, "dog": 4}
    assert "Permission denied" in found.skipped[0].reason


def test_unusual_class_names_are_accepted(tmp_path: Path) -> None:
    names = ["new\nline", "quo\"te's", "emoji 🐈", os.fsdecode(b"in\xffvalid"), " "]
    data = paint_tree(tmp_path / "d", *names)
    dataset = load_dataset(data)
    assert dataset.n_classes == len(names)
    assert not dataset.skipped
    assert all(name.encode() for name in dataset.classes)
    assert "new\\nline" in dataset.classes


def test_files_that_are_not_images_are_reported_as_skipped_and_not_counted(tmp_path: Path) -> None:
    data = paint_tree(tmp_path / "d", "cat", "dog")
    (data / "cat" / "notes.txt").write_text("x")
    (data / "cat" / ".DS_Store").write_text("x")
    paint(data / "cat" / "no_suffix")
    (data / "stray.png").write_text("x")
    found = listed(data)
    assert found.splits["train"].counts == {"cat": 5, "dog": 4}
    reasons = [s.reason for s in found.skipped]
    assert reasons == [
        "1 files outside the class folders",
        "the suffix .txt is not an image format",
    ]


def test_names_that_differ_only_in_case_are_one_class_between_splits(tmp_path: Path) -> None:
    data = paint_tree(tmp_path / "d", "train/Cat", "train/dog", "test/cat", "test/dog")
    dataset = load_dataset(data)
    assert dataset.classes == ("Cat", "dog")
    assert len(dataset.test or ()) == 8
    assert dataset.similar_class_names == (("Cat", "cat"),)


def test_names_that_differ_only_in_unicode_form_are_reported(tmp_path: Path) -> None:
    dataset = load_dataset(paint_tree(tmp_path / "d", "caf\u00e9", "cafe\u0301", "tea"))
    assert dataset.n_classes == 3
    assert len(dataset.similar_class_names) == 1


def test_a_class_that_train_does_not_have_is_refused(tmp_path: Path) -> None:
    data = paint_tree(tmp_path / "d", "train/cat", "train/dog", "test/fox")
    with pytest.raises(DataError, match="fox is a class of test that train does not have"):
        listed(data)


def write_table(path: Path, rows: list[list[str]], mark: str = ",") -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=mark).writerows(rows)
    return path


@pytest.mark.parametrize(("suffix", "mark"), [(".csv", ","), (".csv", ";"), (".tsv", "\t")])
def test_a_manifest_gives_paths_labels_and_splits(tmp_path: Path, suffix: str, mark: str) -> None:
    rows = [["label", "File", "split"]]
    for i in range(12):
        paint(tmp_path / "images" / f"{i}, a.png", i)
        rows.append(
            ["cat" if i % 2 else "dog", f"images/{i}, a.png", "test" if i > 8 else "train"]
        )
    dataset = load_dataset(write_table(tmp_path / f"m{suffix}", rows, mark))
    assert dataset.classes == ("cat", "dog")
    assert len(dataset.test or ()) == 3
    assert not dataset.skipped


def test_images_of_one_group_of_a_manifest_stay_in_one_split(tmp_path: Path) -> None:
    rows = [["path", "label", "group"]]
    for i in range(60):
        paint(tmp_path / f"{i}.png", i)
        rows.append([f"{i}.png", str(i % 2), "" if i < 20 else f"g{i % 8}"])
    dataset = load_dataset(write_table(tmp_path / "m.csv", rows))
    group_of = {row[0]: row[2] for row in rows}
    places: dict[str, set[str]] = {}
    for name in ("train", "val", "test"):
        for image in getattr(dataset, name):
            places.setdefault(group_of[image.path.name], set()).add(name)
    assert places.pop("") == {"train", "val", "test"}
    assert len(places) == 8
    assert all(len(splits) == 1 for splits in places.values())
    assert "the manifest's group column" in dataset.split_source
    plain = load_dataset(tmp_path / "m.csv", group_by="none")
    assert len({p.group for p in plain.train + plain.val + (plain.test or ())}) == 60


def test_duplicates_are_marked_where_the_user_groups_them(tmp_path: Path) -> None:
    rows = [["path", "label", "group"]]
    for i in range(12):
        image = Image.open(paint(tmp_path / f"{i}.png", i))
        image.resize((64, 64)).save(tmp_path / f"copy of {i}.bmp")
        image.resize((64, 64)).save(tmp_path / f"{i}.png")
        rows += [[name, str(i % 2), f"g{i // 2}"] for name in (f"{i}.png", f"copy of {i}.bmp")]
    table = write_table(tmp_path / "m.csv", rows)
    (tmp_path / "plain.csv").write_text("\n".join(",".join(row[:2]) for row in rows))
    by_name = load_dataset(tmp_path / "plain.csv", group_by=r"(\d+)\.")
    for grouped in (load_dataset(table), by_name):
        assert grouped.pairs
        assert all(pair.is_grouped for pair in grouped.pairs)
    for plain in (load_dataset(tmp_path / "plain.csv"), load_dataset(table, group_by="none")):
        assert plain.pairs
        assert not any(pair.is_grouped for pair in plain.pairs)


def test_paths_in_a_manifest_are_relative_to_root(tmp_path: Path) -> None:
    rows = [["path", "label"]]
    rows += [[paint(tmp_path / "far" / f"{i}.png", i).name, str(i % 2)] for i in range(12)]
    table = write_table(tmp_path / "m.csv", rows)
    assert len(load_dataset(table, root=tmp_path / "far").fit_split) == 10
    with pytest.raises(DataError, match="--max-quarantine"):
        load_dataset(table)
    with pytest.raises(DataError, match="only applies to a manifest"):
        load_dataset(paint_tree(tmp_path / "d", "a", "b"), root=tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["path", "klass"], ["a.png", "x"]], "no column label"),
        ([["path", "label"], ["a.png", ""]], "row 1: no label"),
        (
            [["path", "label", "split"], ["a.png", "x", "holdout"]],
            "none of train, validation, test",
        ),
        ([["path", "file", "filename", "label"]], "lists no image"),
        ([["file", "filename", "label"]], "several columns"),
        ([], "no column path"),
    ],
)
def test_an_incomplete_or_ambiguous_manifest_is_refused(
    tmp_path: Path, rows: list[list[str]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        listed(write_table(tmp_path / "m.csv", rows))


def test_a_manifest_of_test_images_alone_is_listed_but_is_no_dataset(tmp_path: Path) -> None:
    rows = [["path", "label", "split"], ["a.png", "x", "test"], ["b.png", "y", "test"]]
    manifest = write_table(tmp_path / "m.csv", rows)
    found = list_data(manifest, root=None, limit=None, seed=0)
    assert [label for _, label in found.files("test")] == ["x", "y"]
    with pytest.raises(DataError, match="no image for train"):
        load_dataset(manifest)


def test_a_parquet_manifest_is_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    paths = [str(paint(tmp_path / f"{i}.png", i)) for i in range(12)]
    table = pyarrow.table({"n": range(12), "path": paths, "label": [i % 3 for i in range(12)]})
    parquet.write_table(table, tmp_path / "m.parquet")
    dataset = load_dataset(tmp_path / "m.parquet")
    assert dataset.classes == ("0", "1", "2")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        listed(tmp_path / "bad.parquet")


def archive(root: Path, target: Path, mode: str = "w") -> Path:
    with tarfile.open(target, mode) as tar:  # type: ignore[call-overload]
        tar.add(root, arcname=root.name)
    return target


def test_an_archive_gives_the_same_dataset_as_its_folder(tmp_path: Path) -> None:
    data = paint_tree(tmp_path / "d", "train/cat", "train/dog", "test/cat", "test/dog")
    (data / "train" / "cat" / "torn.png").write_bytes(b"\x89PNG")
    expected = load_dataset(data, max_quarantine=0.2)
    dataset = load_dataset(archive(data, tmp_path / "d.tar"), max_quarantine=0.2)
    assert dataset.classes == expected.classes
    assert [p.digest for p in dataset.train] == [p.digest for p in expected.train]
    assert [p.digest for p in dataset.test or ()] == [p.digest for p in expected.test or ()]
    assert len(dataset.skipped) == 1
    assert np.array_equal(read_image(dataset.train[0].path), read_image(expected.train[0].path))


def test_an_archive_that_is_damaged_or_compressed_is_refused(tmp_path: Path) -> None:
    data = paint_tree(tmp_path / "d", "cat", "dog")
    whole = archive(data, tmp_path / "d.tar").read_bytes()
    (tmp_path / "z.tar").write_bytes(archive(data, tmp_path / "d.tgz", "w:gz").read_bytes())
    (tmp_path / "junk.tar").write_bytes(b"x" * 5000)
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 + 100])
    for name in ("z.tar", "junk.tar", "cut.tar"):
        with pytest.raises(DataError, match="uncompressed tar archive"):
            listed(tmp_path / name)
    with pytest.raises(DataError, match="not a supported file"):
        listed(tmp_path / "d.tgz")
    with pytest.raises(UnreadableImage, match="no member"):
        read_image(tmp_path / "d.tar" / "d" / "fox" / "1.png")


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        listed(tmp_path / "nothing")


def test_a_sample_is_bounded_and_stratified_and_independent_of_the_order() -> None:
    names = [("big", f"b{i}") for i in range(5000)] + [("small", f"s{i}") for i in range(30)]
    names += [("tiny", f"t{i}") for i in range(3)]
    forward, backward = Reservoir(200), Reservoir(200)
    for label, name in names:
        forward.add(name, label, name)
    for label, name in reversed(names):
        backward.add(name, label, name)
    chosen = forward.chosen()
    assert chosen == backward.chosen()
    assert len(chosen) == 200
    labels = [label for _, label in chosen]
    assert labels.count("tiny") == 3
    assert labels.count("small") >= MIN_PER_CLASS
    assert forward.counts == {"big": 5000, "small": 30, "tiny": 3}
    assert Reservoir(200, seed=1).chosen() == []


def test_a_sampled_dataset_keeps_exact_counts(tmp_path: Path) -> None:
    data = paint_tree(tmp_path / "d", "cat", "dog", n=40)
    dataset = load_dataset(data, max_images=30)
    assert dataset.is_sampled
    assert dataset.n_by_class == (40, 40)
    assert len(dataset.fit_split) + len(dataset.test or ()) == 30
    assert not load_dataset(data).is_sampled
    assert len(load_dataset(data, max_images=None).fit_split) == 64


@pytest.mark.skipif(not importlib.util.find_spec("datasets"), reason="needs datasets")
@pytest.mark.filterwarnings("ignore")
def test_hugging_face_image_and_parquet_folders_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache"))
    folder = paint_tree(tmp_path / "images", "train/cat", "train/dog", "test/cat", "test/dog")
    dataset = load_dataset(Path(f"hfds/{folder}"))
    assert dataset.classes == ("cat", "dog")
    assert (len(dataset.fit_split), len(dataset.test or ())) == (8, 4 + 4)
    val = paint_tree(tmp_path / "val", "cat", "dog")
    assert {p.path for p in load_dataset(Path(f"hfds/{folder}"), val=val).val} == set(
        val.rglob("*.png")
    )

    images = [(folder / p).read_bytes() for p in sorted(folder.rglob("*.png"))]
    features = datasets.Features(
        {"picture": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = {
        "picture": [{"bytes": b, "path": None} for b in images],
        "label": [i % 2 for i in range(len(images))],
    }
    (tmp_path / "table").mkdir()
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "table" / "train.parquet")
    dataset = load_dataset(Path(f"hfds/{tmp_path / 'table'}"))
    assert dataset.classes == ("no", "yes")
    assert not dataset.skipped
    assert dataset.train[0].path.is_relative_to(tmp_path / "cache")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be loaded"):
        load_dataset(Path(f"hfds/{tmp_path / 'empty'}"))


def test_an_icon_is_listed_by_its_suffix(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "ICO")
    data = paint_tree(tmp_path / "d", "cat", "dog")
    (data / "cat" / "x.ICO").write_bytes(stream.getvalue())
    assert counts(data)["train"]["cat"] == 5
