"""Crops and resizing: from a decoded image to the square network input."""

import numpy as np
from PIL import Image

from strategies.data.decoding import Box, Pixels


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
    method = {
        "bicubic": Image.Resampling.BICUBIC,
        "bilinear": Image.Resampling.BILINEAR,
        "lanczos": Image.Resampling.LANCZOS,
        "nearest": Image.Resampling.NEAREST,
    }[interpolation]
    return np.asarray(image.resize((px, px), method, box=box))
