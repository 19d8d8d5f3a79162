import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from strategies.core.errors import BackboneError
from strategies.data import decoding
from strategies.data.decoding import (
    DRAFT_SIDE_PX,
    UnreadableImage,
    decode,
    decode_image,
    known_suffixes,
    read_image,
)
from strategies.data.transforms import (
    CropMode,
    EvaluationCrop,
    centre_box,
    crop_mode_of,
    random_box,
    resize_box,
)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(
        mode
    )


def decoded_grey(values: np.ndarray) -> np.ndarray:
    return np.asarray(decode_image(encoded(Image.fromarray(values), "TIFF")))[..., 0]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG", "JPEG2000", "AVIF"])
def test_every_common_format_is_read(kind: str) -> None:
    decoded = decode(encoded(noise(), kind))
    assert (decoded.image.mode, decoded.image.size) == ("RGB", (40, 30))
    assert (decoded.format, decoded.width_px, decoded.height_px) == (kind, 40, 30)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_modes_without_transparency_keep_their_colours(mode: str) -> None:
    image = noise(mode)
    assert np.array_equal(decode_image(encoded(image)), image.convert("RGB"))


def test_transparency_becomes_white() -> None:
    for mode in ("LA", "RGBA"):
        clear = Image.new(mode, (4, 4), 0)
        assert np.all(np.asarray(decode_image(encoded(clear))) == 255)


def test_a_transparent_palette_entry_becomes_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    assert np.asarray(decode_image(encoded(image, transparency=1))).min() == 255
    assert np.asarray(decode_image(encoded(image, transparency=b"\xff\x00"))).min() == 255


def test_a_transparent_colour_becomes_white() -> None:
    image = Image.new("RGB", (4, 4), (9, 8, 7))
    assert np.asarray(decode_image(encoded(image, transparency=(9, 8, 7)))).min() == 255


def test_heif_is_read_where_its_plugin_is_installed() -> None:
    pytest.importorskip("pillow_heif")
    assert ".heic" in known_suffixes()
    decoded = decode(encoded(Image.new("RGB", (64, 48), (200, 30, 30)), "HEIF"))
    assert (decoded.format, decoded.image.size) == ("HEIF", (64, 48))


def test_twelve_bits_in_a_sixteen_bit_file_are_not_black() -> None:
    values = np.linspace(0, 4095, 64).round().astype(np.uint16).reshape(8, 8)
    assert np.array_equal(decoded_grey(values), np.round(values / 4095 * 255))


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    values = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    assert np.array_equal(decoded_grey(values), np.round(values / 65535 * 255))


def test_a_float_image_is_scaled_by_its_range() -> None:
    values = np.linspace(-3, 7, 64, dtype=np.float32).reshape(8, 8)
    assert np.array_equal(decoded_grey(values), np.round((values.astype(float) + 3) / 10 * 255))


def test_a_float_image_in_zero_to_one_keeps_its_scale() -> None:
    values = np.full((8, 8), 0.5, dtype=np.float32)
    assert np.all(decoded_grey(values) == 128)


def test_a_float_image_of_nan_and_infinity_is_decoded() -> None:
    values = np.full((8, 8), np.nan, dtype=np.float32)
    assert decoded_grey(values).shape == (8, 8)
    values[0] = np.inf
    values[1] = np.linspace(0, 1, 8)
    assert np.all(decoded_grey(values)[0] == 255)


def test_exif_orientation_is_applied() -> None:
    image = noise()
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode(encoded(image, exif=exif))
    assert (decoded.width_px, decoded.height_px) == (30, 40)
    assert np.array_equal(decoded.image, image.rotate(-90, expand=True))


def test_the_first_frame_of_an_animation_is_decoded() -> None:
    first = Image.new("RGB", (8, 8), "red")
    data = encoded(first, "GIF", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")])
    assert decode_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_a_large_jpeg_is_reduced_but_its_full_size_is_returned() -> None:
    side = 2 * DRAFT_SIDE_PX
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode(encoded(Image.new("RGB", (side + 200, side)), "JPEG", exif=exif))
    assert (decoded.width_px, decoded.height_px) == (side, side + 200)
    assert min(decoded.image.size) == DRAFT_SIDE_PX
    assert decode(encoded(Image.new("RGB", (side, side - 8)), "JPEG")).image.size[0] == side


@pytest.mark.parametrize("tenth", range(1, 10))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
def test_a_truncated_file_is_refused(kind: str, tenth: int) -> None:
    data = encoded(noise(), kind)
    with pytest.raises(UnreadableImage):
        decode_image(data[: len(data) * tenth // 10])


def png_chunk(name: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header(side: int) -> None:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    with pytest.raises(UnreadableImage, match="over the limit"):
        decode_image(b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b""))


def test_formats_that_run_programs_are_never_opened() -> None:
    assert not {".eps", ".ps", ".wmf", ".emf"} & known_suffixes()
    with pytest.raises(UnreadableImage, match="not an image"):
        decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty"), (b"<html><body>404</body></html>", "not an image"), (b"\0" * 99, "not a")],
)
def test_data_that_are_not_an_image_are_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        decode_image(data)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, reason in [("pipe.jpg", "not a regular"), (".", "not a regular"), ("x", "No such")]:
        with pytest.raises(UnreadableImage, match=reason):
            read_image(tmp_path / name)
    with pytest.raises(UnreadableImage, match="not a path"):
        read_image(Path("a\0b"))


def test_a_file_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise().save(tmp_path / "x.png")
    monkeypatch.setattr(decoding, "MAX_BYTES", 10)
    with pytest.raises(UnreadableImage, match="over the limit"):
        read_image(tmp_path / "x.png")


def test_decoding_in_threads_leaves_the_warning_filters_usable() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    data = encoded(image, transparency=b"\xff\x00")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(decode_image, [data] * 64))
    with pytest.raises(UserWarning, match="still an error"):
        warnings.warn("still an error", UserWarning, stacklevel=1)


def test_boxes_are_within_the_image() -> None:
    assert centre_box(200, 100, 50, 0.5) == (75, 25, 125, 75)
    rng = np.random.default_rng(0)
    for _ in range(50):
        left, top, right, bottom = random_box(60, 30, 0.1, rng)
        assert 0 <= left < right <= 60 + 1e-9
        assert 0 <= top < bottom <= 30 + 1e-9
    assert resize_box(noise(), (0, 0, 30, 30), 16, "bicubic").shape == (16, 16, 3)


@pytest.mark.parametrize("size", [(60, 30), (30, 60), (50, 50), (300, 40)])
def test_random_boxes_are_never_smaller_than_the_minimum_area(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        left, top, right, bottom = random_box(*size, 0.7, rng)
        assert (right - left) * (bottom - top) >= 0.7 * size[0] * size[1] - 1e-6


def test_random_boxes_that_fit_have_aspect_ratios_from_3_4_to_4_3() -> None:
    rng = np.random.default_rng(0)
    boxes = [random_box(100, 100, 0.05, rng) for _ in range(300)]
    aspects = [(r - x) / (b - y) for x, y, r, b in boxes]
    assert 0.75 - 1e-9 <= min(aspects) < 0.8
    assert 1.25 < max(aspects) <= 4 / 3 + 1e-9


@pytest.mark.parametrize("size", [(337, 224), (224, 358), (90, 90), (640, 480)])
def test_the_centre_crop_equals_that_of_timm(size: tuple[int, int]) -> None:
    from timm.data import create_transform

    two_steps = create_transform((3, 64, 64), interpolation="bicubic", crop_pct=0.875)
    two_steps.transforms = two_steps.transforms[:2]
    image = noise().resize(size, Image.Resampling.BICUBIC)
    found = resize_box(image, centre_box(*size, 64, 0.875), 64, "bicubic")
    np.testing.assert_allclose(found, np.asarray(two_steps(image)), atol=1)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
@pytest.mark.parametrize("size", [(337, 224), (224, 358), (90, 90), (640, 30), (13, 500)])
def test_every_crop_mode_equals_that_of_timm(
    size: tuple[int, int], crop_pct: float, mode: CropMode
) -> None:
    from timm.data import create_transform

    mean = (0.2, 0.4, 0.6)
    steps = create_transform(
        (3, 64, 64), interpolation="bicubic", crop_pct=crop_pct, crop_mode=mode, mean=mean
    )
    steps.transforms = steps.transforms[:2]
    image = noise().resize(size, Image.Resampling.BICUBIC)
    found = EvaluationCrop(64, crop_pct, "bicubic", mode, mean).pixels(image)
    assert found.shape == (64, 64, 3)
    difference = np.abs(found.astype(int) - np.asarray(steps(image)).astype(int))
    assert difference.max() <= 2


def test_an_unknown_crop_mode_is_refused() -> None:
    with pytest.raises(BackboneError, match="Unknown crop mode 'round'"):
        crop_mode_of("round")
