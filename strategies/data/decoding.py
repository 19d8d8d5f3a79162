"""Safe image decoding: from a file or bytes to an upright RGB image.

Pillow decodes on the CPU, also where there is a GPU, for three reasons. Features are cached by the
content of a file, and a classifier is used on other machines, so a file must have the same pixels
everywhere; torchvision's decoder on CUDA gives others (its own tests allow a mean difference of 2
of 255 from its decoder on a CPU). Pillow then has to resize the crop on the CPU, which is a third
to two thirds of the time of reading (JPEG files of 192 px to 12 megapixels, crops of 224 px, one
core), and large files are decoded at a reduced size, which CUDA does not offer. And an image
that fits into memory is decoded once in a run: `dataloader.IMAGE_CACHE_BYTES`,
`activation_store.EVAL_CROPS_BYTES`.
"""

import contextlib
import errno
import functools
import importlib
import importlib.util
import io
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from strategies.core.errors import DataError
from strategies.data.archives import read_member

MAX_PIXELS = 89_478_485
"""Images with more pixels are refused before decoding (decompression bombs)."""
MAX_BYTES = 1 << 30
"""Larger files are refused before reading."""
DRAFT_SIDE_PX = 1024
"""A JPEG with a short side of at least twice this is decoded at 1/2, 1/4 or 1/8 of its size, but
not below this."""
_NEVER_OPENED = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})
# Decoding EPS runs a program, and WMF is drawn by the system. Pillow cannot decode the others.

Box = tuple[float, float, float, float]
Pixels = NDArray[np.uint8]
ImageSource = Path | str | Image.Image | Pixels
"""An image file, a member of a tar archive, or an image in memory: see `read_image`."""
_LOADING = threading.Lock()
"""Pillow must not load one image object in two threads at once."""


class UnreadableImage(DataError):
    """A file cannot be decoded to an image; the message is only the reason."""


@dataclass(frozen=True)
class Decoded:
    """A decoded image with its file's format and size.

    Attributes
    ----------
    image
        RGB and upright; a large JPEG is reduced (`DRAFT_SIDE_PX`).
    width_px, height_px
        Size of the upright image in the file, before any reduction.
    """

    image: Image.Image
    format: str
    width_px: int
    height_px: int


@functools.cache
def known_formats() -> tuple[str, ...]:
    """Return Pillow's names of the supported formats, frequent ones first."""
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    first = ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"]
    return tuple(first + [f for f in Image.ID if f not in first and f not in _NEVER_OPENED])


@functools.cache
def known_suffixes() -> frozenset[str]:
    """Return the lower-case suffixes (``".jpg"``) of the supported formats."""
    formats = set(known_formats())
    return frozenset(s for s, name in Image.registered_extensions().items() if name in formats)


def read_image(source: ImageSource) -> Image.Image:
    """Read and fully decode an image as upright RGB.

    Parameters
    ----------
    source
        A file, or a member of a tar archive; a PIL image in any mode; or an array of uint8,
        (h, w, 3) of RGB or (h, w) of grey. An image in memory is converted like that of a file.

    Raises
    ------
    UnreadableImage
        If the file is missing, empty, damaged, truncated, too large, or not an image.
    DataError
        If an array has another type or shape.
    """
    if isinstance(source, Path | str):
        return decode_image(read_bytes(Path(source)))
    image = source if isinstance(source, Image.Image) else _image_of_array(source)
    silence_pillow()
    with _decoder_errors():
        with _LOADING:
            image.load()
        return _to_rgb(ImageOps.exif_transpose(image))


def _image_of_array(given: object) -> Image.Image:
    found = type(given).__name__
    if isinstance(given, np.ndarray):
        shape = given.shape
        if given.dtype == np.uint8 and given.size and (len(shape) == 2 or shape[2:] == (3,)):
            return Image.fromarray(given)
        found = f"an array of {given.dtype} with shape {shape}"
    raise DataError(
        "An image must be a path, a PIL image, or an array of uint8 with shape (h, w, 3) or "
        f"(h, w), got {found}. Convert it first: floats between 0 and 1 for example with "
        "(255 * x).round().astype('uint8')."
    )


def read_bytes(path: Path) -> bytes:
    """Read a regular file, or ``archive.tar/member``.

    Raises
    ------
    UnreadableImage
        If it is missing, too large, or not a regular file (reading a pipe may never end).
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableImage("not a regular file")
        if status.st_size > MAX_BYTES:
            raise UnreadableImage(f"{status.st_size:,} bytes: over the limit of {MAX_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            return _member_bytes(path)
        raise UnreadableImage(error.strerror or str(error)) from error
    except ValueError as error:
        raise UnreadableImage(f"not a path: {error}") from error


def _member_bytes(path: Path) -> bytes:
    try:
        return read_member(path, MAX_BYTES)
    except (DataError, OSError) as error:
        raise UnreadableImage(str(error)) from error


def decode_image(data: bytes) -> Image.Image:
    """Decode an image as RGB: EXIF orientation applied, transparency on white, scaled to 8 bits.

    Raises
    ------
    UnreadableImage
        If the bytes are not a complete image of at most `MAX_PIXELS` pixels.
    """
    return decode(data).image


def decode(data: bytes) -> Decoded:
    """Decode an image like `decode_image`; also return its file's format and size."""
    if not data:
        raise UnreadableImage("empty file")
    silence_pillow()
    with _decoder_errors():
        image = Image.open(io.BytesIO(data), formats=known_formats())
        width, height = image.size
        drafted = None
        if image.format in ("JPEG", "MPO") and min(width, height) >= 2 * DRAFT_SIDE_PX:
            drafted = image.draft(None, (DRAFT_SIDE_PX, DRAFT_SIDE_PX))
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableImage(f"{width} x {height} pixels: over the limit of {MAX_PIXELS:,}")
        image.load()
        upright = ImageOps.exif_transpose(image)
        if drafted is None:
            width, height = upright.size  # the size of an icon is only known once it is loaded
        elif upright.size != image.size:
            width, height = height, width
        return Decoded(_to_rgb(upright), image.format or "", width, height)


@contextlib.contextmanager
def _decoder_errors() -> Iterator[None]:
    """Turn the errors of Pillow's decoders in this block into `UnreadableImage`."""
    try:
        yield
    except UnreadableImage:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"over the limit of {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise UnreadableImage("not an image in a format that Pillow knows") from error
    except _DECODER_ERRORS as error:
        raise UnreadableImage(f"damaged: {error or type(error).__name__}") from error


# Exceptions that Pillow's decoders raise on damaged input, besides UnidentifiedImageError.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    ImageCms.PyCMSError,
)


def silence_pillow() -> None:
    """Ignore Pillow's warnings about a user's file, so that they are neither printed nor raised.

    ``warnings.catch_warnings`` is not thread-safe; one filter for Pillow's own modules is.
    """
    if not any(f[0] == "ignore" and _is_pillow(f[3]) for f in warnings.filters):
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _is_pillow(module: object) -> bool:
    return getattr(module, "pattern", None) == r"PIL\."


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _scaled_to_8_bits(image)
    if image.mode == "LAB":
        return _from_lab(image)
    if "transparency" in image.info or {"A", "a"} & set(image.getbands()):
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_lab(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    if converted is None:
        raise UnreadableImage("damaged: colours that cannot be converted to RGB")
    return converted


def _scaled_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale a grey image of more than 8 bits by its value range (Pillow would clip at 255).

    Integers that fit into 16 bits are scaled by the smallest common bit depth (8, 10, 12, 14, 16)
    that holds them, so that a 12-bit X-ray in a 16-bit file is not black. Floats in [0, 1] keep
    their scale. All other values are scaled from their minimum to their maximum.
    """
    values = np.asarray(image, dtype=np.float64)
    finite = values[np.isfinite(values)]
    lowest, highest = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    low, high = lowest, highest
    if image.mode == "F":
        if lowest >= 0 and highest <= 1:
            low, high = 0.0, 1.0
    elif lowest >= 0 and highest < 2**16:
        depth = next(bits for bits in (8, 10, 12, 14, 16) if highest < 2**bits)
        low, high = 0.0, float(2**depth - 1)
    if high <= low:
        return Image.new("L", image.size, 0)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    scaled = 255 * ((values - low) / (high - low)).clip(0, 1)
    return Image.fromarray(np.round(scaled).astype(np.uint8))
