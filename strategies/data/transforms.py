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
        width, height, px = image.width, image.height, self.px
        if self.mode == "center":
            box = centre_box(width, height, px, self.crop_pct)
            return resize_box(image, box, px, self.interpolation)
        scaled = int(px / self.crop_pct)
        if self.mode == "squash":
            first = round((scaled - px) / 2)
            last = min(first + px, scaled)
            across, down = width / scaled, height / scaled
            box = (first * across, first * down, last * across, last * down)
            return resize_box(image, box, px, self.interpolation)
        return self._bordered(image, scaled)

    def _bordered(self, image: Image.Image, scaled: int) -> Pixels:
        ratio = max(image.width, image.height) / scaled
        wide, high = max(round(image.width / ratio), 1), max(round(image.height / ratio), 1)
        colour = [round(255 * value) for value in self.fill]
        canvas = np.full((self.px, self.px, 3), colour, dtype=np.uint8)
        left, top = self._first(wide), self._first(high)
        x0, x1 = max(left, 0), min(left + self.px, wide)
        y0, y1 = max(top, 0), min(top + self.px, high)
        across, down = image.width / wide, image.height / high
        box = (x0 * across, y0 * down, x1 * across, y1 * down)
        resized = image.resize((x1 - x0, y1 - y0), _method(self.interpolation), box=box)
        canvas[y0 - top : y1 - top, x0 - left : x1 - left] = np.asarray(resized)
        return canvas

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
    return {
        "bicubic": Image.Resampling.BICUBIC,
        "bilinear": Image.Resampling.BILINEAR,
        "lanczos": Image.Resampling.LANCZOS,
        "nearest": Image.Resampling.NEAREST,
    }[interpolation]
