import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from strategies.core.cache import ArrayCache
from strategies.data import inspection
from strategies.data.dataset import load_dataset
from strategies.data.decoding import Decoded
from strategies.data.image import ImageStats
from tests.corpus import photo


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArrayCache:
    """Return a cache that also stores files written a moment ago."""
    monkeypatch.setattr(inspection, "SETTLED_S", 0.0)
    return ArrayCache(tmp_path / "cache")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list to which the path of every decoded file is added."""
    paths: list[Path] = []
    read_bytes = inspection.read_bytes

    def record(path: Path) -> bytes:
        paths.append(path)
        return read_bytes(path)

    monkeypatch.setattr(inspection, "read_bytes", record)
    return paths


def test_a_cached_dataset_is_equal_and_decodes_no_image(
    make_folder: Callable[..., Path], cache: ArrayCache, decoded: list[Path]
) -> None:
    data = make_folder("data", 6)
    first = load_dataset(data, cache=cache)
    decoded.clear()

    assert load_dataset(data, cache=cache) == first
    assert decoded == []
    assert load_dataset(data) == first


def test_a_changed_image_is_decoded_again_even_with_equal_size_and_mtime(
    make_folder: Callable[..., Path], cache: ArrayCache, decoded: list[Path]
) -> None:
    data = make_folder("data", 6)
    path = data / "class0" / "000.png"
    load_dataset(data, cache=cache)
    decoded.clear()
    before, status = path.read_bytes(), path.stat()
    other = (data / "class0" / "001.png").read_bytes()
    path.write_bytes(other[: len(before)].ljust(len(before), b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert path.stat().st_mtime_ns == status.st_mtime_ns

    load_dataset(data, cache=cache)

    assert decoded == [path]


def test_only_a_new_image_is_decoded(
    make_folder: Callable[..., Path], cache: ArrayCache, decoded: list[Path]
) -> None:
    data = make_folder("data", 6)
    load_dataset(data, cache=cache)
    decoded.clear()
    new = data / "class1" / "new.png"
    new.write_bytes((data / "class1" / "003.png").read_bytes())

    assert len(load_dataset(data, cache=cache).pairs) == 1
    assert decoded == [new]


def test_an_image_moved_to_another_class_gets_the_new_label(
    make_folder: Callable[..., Path], cache: ArrayCache
) -> None:
    data = make_folder("data", 6)
    load_dataset(data, cache=cache)
    (data / "class0" / "000.png").rename(data / "class1" / "moved.png")

    dataset = load_dataset(data, cache=cache)

    labels = {p.path.name: p.label for p in dataset.fit_split + (dataset.test or ())}
    assert labels["moved.png"] == 1


def test_an_unreadable_file_is_tried_again(
    make_folder: Callable[..., Path], cache: ArrayCache, decoded: list[Path]
) -> None:
    data = make_folder("data", 6)
    bad = data / "class0" / "bad.png"
    bad.write_bytes(b"no image")
    first = load_dataset(data, cache=cache)
    decoded.clear()

    assert load_dataset(data, cache=cache).skipped == first.skipped
    assert decoded == [bad]


def test_a_file_changed_a_moment_ago_has_no_signature(tmp_path: Path) -> None:
    path = tmp_path / "new.png"
    path.write_bytes(b"new")

    assert inspection.signature(path) is None
    assert inspection.signature(tmp_path) is None
    assert inspection.signature(tmp_path / "absent.png") is None


def measured(image: Image.Image) -> ImageStats:
    return inspection.measure_image(Decoded(image.convert("RGB"), "PNG", *image.size), 1)


def grey(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.astype(np.uint8))


def test_the_sharpness_of_a_checkerboard_follows_from_the_definition() -> None:
    board = grey(255 * (np.indices((40, 64)).sum(axis=0) % 2))
    assert measured(board).sharpness == pytest.approx(1020**2, rel=1e-3)
    ramp = grey(np.tile(np.arange(0, 200, 2), (60, 1)))
    assert measured(ramp).sharpness == 0


def test_sharpness_decreases_with_blur_and_ignores_brightness() -> None:
    image = photo(3, (300, 260))
    blurred = [image.filter(ImageFilter.GaussianBlur(radius)) for radius in (0, 1, 2, 4, 8)]
    values = [measured(i).sharpness for i in blurred]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.05 * values[0]
    dim = image.point(lambda level: level // 2 + 20)
    moved = image.point(lambda level: level // 2 + 60)
    assert measured(moved).sharpness == pytest.approx(measured(dim).sharpness, rel=0.02)


def test_an_enlarged_image_is_hardly_sharper_or_less_sharp_at_twice_the_scale() -> None:
    image = photo(4, (128, 128)).filter(ImageFilter.GaussianBlur(1))
    large = image.resize((512, 512), Image.Resampling.BICUBIC)
    assert measured(large).sharpness == pytest.approx(measured(image).sharpness, rel=0.3)


@pytest.mark.parametrize("size", [(1, 1), (900, 2), (2, 900), (5, 40)])
def test_images_too_small_for_a_laplacian_have_infinite_sharpness(size: tuple[int, int]) -> None:
    assert measured(photo(1, size)).sharpness == math.inf


def test_levels_follow_from_the_histogram() -> None:
    pixels = np.full((100, 100), 120)
    pixels[:1] = 10  # exactly 1%
    pixels[-40:] = 252
    stats = measured(grey(pixels))
    assert stats.shadows == 10
    assert stats.clipped_share == 0.4
    assert stats.highlights == 252
    assert stats.contrast == 242
    pixels[0, 0] = 120  # fewer than 1%
    assert measured(grey(pixels)).shadows == 120


def test_a_bright_image_of_one_colour_has_bright_highlights() -> None:
    assert measured(Image.new("RGB", (50, 50), (250, 0, 0))).highlights == 250


def test_an_infinite_sharpness_survives_the_cache(
    cache: ArrayCache, make_folder: Callable[..., Path]
) -> None:
    data = make_folder("data", 5)
    for i in range(5):
        photo(i, (60, 4)).save(data / "class0" / f"thin{i}.png")
    first = load_dataset(data, cache=cache)
    assert load_dataset(data, cache=cache) == first
    assert any(p.stats and p.stats.sharpness == math.inf for p in first.fit_split)
