"""Crops and resizing: from a decoded image to the square network input."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
from PIL import Image

from strategies.core.errors import BackboneError, unknown_name
from strategies.data.decoding import Box, Pixels

CropMode = Literal["center", "squash", "border"]


def crop_mode_of(name: str) -> CropMode:
    """Return timm's crop mode of this name.

    Raises
    ------
    BackboneError
        If there is none.
    """
    if name not in get_args(CropMode):
        raise BackboneError(unknown_name("crop mode", name, get_args(CropMode)))
    return cast(CropMode, name)


@dataclass(frozen=True)
class Seen:
    """The part of an image that a crop shows.

    Attributes
    ----------
    in_image
        Its box in the image's pixels: (left, top, right, bottom).
    in_crop
        Its box in the crop's pixels; what is outside are borders.
    """

    in_image: Box
    in_crop: tuple[int, int, int, int]


@dataclass(frozen=True)
class EvaluationCrop:
    """timm's crop of an image for evaluation.

    Attributes
    ----------
    px
        Side of the crop in pixels.
    crop_pct
        Side of the crop as a share of the resized image.
    mode
        "center": the short side is resized, and what sticks out is cut off. "squash": both sides
        are resized, which changes the aspect ratio. "border": the long side is resized, and the
        rest is filled.
    fill
        Colour of the borders, one value in 0..1 per channel.
    """

    px: int
    crop_pct: float
    interpolation: str
    mode: CropMode
    fill: Sequence[float]

    def pixels(self, image: Image.Image) -> Pixels:
        """Return the crop of an RGB image, uint8 (px, px, 3)."""
        seen = self.seen(image.width, image.height)
        left, top, right, bottom = seen.in_crop
        size, method = (right - left, bottom - top), _method(self.interpolation)
        resized = np.asarray(image.resize(size, method, box=seen.in_image))
        if size == (self.px, self.px):
            return resized
        colour = [round(255 * value) for value in self.fill]
        canvas = np.full((self.px, self.px, 3), colour, dtype=np.uint8)
        canvas[top:bottom, left:right] = resized
        return canvas

    def seen(self, width: int, height: int) -> Seen:
        """Return which part of an image of this size the crop shows, and where."""
        px = self.px
        if self.mode == "border":
            return self._bordered(width, height)
        if self.mode == "center":
            return Seen(centre_box(width, height, px, self.crop_pct), (0, 0, px, px))
        scaled = int(px / self.crop_pct)
        first = round((scaled - px) / 2)
        last = min(first + px, scaled)
        across, down = width / scaled, height / scaled
        return Seen((first * across, first * down, last * across, last * down), (0, 0, px, px))

    def _bordered(self, width: int, height: int) -> Seen:
        ratio = max(width, height) / int(self.px / self.crop_pct)
        wide, high = max(round(width / ratio), 1), max(round(height / ratio), 1)
        left, top = self._first(wide), self._first(high)
        x0, x1 = max(left, 0), min(left + self.px, wide)
        y0, y1 = max(top, 0), min(top + self.px, high)
        across, down = width / wide, height / high
        return Seen(
            (x0 * across, y0 * down, x1 * across, y1 * down),
            (x0 - left, y0 - top, x1 - left, y1 - top),
        )

    def _first(self, side: int) -> int:
        """Return the first pixel of a resized side that the crop shows; negative with a border."""
        surplus = side - self.px
        return round(surplus / 2) if surplus >= 0 else -(-surplus // 2)


def centre_box(width: int, height: int, px: int, crop_pct: float) -> Box:
    """Return the box of timm's centre crop: (left, top, right, bottom) in the image's pixels.

    Resizing this box to px x px gives in one step what timm computes in two: it resizes the short
    side to ``px / crop_pct``, then crops px x px pixels from the centre. As in timm, the box
    starts on a whole pixel of the resized image.
    """
    short = int(px / crop_pct)
    wide = short if width <= height else int(short * width / height)
    high = short if height <= width else int(short * height / width)
    left, top = round((wide - px) / 2), round((high - px) / 2)
    right, bottom = min(left + px, wide), min(top + px, high)
    across, down = width / wide, height / high
    return (left * across, top * down, right * across, bottom * down)


def random_box(width: int, height: int, min_area: float, rng: np.random.Generator) -> Box:
    """Draw a box of random area (a share in [min_area, 1]) and aspect ratio (3/4 to 4/3).

    The aspect ratio is drawn from the part of its range in which a box of that area fits into the
    image. If none fits, it is the nearest ratio outside the range that fits: the area is never
    reduced.

    References
    ----------
    The "random resized crop" of C. Szegedy et al., Going deeper with convolutions, 2015.
    """
    area = width * height * rng.uniform(min_area, 1.0)
    # w = sqrt(area * aspect) <= width and h = sqrt(area / aspect) <= height
    narrowest, widest = np.log(area / height**2), np.log(width**2 / area)
    low = np.clip(np.log(3 / 4), narrowest, widest)
    high = np.clip(np.log(4 / 3), narrowest, widest)
    aspect = np.exp(rng.uniform(low, high))
    w = min(float(np.sqrt(area * aspect)), float(width))
    h = min(float(np.sqrt(area / aspect)), float(height))
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return (left, top, left + w, top + h)


def resize_box(image: Image.Image, box: Box, px: int, interpolation: str) -> Pixels:
    """Crop `box` from an RGB image and resize it: uint8, shape (px, px, 3)."""
    return np.asarray(image.resize((px, px), _method(interpolation), box=box))


def _method(interpolation: str) -> Image.Resampling:
    return Image.Resampling[interpolation.upper()]
