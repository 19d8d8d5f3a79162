"""Maps drawn over images: where the crop lies, what is coloured, and in which colours."""

import io

import numpy as np
import pytest
from PIL import Image

from advisor.report.maps.overlay import (
    DIMMED,
    INFERNO,
    beside,
    colours,
    draw_map,
    reduced,
    shares,
    webp,
)
from strategies.data.transforms import CropMode, EvaluationCrop

GREY = 120


def crop_of(mode: CropMode = "center", crop_pct: float = 1.0, px: int = 32) -> EvaluationCrop:
    return EvaluationCrop(px, crop_pct, "bilinear", mode, (0.5, 0.5, 0.5))


def flat(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (GREY, GREY, GREY))


def saturation(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image).astype(int)
    return pixels.max(axis=2) - pixels.min(axis=2)


def peak(row: int, column: int, px: int = 32) -> np.ndarray:
    values = np.zeros((px, px), np.float32)
    values[row : row + 4, column : column + 4] = 1
    return values


def test_colour_stands_at_the_place_of_the_image_that_the_map_means() -> None:
    # The middle 64 x 64 pixels of 96 x 64 are the crop: 16 pixels are cut off at each side.
    drawn = draw_map(flat(96, 64), peak(0, 28), crop_of())
    where = np.argwhere(saturation(drawn) > 60)
    assert where.min(axis=0) == pytest.approx([0, 16 + 56], abs=2)
    assert where.max(axis=0) == pytest.approx([8, 79], abs=2)


def test_what_was_cropped_away_is_dark_and_outside_a_white_frame() -> None:
    drawn = np.asarray(draw_map(flat(96, 64), np.zeros((32, 32), np.float32), crop_of()))
    assert drawn[:, :15].max() == drawn[:, 81:].max() == round(DIMMED * GREY)
    assert (drawn[1:-1, 16] == 255).all()
    assert (drawn[1:-1, 79] == 255).all()
    assert (drawn[2:-2, 18:78] == GREY).all()  # nothing speaks for the class: no colour


def test_an_image_that_was_seen_as_a_whole_has_no_frame() -> None:
    squashed = draw_map(flat(90, 60), np.zeros((32, 32), np.float32), crop_of("squash"))
    assert (np.asarray(squashed) == GREY).all()


def test_borders_of_the_crop_do_not_belong_to_the_image() -> None:
    # A wide image in a square crop: rows 0..7 and 24..31 of the crop are borders.
    crop = crop_of("border")
    assert crop.seen(64, 32).in_crop == (0, 8, 32, 24)
    assert (saturation(draw_map(flat(64, 32), peak(0, 0), crop)) == 0).all()
    where = np.argwhere(saturation(draw_map(flat(64, 32), peak(8, 0), crop)) > 60)
    assert where.max(axis=0) == pytest.approx([7, 7], abs=2)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
def test_the_seen_part_resized_is_the_crop(mode: CropMode, crop_pct: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 81, 3), dtype=np.uint8)
    image, crop = Image.fromarray(pixels), crop_of(mode, crop_pct)
    seen = crop.seen(81, 50)
    left, top, right, bottom = seen.in_crop
    resized = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, seen.in_image)
    found = crop.pixels(image)
    np.testing.assert_array_equal(found[top:bottom, left:right], np.asarray(resized))
    outside = np.ones((32, 32), bool)
    outside[top:bottom, left:right] = False
    assert (found[outside] == 128).all()


def test_the_colours_become_lighter_from_none_to_most() -> None:
    ramp = colours(np.linspace(0, 1, 101, dtype=np.float32)[None])[0]
    luminance = ramp @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0).all()
    assert luminance[0] < 3
    assert luminance[-1] > 235
    assert len(INFERNO) == 11 * 6
    assert ramp[0].tolist() == [0, 0, 4]


def test_shares_are_of_the_maximum_and_negative_values_are_none() -> None:
    assert shares(np.array([[-3.0, 1.0, 4.0]], np.float32)).tolist() == [[0, 0.25, 1]]
    assert shares(np.array([[-3.0, -1.0]], np.float32)).tolist() == [[0, 0]]


def test_image_and_map_stand_side_by_side_above_a_legend() -> None:
    image, drawn = flat(40, 30), Image.new("RGB", (40, 30), "red")
    sheet = np.asarray(beside(image, drawn, "evidence"))
    assert (sheet[10, 20] == GREY).all()
    assert sheet[10, 70].tolist() == [255, 0, 0]
    assert (sheet[40:] < 100).any()  # dark end of the scale
    tiny = beside(flat(1, 1), flat(1, 1), "evidence")
    assert tiny.width >= 300  # the legend fits


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (3, 2)])
def test_tiny_images_can_be_drawn(size: tuple[int, int]) -> None:
    drawn = draw_map(flat(*size), peak(0, 0), crop_of(crop_pct=0.875))
    assert drawn.size == size


def test_encoded_images_carry_no_metadata() -> None:
    image = flat(300, 200)
    image.info["comment"] = "a secret place"
    exif = Image.Exif()
    exif[0x010E] = "a secret place"
    image.info["exif"] = exif.tobytes()
    data = webp(reduced(image, 64))
    assert b"secret" not in data
    with Image.open(io.BytesIO(data)) as found:
        assert found.size == (64, 43)
