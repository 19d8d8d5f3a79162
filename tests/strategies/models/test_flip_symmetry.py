"""Flip symmetry: cosine of the differences between images and their horizontal flips."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime
from strategies.data.dataset import Dataset, LabelledImage
from strategies.models.backbone import Backbone
from strategies.models.flip_symmetry import (
    MAX_IMAGES,
    FlipAsymmetry,
    _sample_per_class,
    flip_asymmetry,
    measure_flip_asymmetry,
)

RNG = np.random.default_rng(0)


@pytest.fixture
def images(small_dataset: Dataset) -> tuple[LabelledImage, ...]:
    """Twelve images of three classes, each in a group of its own."""
    some = small_dataset.train[0]
    return tuple(replace(some, digest=f"{i:064x}", label=i % 3, group=-1) for i in range(12))


def _measured(
    images: tuple[LabelledImage, ...], effect: float, rng: np.random.Generator
) -> FlipAsymmetry:
    """Simulate activations at two depths: a flip moves each class by `effect` in a direction."""
    direction = rng.normal(size=(3, 20))[[p.label for p in images]]
    plain, flipped = [], []
    for _ in range(2):
        shared, own, other = rng.normal(size=(3, len(images), 20))
        plain.append((shared + own + effect * direction).astype(np.float32))
        flipped.append((shared + other - effect * direction).astype(np.float32))
    return flip_asymmetry(plain, flipped, images)


def test_without_asymmetry_the_cosine_is_noise_of_the_estimated_size(
    images: tuple[LabelledImage, ...],
) -> None:
    rng = np.random.default_rng(1)
    found = [_measured(images, 0.0, rng) for _ in range(400)]
    z_scores = np.array([f.cosine / f.sd for f in found])

    assert abs(z_scores.mean()) < 0.15
    assert z_scores.std() == pytest.approx(1, abs=0.15)
    assert np.mean(z_scores > 2) < 0.05


def test_asymmetry_is_detected_if_each_class_has_its_own_direction(
    images: tuple[LabelledImage, ...],
) -> None:
    rng = np.random.default_rng(2)
    weak, strong = (_measured(images, effect, rng) for effect in (0.5, 2.0))

    assert strong.cosine > weak.cosine > 0
    assert strong.cosine > 3 * strong.sd
    assert strong.cosine < 1


def test_swapping_images_and_flips_does_not_change_the_result(
    images: tuple[LabelledImage, ...],
) -> None:
    a, b = RNG.normal(size=(2, 12, 5)).astype(np.float32)

    assert flip_asymmetry([a], [b], images) == flip_asymmetry([b], [a], images)


def test_pairs_of_frames_of_one_track_are_not_used(
    images: tuple[LabelledImage, ...],
) -> None:
    tracks = tuple(replace(p, group=p.label) for p in images)
    a, b = RNG.normal(size=(2, 12, 5)).astype(np.float32)

    assert flip_asymmetry([a], [b], tracks) is None


def test_images_that_equal_their_flips_have_no_asymmetry(
    images: tuple[LabelledImage, ...],
) -> None:
    a = np.ones((12, 5), dtype=np.float32)

    assert flip_asymmetry([a], [a], images) == FlipAsymmetry(0.0, 0.0)


def test_the_sample_has_all_of_few_classes_and_some_of_many(
    images: tuple[LabelledImage, ...],
) -> None:
    def sampled(n_classes: int, n: int) -> np.ndarray:
        many = [
            replace(images[0], digest=f"{i:064x}", label=i % n_classes)
            for i in range(n_classes * n)
        ]
        return np.bincount([p.label for p in _sample_per_class(many, 0)], minlength=n_classes)

    assert sampled(2, 500).tolist() == [MAX_IMAGES // 2] * 2
    assert sampled(3, 4).tolist() == [4, 4, 4]
    many = sampled(1000, 20)
    assert many.sum() == MAX_IMAGES
    assert many.max() == 8


def _draw(path: Path, rng: np.random.Generator, *, left: bool) -> None:
    """Save an image of an arrow at a random position, pointing right or left."""
    image = Image.fromarray(rng.integers(90, 160, (48, 48, 3)).astype(np.uint8))
    x, y = rng.integers(6, 16, 2).tolist()
    ends = [(x, y), (x, y + 22), (x + 20, y + 11)]
    ImageDraw.Draw(image).polygon(ends, fill=(230, 40, 40))
    (image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if left else image).save(path)


def test_arrows_to_the_right_are_asymmetric_and_arrows_both_ways_are_not(
    tmp_path: Path, backbone: Backbone, ctx: RunContext, images: tuple[LabelledImage, ...]
) -> None:
    def found(*, right: bool) -> FlipAsymmetry:
        rng = np.random.default_rng(3)
        arrows = []
        for i in range(16):
            path = tmp_path / f"{right}{i}.png"
            _draw(path, rng, left=not right and i % 2 == 0)
            arrows.append(replace(images[0], path=path, digest=f"{right:d}{i:063x}"))
        return measure_flip_asymmetry(arrows, backbone, ctx)

    one_way, both_ways = found(right=True), found(right=False)
    assert one_way.cosine > 5 * one_way.sd
    assert both_ways.cosine < 2 * both_ways.sd


def test_a_passed_deadline_raises_out_of_time(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    late = ctx.with_deadline(0.0)
    with pytest.raises(OutOfTime):
        measure_flip_asymmetry(small_dataset.train, backbone, late)
