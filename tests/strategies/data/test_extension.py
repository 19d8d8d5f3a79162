"""Adding to a dataset the images that a sample left out."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strategies.data import inspection, layouts
from strategies.data.dataset import Dataset, extend, labels_of, load_dataset, read_rest
from strategies.data.image import LabelledImage
from strategies.data.sampling import Reservoir
from strategies.data.splitting import follow_groups

Make = Callable[..., Path]
SPLITS = ("train", "val", "test")


def paths(split: tuple[LabelledImage, ...] | None) -> set[str]:
    return {str(p.path) for p in split or ()}


def splits_of(dataset: Dataset) -> dict[str, set[str]]:
    return {name: paths(getattr(dataset, name)) for name in SPLITS}


def sample_of(root: Path, most: int = 60, **given: Any) -> Dataset:
    return load_dataset(root, max_images=most, keep_rest=True, **given)


def extended(sample: Dataset) -> Dataset:
    images, _ = read_rest(sample, sample.remainder.counts, 1)
    return extend(sample, images)


def test_the_rest_of_a_sample_is_what_it_left_out_in_an_order_that_ignores_the_listing() -> None:
    names = [("big", f"b{i}") for i in range(500)] + [("small", f"s{i}") for i in range(30)]
    forward, backward = Reservoir(100, keep_rest=True), Reservoir(100, keep_rest=True)
    for label, name in names:
        forward.add(name, label, name)
    for label, name in reversed(names):
        backward.add(name, label, name)
    rest, chosen = forward.rest(), forward.chosen()
    assert rest == backward.rest()
    assert sorted(rest + chosen) == sorted((name, label) for label, name in names)
    share = [label for _, label in rest[:200]].count("small") / 200
    assert share == pytest.approx(20 / 430, abs=0.05)


def test_a_sample_keeps_the_rest_only_if_it_is_asked_to() -> None:
    for limit, keep_rest in ((None, True), (3, False), (9, True)):
        reservoir = Reservoir(limit, keep_rest=keep_rest)
        for i in range(9):
            reservoir.add(str(i), "a", str(i))
        assert reservoir.rest() == []


def test_all_images_are_in_one_split_and_those_of_the_sample_stay_where_they_are(
    make_folder: Make,
) -> None:
    root = make_folder("d", 80)
    sample = sample_of(root)
    whole = extended(sample)
    before, after = splits_of(sample), splits_of(whole)
    assert sum(map(len, before.values())) == 60
    assert Counter(name for names in after.values() for name in names).total() == 240
    assert set.union(*after.values()) == {str(p) for p in root.rglob("*.png")}
    for name in SPLITS:
        assert before[name] <= after[name]
        counts = np.bincount(labels_of(getattr(whole, name)), minlength=3)
        expected = {"train": 0.64, "val": 0.16, "test": 0.2}[name] * 80
        assert counts == pytest.approx([expected] * 3, abs=2)
    assert whole.classes == sample.classes
    assert not whole.remainder.counts
    assert all(image.stats is None for image in whole.fit_split)


def test_the_sample_is_the_same_whether_the_rest_is_kept_or_not(make_folder: Make) -> None:
    root = make_folder("d", 40)
    assert sample_of(root) == load_dataset(root, max_images=60)
    assert not load_dataset(root, max_images=60).remainder.counts
    assert not sample_of(root).hide_test().remainder.counts
    assert not sample_of(root, 500).remainder.counts


def test_a_part_of_the_rest_is_a_random_one_and_the_same_every_time(make_folder: Make) -> None:
    root = make_folder("d", 80)
    sample = sample_of(root)
    images, tried = read_rest(sample, {"train": 90}, 1)
    again, _ = read_rest(sample, {"train": 90}, 2)
    assert tried == {"train": 90}
    assert again == images
    counts = np.bincount(labels_of(images["train"]), minlength=3)
    assert counts.min() > 15
    assert len(extend(sample, images).fit_split) + 60 // 5 + 90 // 5 == pytest.approx(150, abs=3)


def test_reading_stops_when_it_must_and_test_comes_first(make_folder: Make) -> None:
    root = make_folder("d/train", 40).parent
    make_folder("d/test", 30, seed=1)
    sample = sample_of(root)
    answers = iter([False, True])
    images, tried = read_rest(sample, sample.remainder.counts, 1, must_stop=lambda: next(answers))
    assert tried == {"test": 30, "train": 0}
    assert len(images["test"]) == 30
    assert images["train"] == ()


def test_images_of_given_splits_stay_in_them(make_folder: Make) -> None:
    root = make_folder("d/train", 40).parent
    make_folder("d/test", 30, seed=1)
    sample = sample_of(root)
    whole = extended(sample)
    assert splits_of(whole)["test"] == {str(p) for p in (root / "test").rglob("*.png")}
    assert len(whole.train) + len(whole.val) == 120
    assert len(whole.val) == pytest.approx(24, abs=3)


def test_a_copy_of_a_sampled_image_follows_it(make_folder: Make) -> None:
    root = make_folder("d", 60)
    sample = sample_of(root)
    originals = {name: getattr(sample, name)[0] for name in SPLITS}
    for name, image in originals.items():
        for path in range(3):
            shutil.copy(image.path, image.path.with_name(f"copy-{name}-{path}.png"))
    again = sample_of(root)
    assert len(again.remainder.files["train"]) == 129
    whole = extended(again)
    found = splits_of(whole)
    sampled = splits_of(again)
    for name, image in originals.items():
        twins = {str(p) for p in image.path.parent.glob(f"copy-{name}-*.png")} | {str(image.path)}
        homes = [s for s in SPLITS if twins & found[s]]
        assert len(homes) == 1, "a group was divided"
        at_first = [s for s in SPLITS if twins & sampled[s]]
        assert not at_first or homes[0] in at_first


def test_a_group_in_several_splits_goes_to_train_if_one_of_it_is_there() -> None:
    def image(number: int, group: int) -> LabelledImage:
        return LabelledImage(Path(str(number)), 0, str(number), 8, 8, group)

    groups = [1, 2, 2, 3, 1, 3, 4]
    images = tuple(image(number, group) for number, group in enumerate(groups))
    splits, new = follow_groups(images, ["train", "val", "test", "test", "test"])
    assert [p.group for p in splits["train"]] == [1, 1]
    assert [p.group for p in splits["val"]] == [2, 2]
    assert [p.group for p in splits["test"]] == [3, 3]
    assert [p.group for p in new] == [4]


def test_no_file_is_listed_or_read_twice(
    make_folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder("d", 40)
    read, walk = inspection._read, layouts.walk
    reads: list[Path] = []
    walks: list[object] = []

    def counted(file: tuple[Path, int]) -> Any:
        reads.append(file[0])
        return read(file)

    def listed(folder: Path, *rest: Any) -> Any:
        walks.append(folder)
        return walk(folder, *rest)

    monkeypatch.setattr(inspection, "_read", counted)
    monkeypatch.setattr("strategies.data.listing.walk", listed)
    whole = extended(sample_of(root))
    assert len(whole.fit_split) + len(whole.test or ()) == 120
    assert sorted(reads) == sorted(root.rglob("*.png"))
    assert len(walks) == len(set(walks)) == 3


def test_unreadable_images_and_images_of_unknown_classes_are_left_out(make_folder: Make) -> None:
    root = make_folder("d", 40)
    sample = sample_of(root)
    name, _ = sample.remainder.files["train"][0]
    Path(name).write_bytes(b"torn")
    images, tried = read_rest(sample, sample.remainder.counts, 1)
    assert tried == {"train": 60}
    assert len(images["train"]) == 59
    assert name not in {str(p.path) for p in extend(sample, images).train}
    for path in (root / "class1").iterdir():
        path.write_bytes(b"torn")
    without = sample_of(root, max_quarantine=1.0)
    assert without.classes == ("class0", "class2")
    assert {label for _, label in without.remainder.files["train"]} == {0, 1}


def test_series_found_only_in_the_whole_leave_its_test_images_to_the_sample(
    make_folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder("d", 80)
    sample = sample_of(root)

    def found(images: Any, root: Path, seed: int) -> dict[str, list[str | None]]:
        return {"series": ["one" for _ in images]}

    monkeypatch.setattr("strategies.data.splitting._series", found)
    whole = extended(sample)
    assert splits_of(sample)["test"] <= splits_of(whole)["test"]
    assert len(whole.test or ()) == pytest.approx(48, abs=3)


def test_groups_of_a_manifest_hold_for_the_rest_of_its_images_too(
    make_folder: Make, tmp_path: Path
) -> None:
    root = make_folder("d", 40)
    lines = ["path,label,group"]
    lines += [
        f"{p},{p.parent.name},{p.parent.name}-{int(p.stem) // 4}" for p in root.rglob("*.png")
    ]
    manifest = tmp_path / "m.csv"
    manifest.write_text("\n".join(lines))
    whole = extended(sample_of(manifest))
    places: dict[str, set[str]] = {}
    for name, split in splits_of(whole).items():
        for path in map(Path, split):
            places.setdefault(f"{path.parent.name}-{int(path.stem) // 4}", set()).add(name)
    assert len(places) == 30
    assert all(len(splits) == 1 for splits in places.values())
