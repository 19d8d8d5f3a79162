from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime
from strategies.data.dataset import Dataset, LabelledImage
from strategies.models.backbone import Backbone
from strategies.training import lp_ft as fine_tuning
from strategies.training.flip_symmetry import (
    MAX_IMAGES,
    FlipAsymmetry,
    flip_asymmetry,
    measure_flip_asymmetry,
)
from strategies.training.flip_symmetry import _some_of_each as some_of_each
from strategies.training.lp_ft import prepare

RNG = np.random.default_rng(0)


@pytest.fixture
def images(small_dataset: Dataset) -> tuple[LabelledImage, ...]:
    """Twelve images of three classes, each a group of its own."""
    some = small_dataset.train[0]
    return tuple(replace(some, digest=f"{i:064x}", label=i % 3, group=-1) for i in range(12))


def _told(
    images: tuple[LabelledImage, ...], side: float, rng: np.random.Generator
) -> FlipAsymmetry:
    """Pretend that every class leans to `side` in a direction of its own, at two depths."""
    direction = rng.normal(size=(3, 20))[[p.label for p in images]]
    plain, mirrored = [], []
    for _ in range(2):
        shared, own, other = rng.normal(size=(3, len(images), 20))
        plain.append((shared + own + side * direction).astype(np.float32))
        mirrored.append((shared + other - side * direction).astype(np.float32))
    return flip_asymmetry(plain, mirrored, images)


def test_without_sides_the_lean_is_chance_as_large_as_its_noise(
    images: tuple[LabelledImage, ...],
) -> None:
    rng = np.random.default_rng(1)
    found = [_told(images, 0.0, rng) for _ in range(400)]
    in_noises = np.array([f.cosine / f.noise for f in found])

    assert abs(in_noises.mean()) < 0.15
    assert in_noises.std() == pytest.approx(1, abs=0.15)
    assert np.mean(in_noises > 2) < 0.05


def test_classes_that_lean_each_its_own_way_are_seen(images: tuple[LabelledImage, ...]) -> None:
    rng = np.random.default_rng(2)
    weak, strong = (_told(images, side, rng) for side in (0.5, 2.0))

    assert strong.cosine > weak.cosine > 0
    assert strong.cosine > 3 * strong.noise
    assert strong.cosine < 1


def test_the_sides_of_a_image_and_its_mirror_image_do_not_matter(
    images: tuple[LabelledImage, ...],
) -> None:
    a, b = RNG.normal(size=(2, 12, 5)).astype(np.float32)

    assert flip_asymmetry([a], [b], images) == flip_asymmetry([b], [a], images)


def test_frames_of_one_track_say_no_more_than_one_of_them(
    images: tuple[LabelledImage, ...],
) -> None:
    tracks = tuple(replace(p, group=p.label) for p in images)
    a, b = RNG.normal(size=(2, 12, 5)).astype(np.float32)

    assert flip_asymmetry([a], [b], tracks) == FlipAsymmetry(0.0, np.inf)


def test_images_that_equal_their_mirror_images_have_no_sides(
    images: tuple[LabelledImage, ...],
) -> None:
    a = np.ones((12, 5), dtype=np.float32)

    assert flip_asymmetry([a], [a], images) == FlipAsymmetry(0.0, 0.0)


def test_few_images_of_all_classes_where_there_are_few_and_of_some_where_there_are_many(
    images: tuple[LabelledImage, ...],
) -> None:
    def drawn(n_classes: int, n: int) -> np.ndarray:
        many = [
            replace(images[0], digest=f"{i:064x}", label=i % n_classes)
            for i in range(n_classes * n)
        ]
        return np.bincount([p.label for p in some_of_each(many, 0)], minlength=n_classes)

    assert drawn(2, 500).tolist() == [MAX_IMAGES // 2] * 2
    assert drawn(3, 4).tolist() == [4, 4, 4]
    many = drawn(1000, 20)
    assert many.sum() == MAX_IMAGES
    assert many.max() == 8


def _draw(path: Path, rng: np.random.Generator, *, left: bool) -> None:
    """Draw an arrow somewhere, to the right or to the left."""
    image = Image.fromarray(rng.integers(90, 160, (48, 48, 3)).astype(np.uint8))
    x, y = rng.integers(6, 16, 2).tolist()
    ends = [(x, y), (x, y + 22), (x + 20, y + 11)]
    ImageDraw.Draw(image).polygon(ends, fill=(230, 40, 40))
    (image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if left else image).save(path)


def test_arrows_to_the_right_have_a_side_and_arrows_to_both_have_none(
    tmp_path: Path, backbone: Backbone, ctx: RunContext, images: tuple[LabelledImage, ...]
) -> None:
    def found(*, right: bool) -> FlipAsymmetry:
        rng = np.random.default_rng(3)
        drawn = []
        for i in range(16):
            path = tmp_path / f"{right}{i}.png"
            _draw(path, rng, left=not right and i % 2 == 0)
            drawn.append(replace(images[0], path=path, digest=f"{right:d}{i:063x}"))
        return measure_flip_asymmetry(drawn, backbone, ctx, any_size=True)

    sided, even = found(right=True), found(right=False)
    assert sided.cosine > 5 * sided.noise
    assert even.cosine < 2 * even.noise


def test_images_are_not_looked_at_for_sides_where_mirroring_is_settled(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = [prepare(small_dataset, backbone, ctx).defaults]

    def refuse(*args: object, **kwargs: object) -> FlipAsymmetry:
        raise AssertionError("a lean was measured")

    monkeypatch.setattr(fine_tuning, "measure_flip_asymmetry", refuse)
    settled = [prepare(small_dataset, backbone, ctx, hflip).defaults for hflip in (False, True)]

    assert [d.hflip for d in settled] == [False, True]
    assert {(d.lr, d.blend) for d in settled} == {(d.lr, d.blend) for d in measured}
    with pytest.raises(AssertionError, match="a lean was measured"):
        prepare(small_dataset, backbone, ctx)


def test_no_time_left_is_said(small_dataset: Dataset, backbone: Backbone, ctx: RunContext) -> None:
    late = replace(ctx, deadline_s=0.0)
    with pytest.raises(OutOfTime):
        measure_flip_asymmetry(small_dataset.train, backbone, late, any_size=True)
