import hashlib
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from strategies.core.errors import DataError
from strategies.core.folds import fold_numbers
from strategies.data import dataset as dataset_module
from strategies.data.dataset import Dataset, extend, labels_of, load_dataset, read_rest
from strategies.data.image import LabelledImage, groups_of, shown
from strategies.data.sampling import stratified_rows
from strategies.data.splitting import add_missing_splits, assign_groups, split_off

Make = Callable[..., Path]


def images(labels: list[int], groups: list[int] | None = None) -> tuple[LabelledImage, ...]:
    numbers = groups or [-1] * len(labels)
    return tuple(
        LabelledImage(Path(f"{i}.png"), label, str(i), 8, 8, group)
        for i, (label, group) in enumerate(zip(labels, numbers, strict=True))
    )


def all_of(dataset: Dataset) -> tuple[LabelledImage, ...]:
    return dataset.fit_split + (dataset.test or ())


def tree_digest(root: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        total.update(str(path).encode() + str(path.lstat().st_mtime_ns).encode())
        if path.is_file():
            total.update(path.read_bytes())
    return total.hexdigest()


def test_every_image_is_in_exactly_one_split_and_no_file_is_changed(make_folder: Make) -> None:
    root = make_folder("d", 20)
    before = tree_digest(root)
    dataset = load_dataset(root)
    assert tree_digest(root) == before
    assert len({p.path for p in all_of(dataset)}) == len(all_of(dataset)) == 60
    for split, n in ((dataset.train, 39), (dataset.val, 9), (dataset.test or (), 12)):
        assert np.bincount(labels_of(split)).tolist() == [n // 3] * 3
    assert "12 test" in dataset.split_source


def test_without_a_held_out_test_all_images_are_learnt_from(make_folder: Make) -> None:
    dataset = load_dataset(make_folder("d", 20), hold_out_test=False)
    assert dataset.test is None
    assert len(dataset.fit_split) == 60
    assert np.bincount(labels_of(dataset.val)).tolist() == [4] * 3
    assert "; validation split off at random" in dataset.split_source
    assert "48 train, 12 val, 0 test" in dataset.split_source


def test_test_images_in_the_data_stay_where_none_is_held_out(make_folder: Make) -> None:
    root = make_folder("both/train", 10).parent
    make_folder("both/test", 4, seed=1)
    dataset = load_dataset(root, hold_out_test=False)
    assert len(dataset.test or ()) == 12


def test_the_rest_of_the_images_gives_none_to_test_where_none_is_held_out(
    make_folder: Make,
) -> None:
    root = make_folder("d", 30)
    sample = load_dataset(root, max_images=45, keep_rest=True, hold_out_test=False)
    images, _ = read_rest(sample, sample.remainder.counts, 1)
    whole = extend(sample, images)
    assert whole.test is None
    assert len(whole.fit_split) == 90
    assert np.bincount(labels_of(whole.val)).tolist() == pytest.approx([6] * 3, abs=1)
    assert {p.path for p in sample.val} <= {p.path for p in whole.val}


def test_the_split_is_determined_by_the_seed(make_folder: Make) -> None:
    root = make_folder("d", 20)
    assert load_dataset(root).test == load_dataset(root).test
    assert load_dataset(root).test != load_dataset(root, seed=1).test


def test_copies_are_always_in_the_same_split(make_folder: Make) -> None:
    root = make_folder("d", 20)
    for i in range(20):
        source = root / "class0" / f"{i:03d}.png"
        shutil.copy(source, root / "class0" / f"copy{i}.png")
        Image.open(source).save(root / "class0" / f"again{i}.jpg", quality=95)
    for seed in range(3):
        dataset = load_dataset(root, seed=seed, group_by="none")
        side = {p.path: n for n in ("train", "val", "test") for p in getattr(dataset, n)}
        assert sum(p.exact for p in dataset.pairs) == 20
        assert all(side[p.first.path] == side[p.second.path] for p in dataset.pairs)
        assert dataset.leaks == ()
        folds = fold_numbers(labels_of(dataset.fit_split), 0, groups=groups_of(dataset.fit_split))
        fold = {p.path: k for p, k in zip(dataset.fit_split, folds, strict=True)}
        within = [p for p in dataset.pairs if side[p.first.path] != "test"]
        assert all(fold[p.first.path] == fold[p.second.path] for p in within)


def test_crops_and_mirror_images_are_in_the_split_of_their_photograph(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(40):
        small = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        photograph = small.resize((128, 128), Image.Resampling.BICUBIC)
        folder = tmp_path / "d" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        photograph.save(folder / f"{i}.png")
        if i < 20:
            altered = photograph.crop((6, 4, 122, 120)) if i < 10 else ImageOps.mirror(photograph)
            altered.save(folder / f"{i}-copy.jpg", quality=90)
    for seed in range(3):
        dataset = load_dataset(tmp_path / "d", seed=seed, group_by="none")
        assert len(dataset.pairs) == 20
        assert sum(p.mirrored for p in dataset.pairs) == 10
        side = {p.path: n for n in ("train", "val", "test") for p in getattr(dataset, n)}
        assert all(side[p.first.path] == side[p.second.path] for p in dataset.pairs)


def test_a_regular_expression_keeps_patients_together(make_folder: Make) -> None:
    root = make_folder("d", 24)
    for path in list(root.rglob("*.png")):
        path.rename(path.with_name(f"patient{int(path.stem) % 8}-{path.stem}.png"))
    dataset = load_dataset(root, group_by=r"patient(\d+)")
    sides = [
        {p.path.name[:8] for p in split}
        for split in (dataset.train, dataset.val, dataset.test or ())
    ]
    assert all(sides)
    assert sum(map(len, sides)) == len(set.union(*sides))
    assert "--group-by" in dataset.split_source
    with pytest.raises(DataError, match="matches none of the 72 paths"):
        load_dataset(root, group_by="nurse")
    with pytest.raises(DataError, match="is not a valid regular expression"):
        load_dataset(root, group_by="(")


def series_folder(root: Path, *, alike: bool) -> Path:
    """Write 12 series of 4 frames per class; if `alike`, frames of one series are similar."""
    rng = np.random.default_rng(0)
    for label in range(2):
        (root / f"class{label}").mkdir(parents=True)
        for number in range(12):
            base = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            for frame in range(4):
                if not alike:
                    base = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                big = np.asarray(Image.fromarray(base).resize((72, 72), Image.Resampling.BICUBIC))
                noisy = (big + rng.normal(0, 25, big.shape)).clip(0, 255).astype(np.uint8)
                Image.fromarray(noisy).save(root / f"class{label}" / f"{number:03d}_{frame}.png")
    return root


def test_series_in_file_names_are_kept_together_if_their_images_are_similar(
    tmp_path: Path,
) -> None:
    dataset = load_dataset(series_folder(tmp_path / "alike", alike=True))
    assert "file names up to the last number" in dataset.split_source
    side = {p.path: n for n in ("train", "val", "test") for p in getattr(dataset, n)}
    series: dict[str, set[str]] = {}
    for path, name in side.items():
        series.setdefault(f"{path.parent.name}/{path.stem[:3]}", set()).add(name)
    assert all(len(sides) == 1 for sides in series.values())
    dataset = load_dataset(series_folder(tmp_path / "unlike", alike=False))
    assert "file names" not in dataset.split_source


def test_given_splits_are_kept(make_folder: Make) -> None:
    make_folder("d/train", 10)
    make_folder("d/test", 4, seed=1)
    dataset = load_dataset(make_folder("d/val", 3, seed=2).parent)
    assert [len(dataset.train), len(dataset.val), len(dataset.test or ())] == [30, 9, 12]
    assert "at random" not in dataset.split_source


def test_splits_can_be_given_as_separate_folders(make_folder: Make) -> None:
    root, test = make_folder("d", 10), make_folder("t/wrapped", 4, seed=1).parent
    dataset = load_dataset(root, test=test)
    assert len(dataset.test or ()) == 12
    assert "test from --test" in dataset.split_source
    with pytest.raises(DataError, match="does not exist"):
        load_dataset(root, val=root / "nothing")
    make_folder("both/train", 4)
    make_folder("both/test", 4)
    with pytest.raises(DataError, match="already has a test split"):
        load_dataset(root.parent / "both", test=test)


def test_leaks_between_given_splits_are_counted_and_kept_by_hide_test(make_folder: Make) -> None:
    make_folder("d/train", 10)
    root = make_folder("d/test", 5, seed=1).parent
    shutil.copy(root / "test/class0/001.png", root / "train/class0/leak.png")
    dataset = load_dataset(root)
    assert [(k.n, k.n_exact, k.n_near) for k in dataset.leaks] == [(15, 1, 0)]
    hidden = dataset.hide_test()
    assert hidden.test is None
    assert hidden.n_hidden == 15
    assert hidden.leaks == dataset.leaks
    assert hidden.pairs == ()
    assert dataset.with_val_in_train().train == dataset.fit_split


def test_small_classes_give_images_to_test_first_and_then_to_validation(
    tmp_path: Path, make_folder: Make
) -> None:
    root = make_folder("d", 12)
    for label, n in enumerate((1, 2, 3)):
        for i in range(n, 12):
            (root / f"class{label}" / f"{i:03d}.png").unlink()
    make_folder("d", 4, n_classes=4, seed=9)
    for label, n in enumerate((1, 2, 3)):
        for path in sorted((root / f"class{label}").iterdir())[n:]:
            path.unlink()
    dataset = load_dataset(root)
    n_by_split = [
        np.bincount(labels_of(split), minlength=4).tolist()
        for split in (dataset.train, dataset.val, dataset.test or ())
    ]
    assert n_by_split == [[1, 1, 2, 2], [0, 0, 0, 1], [0, 1, 1, 1]]


def test_a_class_of_one_group_is_not_split() -> None:
    split = images([0] * 10 + [1] * 10, [7] * 10 + list(range(20, 30)))
    left, off = split_off(split, 2, 0.2, seed=0, smallest=2)
    assert np.bincount(labels_of(left)).tolist() == [10, 8]
    assert np.bincount(labels_of(off)).tolist() == [0, 2]
    assert split_off((), 2, 0.2, 0, 2) == ((), ())


def test_a_class_of_two_large_groups_gives_the_smaller_to_test() -> None:
    left, off = split_off(images([0] * 20, [1] * 12 + [2] * 8), 1, 0.2, seed=0, smallest=2)
    assert {p.group for p in off} == {2}
    assert {p.group for p in left} == {1}


def test_added_images_leave_nearly_all_others_in_their_splits() -> None:
    before = images([i % 4 for i in range(1000)], [i // 4 for i in range(1000)])
    added = tuple(
        LabelledImage(Path(f"new{i}.png"), i % 4, f"new{i}", 8, 8, 1000 + i) for i in range(100)
    )
    drawn = add_missing_splits({"train": before}, 4, seed=0)
    more = add_missing_splits({"train": added + before}, 4, seed=0)
    for name, split in drawn.items():
        stayed = {p.path for p in split} & {p.path for p in more[name]}
        assert len(stayed) >= 0.9 * len(split), name
    new_in_test = {p.path for p in added} & {p.path for p in more["test"]}
    assert 5 <= len(new_in_test) <= 40  # 20 expected


def test_a_sample_has_no_more_of_one_split_than_of_another() -> None:
    drawn = add_missing_splits({"train": images([0] * 2000)}, 1, seed=0)
    pool = drawn["train"] + drawn["val"]
    sampled = stratified_rows(pool, 400, 10, seed=0)
    share = np.mean([row >= len(drawn["train"]) for row in sampled])
    assert 0.13 < share < 0.27  # a fifth of the pool is validation


def test_many_groups_of_many_classes_need_little_memory() -> None:
    many = images([i % 10_000 for i in range(20_000)])
    tracemalloc.start()
    left, off = split_off(many, 10_000, 0.2, seed=0, smallest=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(left), len(off)) == (10_000, 10_000)
    assert peak < 50e6  # a table of groups and classes would take 1.6 GB


def test_large_groups_are_drawn_as_often_as_small_ones() -> None:
    groups = [0] * 10 + [1] * 10 + list(range(2, 82))
    split = images([0] * 100, groups)
    drawn = [
        {p.group for p in split_off(split, 1, 0.2, seed, smallest=2)[1]} for seed in range(200)
    ]
    share = np.mean([0 in groups for groups in drawn])
    assert 0.1 < share < 0.25  # a little less than 0.2: the last ones may be too large


def test_groups_that_span_classes_are_not_split() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 25, 200).tolist()
    split = images([i % 3 for i in range(200)], groups)
    left, off = split_off(split, 3, 0.2, seed=0, smallest=2)
    assert not {p.group for p in left} & {p.group for p in off}
    assert 0.1 < len(off) / 200 < 0.3


def test_folds_contain_whole_groups_and_are_balanced() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [100, 60, 20])
    groups = rng.integers(0, 60, 180)
    folds = fold_numbers(labels, 0, groups=groups)
    assert all(len(set(folds[groups == g])) == 1 for g in set(groups.tolist()))
    assert np.ptp(np.bincount(folds)) < 20
    alone = np.arange(180)
    assert np.array_equal(fold_numbers(labels, 0, groups=alone), fold_numbers(labels, 0))


def test_too_many_unreadable_images_stop_the_command(make_folder: Make) -> None:
    root = make_folder("d", 10)
    for i in range(4):
        (root / "class0" / f"{i:03d}.png").write_bytes(b"torn" * i)
    with pytest.raises(DataError, match=r"4 of the 30 images .* more than 10%") as caught:
        load_dataset(root)
    assert "1 x empty file" in str(caught.value)
    dataset = load_dataset(root, max_quarantine=0.2)
    assert len(dataset.skipped) == 4
    assert len(all_of(dataset)) == 26


def test_files_that_disappear_during_the_run_are_quarantined(
    make_folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder("d", 20)
    read = dataset_module.read_images

    def remove_one_and_read(files: list[tuple[Path, int]], *rest: Any) -> object:
        files[3][0].unlink()
        return read(files, *rest)

    monkeypatch.setattr(dataset_module, "read_images", remove_one_and_read)
    assert [s.reason for s in load_dataset(root).skipped] == ["No such file or directory"]


def test_a_class_without_a_readable_image_is_left_out(make_folder: Make) -> None:
    root = make_folder("d", 20)
    (root / "empty").mkdir()
    dataset = load_dataset(root)
    assert dataset.classes == ("class0", "class1", "class2")
    assert dataset.skipped[0].reason.startswith("a class without a readable image")


def test_one_class_is_refused(make_folder: Make) -> None:
    with pytest.raises(DataError, match=r"1 class\(es\); at least two"):
        load_dataset(make_folder("d", 5, n_classes=1))


@pytest.mark.parametrize(
    "options", [{"max_images": 0}, {"max_quarantine": 1.5}, {"max_quarantine": -0.1}]
)
def test_options_out_of_range_are_refused(make_folder: Make, options: dict[str, float]) -> None:
    with pytest.raises(DataError, match="must"):
        load_dataset(make_folder("d", 4), **options)  # type: ignore[arg-type]


def test_shown_returns_one_printable_line() -> None:
    assert shown("a\nb\udcff🐈") == "a\\nb\\udcff🐈"


def test_images_without_statistics_can_be_grouped() -> None:
    split, source = assign_groups(
        images([0, 0, 1, 1]), np.array([0, 0, 1, 2]), None, Path(), 0, n_train=4
    )
    assert groups_of(split).tolist() == [0, 0, 1, 2]
    assert source == "duplicates"
