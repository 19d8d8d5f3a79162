"""Generated corpus of about 500 damaged and unusual image files."""

import contextlib
import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, features

KINDS = {
    "jpg": "JPEG",
    "png": "PNG",
    "webp": "WEBP",
    "bmp": "BMP",
    "tif": "TIFF",
    "gif": "GIF",
    "jp2": "JPEG2000",
    "avif": "AVIF",
}
N_BIT_FLIPS = 12


def photo(seed: int = 0, size: tuple[int, int] = (61, 47)) -> Image.Image:
    """Return an image of coloured blobs with noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize(size, Image.Resampling.BICUBIC), dtype=float)
    return Image.fromarray((smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return an image as the bytes of a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def kinds() -> dict[str, str]:
    """Return the suffixes and formats that the installed Pillow can write."""
    absent = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}
    return {s: k for s, k in KINDS.items() if k not in absent or features.check(absent[k])}


def damaged() -> Iterator[tuple[str, bytes]]:
    """Yield truncated, bit-flipped, misnamed, empty and padded files of every format."""
    for number, (suffix, kind) in enumerate(kinds().items()):
        data = encode(photo(number), kind)
        for tenth in range(1, 10):
            yield f"cut{tenth}0.{suffix}", data[: len(data) * tenth // 10]
        yield f"cut_last_byte.{suffix}", data[:-1]
        rng = np.random.default_rng(number)
        for flip in range(N_BIT_FLIPS):
            torn = bytearray(data)
            # Half of the flips near the start, where the headers are.
            reach = len(torn) if flip % 2 else min(len(torn), 64)
            for place in rng.integers(0, reach, 1 + flip):
                torn[place] ^= int(rng.integers(1, 256))
            yield f"flip{flip}.{suffix}", bytes(torn)
        for other in kinds():
            if other != suffix:
                yield f"really_{suffix}.{other}", data
        yield f"zero.{suffix}", b""
        yield f"nulls.{suffix}", bytes(500)
        yield f"random.{suffix}", rng.integers(0, 256, 3000, dtype=np.uint8).tobytes()
        yield f"trailing_junk.{suffix}", data + b"junk" * 50
        yield f"leading_junk.{suffix}", b"junk" + data
        yield f"twice.{suffix}", data + data
        yield f"fine.{suffix}", data
        yield f"FINE_TOO.{suffix.upper()}", encode(photo(100 + number), kind)


def modes() -> Iterator[tuple[str, bytes]]:
    """Yield all common modes, EXIF orientations, bit depths and animations."""
    image = photo(50)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F"):
        for suffix, kind in kinds().items():
            # Pillow cannot write every mode as every format.
            with contextlib.suppress(OSError, ValueError, KeyError):
                yield f"mode_{mode}.{suffix}", encode(image.convert(mode), kind)
    palette = image.quantize(16)
    yield "palette_clear.png", encode(palette, "PNG", transparency=3)
    yield "palette_alphas.png", encode(palette, "PNG", transparency=bytes(range(0, 256, 16)))
    yield "palette_clear.gif", encode(palette, "GIF", transparency=3)
    yield "rgb_clear.png", encode(image, "PNG", transparency=image.getpixel((0, 0)))
    ramp = np.linspace(0, 1, 48 * 32).reshape(32, 48)
    deep = {
        "sixteen": (ramp * 65535).astype(np.uint16),
        "twelve": (ramp * 4095).astype(np.uint16),
        "float": (ramp * 7 - 3).astype(np.float32),
        "fractions": ramp.astype(np.float32),
        "whole": (ramp * 1e6 - 5e5).astype(np.int32),
    }
    for name, values in deep.items():
        yield f"deep_{name}.tif", encode(Image.fromarray(values), "TIFF")
    yield "deep_sixteen.png", encode(Image.fromarray(deep["sixteen"]), "PNG")
    spoilt = deep["float"].copy()
    spoilt[3:5] = np.nan
    spoilt[7, :9] = np.inf
    yield "deep_spoilt.tif", encode(Image.fromarray(spoilt), "TIFF")
    for orientation in range(10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for suffix in ("jpg", "png", "webp"):
            yield f"turned{orientation}.{suffix}", encode(image, KINDS[suffix], exif=exif)
    yield "broken_exif.jpg", encode(image, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\0\0")
    yield "progressive.jpg", encode(image, "JPEG", progressive=True)
    yield "grey.jpg", encode(image.convert("L"), "JPEG")
    yield "cmyk_in.tif", encode(image.convert("CMYK"), "TIFF", compression="tiff_lzw")
    frames = [photo(60 + i) for i in range(3)]
    for suffix in ("gif", "webp", "tif", "png"):
        more = {"save_all": True, "append_images": frames[1:]}
        yield f"moving.{suffix}", encode(frames[0], KINDS[suffix], **more)
    yield "one_pixel.png", encode(photo(1, (1, 1)), "PNG")
    yield "long.png", encode(photo(1, (900, 2)), "PNG")
    yield "huge_photo.jpg", encode(photo(2, (2600, 2100)), "JPEG")


def bombs() -> Iterator[tuple[str, bytes]]:
    """Yield decompression bombs: small files that declare or contain huge images."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    for side in (10_000, 20_000, 65_535, 2**31 - 1):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
        yield f"bomb{side}.png", b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")
        info = struct.pack(
            "<IiiHHIIiiII", 40, min(side, 2**31 - 1), 20_000, 1, 24, 0, 0, 0, 0, 0, 0
        )
        yield f"bomb{side}.bmp", b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info
    whole = encode(photo(0), "PNG")
    text = chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(80_000_000)))
    yield "bomb_text.png", whole[:33] + text + whole[33:]
    yield "bomb.gif", b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0" + bytes(20)


def impostors() -> Iterator[tuple[str, bytes]]:
    """Yield files that are not images despite their suffix, and problematic file names."""
    page = b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>"
    for suffix in ("jpg", "png", "gif", "webp", "tif"):
        yield f"page.{suffix}", page
        yield f"text.{suffix}", "größer\n".encode("utf-16")
        yield f"archive.{suffix}", b"PK\x03\x04" + bytes(60)
        yield f"script.{suffix}", b"#!/bin/sh\necho harm\n"
    yield "drawn.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    yield "vector.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    yield "film.jpg", b"\0\0\0\x20ftypisom" + bytes(100)
    yield "sound.gif", b"RIFF\x24\0\0\0WAVEfmt " + bytes(30)
    good = encode(photo(70), "PNG")
    for name in (
        "new\nline",
        "tab\t",
        'quo"te',
        "it's",
        "🐈 cat",
        "-rf",
        "%s{x}",
        "a" * 200,
        "`id`",
    ):
        yield f"{name}.png", encode(photo(len(name)), "PNG")
    yield os.fsdecode(b"in\xff\xfevalid.png"), good
    yield "no_suffix", good
    yield "notes.txt", b"not an image by its name"


def write_corpus(root: Path, n_good: int = 0) -> int:
    """Write the corpus as two classes and return the number of files.

    Parameters
    ----------
    n_good
        Number of intact images to add to each class.
    """
    n = 0
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        for i in range(n_good):
            photo(1000 * (label == "dog") + i).save(root / label / f"good{i}.png")
            n += 1
    for i, (name, data) in enumerate([*damaged(), *modes(), *bombs(), *impostors()]):
        (root / ("cat", "dog")[i % 2] / name).write_bytes(data)
        n += 1
    odd = root / "dog" / "directory.png"
    (odd / "deeper.jpg").mkdir(parents=True)
    photo(80).save(odd / "deeper.jpg" / "inside.png")
    (root / "cat" / "loop").symlink_to(root / "cat")
    (root / "cat" / "self.png").symlink_to(root / "cat" / "self.png")
    (root / "cat" / "nowhere.jpg").symlink_to(root / "gone.jpg")
    os.mkfifo(root / "cat" / "pipe.jpg")
    return n + 5
