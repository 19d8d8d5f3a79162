"""Bytes to RGB pictures, safely, and pictures to the squares that a network sees."""

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from strategies.core.errors import DataError

MAX_PIXELS = 200_000_000
"""Larger pictures are refused before they are decoded (decompression bombs)."""

Box = tuple[float, float, float, float]
Pixels = NDArray[np.uint8]


class UnreadableImage(DataError):
    """A file that cannot be decoded to a picture; the message is the reason alone."""


def known_suffixes() -> frozenset[str]:
    """Return the lower-case suffixes (``".jpg"``) of the formats that Pillow opens."""
    Image.init()
    return frozenset(s for s, name in Image.registered_extensions().items() if name in Image.OPEN)


def read_image(path: Path) -> Image.Image:
    """Read and fully decode a picture file as RGB, upright.

    Raises
    ------
    UnreadableImage
        If the file is missing, empty, damaged, truncated, too large, or not a picture.
    """
    try:
        return decode_image(path.read_bytes())
    except OSError as error:
        raise UnreadableImage(error.strerror or str(error)) from error


def decode_image(data: bytes) -> Image.Image:
    """Decode a picture as RGB, upright (EXIF), transparency on white, 16 bits scaled to 8.

    Raises
    ------
    UnreadableImage
        If the bytes are not a whole picture of at most `MAX_PIXELS` pixels.
    """
    if not data:
        raise UnreadableImage("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's size guard is ours, below; EXIF chatter
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(
                    f"{image.width} x {image.height} pixels: over the limit of {MAX_PIXELS:,}"
                )
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except UnreadableImage:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"over the limit of {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise UnreadableImage("not a picture in a format that Pillow knows") from error
    except _DECODER_ERRORS as error:
        raise UnreadableImage(f"damaged: {error or type(error).__name__}") from error


# What Pillow's decoders are known to raise on damaged input, besides UnidentifiedImageError.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    OverflowError,
    ArithmeticError,
    MemoryError,
    NotImplementedError,
)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _scaled_to_8_bits(image)
    if image.mode == "RGB":
        return image
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _scaled_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale a deep grey picture by its true range (Pillow's own conversion clips at 255)."""
    values = np.asarray(image, dtype=np.float64)
    if image.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    else:
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if high <= low:
        return Image.new("L", image.size, 0)
    scaled = np.nan_to_num((values - low) / (high - low), nan=0.0, posinf=1.0, neginf=0.0)
    return Image.fromarray(np.round(255 * scaled.clip(0, 1)).astype(np.uint8))


def centre_box(width: int, height: int, px: int, crop_pct: float) -> Box:
    """Return the box of timm's centre crop: (left, top, right, bottom) in the picture's pixels.

    Cutting this box out while resizing to px x px is, in one step, what timm does in two: the short
    side resized to ``px / crop_pct``, then px x px pixels cut out of the middle. The box starts
    on a whole pixel of the resized picture, as there.
    """
    short = int(px / crop_pct)
    wide = short if width <= height else int(short * width / height)
    high = short if height <= width else int(short * height / width)
    left, top = round((wide - px) / 2), round((high - px) / 2)
    right, bottom = min(left + px, wide), min(top + px, high)
    across, down = width / wide, height / high
    return (left * across, top * down, right * across, bottom * down)


def random_box(width: int, height: int, min_area: float, rng: np.random.Generator) -> Box:
    """Draw a box of random area (a share in [min_area, 1]) and aspect (3/4 to 4/3).

    References
    ----------
    The "random resized crop" of C. Szegedy et al., Going deeper with convolutions, 2015.
    """
    area = width * height * rng.uniform(min_area, 1.0)
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    w = min(float(np.sqrt(area * aspect)), float(width))
    h = min(float(np.sqrt(area / aspect)), float(height))
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return (left, top, left + w, top + h)


def resize_box(image: Image.Image, box: Box, px: int, interpolation: str) -> Pixels:
    """Cut `box` out of an RGB picture, resize it to ``(px, px)``: uint8, shape (px, px, 3)."""
    method = {
        "bicubic": Image.Resampling.BICUBIC,
        "bilinear": Image.Resampling.BILINEAR,
        "lanczos": Image.Resampling.LANCZOS,
        "nearest": Image.Resampling.NEAREST,
    }[interpolation]
    return np.asarray(image.resize((px, px), method, box=box))
