"""Activation maps drawn over the images that they explain."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from strategies.data.transforms import EvaluationCrop

INFERNO = "000004160b39420a686a176e932667bc3754dd513af37819fca50af6d746fcffa4"
"""Eleven equally spaced colours of "inferno", six digits each (S. van der Walt, N. Smith,
matplotlib, 2015). Its lightness rises evenly: it is read without colour vision, and in grey."""
STRENGTH = 0.85
"""Opacity of the colour where the map is largest."""
DIMMED = 0.3
"""Brightness of what the network did not see."""
MARGIN_PX, LEGEND_PX = 8, 26
_GREY = (118, 118, 118)
"""Of the text of a legend: legible on white and on black."""


def draw_map(image: Image.Image, values: NDArray[np.float32], crop: EvaluationCrop) -> Image.Image:
    """Return an image in grey with a map in colour on the part that the network saw.

    Only what speaks for the explained class is coloured: no colour at 0 and below, the lightest at
    the map's maximum. What the crop cut off is dark, outside a white frame.

    Parameters
    ----------
    image
        The image as a whole, RGB; it may have been reduced.
    values
        The map of its crop, (px, px), see `class_maps`.
    """
    seen = crop.seen(image.width, image.height)
    left, top, right, bottom = (round(x) for x in seen.in_image)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    x0, y0, x1, y1 = seen.in_crop
    share = shares(values[y0:y1, x0:x1])
    size = (right - left, bottom - top)
    weight = np.asarray(Image.fromarray(share).resize(size, Image.Resampling.BILINEAR))
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None].repeat(3, axis=2)
    drawn = DIMMED * grey
    opacity = STRENGTH * np.sqrt(weight)[..., None]
    inside = grey[top:bottom, left:right]
    drawn[top:bottom, left:right] = (1 - opacity) * inside + opacity * colours(weight)
    found = Image.fromarray(drawn.round().clip(0, 255).astype(np.uint8))
    if size != image.size:
        ImageDraw.Draw(found).rectangle((left, top, right - 1, bottom - 1), outline="white")
    return found


def shares(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a map as shares of its maximum, in [0, 1]; 0 where it is negative."""
    positive: NDArray[np.float32] = np.maximum(values, 0)
    most = float(positive.max(initial=0.0))
    return positive / np.float32(most) if most > 0 else positive


def colours(share: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the colours of shares (h, w), as (h, w, 3) in 0..255."""
    known = np.frombuffer(bytes.fromhex(INFERNO), np.uint8).reshape(-1, 3).astype(np.float32)
    at = np.linspace(0, 1, len(known))
    return np.stack(
        [np.interp(share, at, known[:, k]).astype(np.float32) for k in range(3)], axis=-1
    )


def beside(image: Image.Image, drawn: Image.Image, legend: str) -> Image.Image:
    """Return an image and its map side by side, with a legend below, on white.

    Parameters
    ----------
    legend
        What the colour means, in a few words of ASCII.
    """
    width, height = 2 * image.width + 3 * MARGIN_PX, image.height + 2 * MARGIN_PX + LEGEND_PX
    sheet = Image.new("RGB", (max(width, 300), height), "white")
    sheet.paste(image, (MARGIN_PX, MARGIN_PX))
    sheet.paste(drawn, (image.width + 2 * MARGIN_PX, MARGIN_PX))
    bar = np.linspace(0, 1, 72, dtype=np.float32)[None].repeat(10, axis=0)
    top = image.height + 2 * MARGIN_PX
    sheet.paste(Image.fromarray(colours(bar).astype(np.uint8)), (MARGIN_PX, top + 4))
    ImageDraw.Draw(sheet).text(
        (MARGIN_PX + 80, top), f"none to most: {legend}", _GREY, ImageFont.load_default(13)
    )
    return sheet


def reduced(image: Image.Image, side: int) -> Image.Image:
    """Return a copy without metadata whose longest side is at most `side` pixels."""
    small = Image.fromarray(np.asarray(image))
    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return small


def webp(image: Image.Image) -> bytes:
    """Return an image as WebP, without metadata."""
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=60, method=4)
    return stream.getvalue()
