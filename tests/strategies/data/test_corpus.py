"""A corpus of odd files: none causes a traceback, is decoded wrongly, or is changed."""

import hashlib
import io
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from strategies.data.dataset import load_dataset
from strategies.data.decoding import DRAFT_SIDE_PX, MAX_PIXELS, read_image
from tests.corpus import write_corpus

DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    root = tmp_path_factory.mktemp("corpus") / "data"
    return root, write_corpus(root)


def tree_digest(root: Path) -> str:
    """Return a hash of the names, modes, times and contents of everything below a folder."""
    total = hashlib.sha256()
    for parent, folders, files in os.walk(root):
        for name in sorted([*folders, *files]):
            path = Path(parent) / name
            status = path.lstat()
            total.update(os.fsencode(path) + repr((status.st_mode, status.st_mtime_ns)).encode())
            if path.is_file():
                total.update(path.read_bytes())
    return total.hexdigest()


def reference(data: bytes) -> np.ndarray | None:
    """Decode with Pillow, independently of the program; return None if that fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > MAX_PIXELS:
                return None
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode == "LAB":
                lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
                image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
            rgba = np.asarray(image.convert("RGBA") if image.mode not in DEEP else image)
    except Exception:
        # Any error, in a library or because of a truncated file, means that there is no reference.
        return None
    if image.mode in DEEP:
        values = rgba.astype(float)
        finite = values[np.isfinite(values)]
        low, high = finite.min(), finite.max()
        if image.mode == "F" and low >= 0 and high <= 1:
            low, high = 0.0, 1.0
        elif image.mode != "F" and low >= 0 and high < 65536:
            low, high = 0.0, float(2 ** max(8, 2 * int(np.ceil(np.log2(high + 1) / 2))) - 1)
        scaled = (np.clip(np.nan_to_num(values, nan=low), low, high) - low) / (high - low)
        return np.repeat(np.round(255 * scaled)[..., None], 3, axis=2)
    colour, alpha = rgba[..., :3].astype(float), rgba[..., 3:] / 255
    return np.asarray(np.round(colour * alpha + 255 * (1 - alpha)))


def test_every_file_is_read_to_the_reference_pixels_or_quarantined(
    corpus: tuple[Path, int], capsys: pytest.CaptureFixture[str]
) -> None:
    root, n_files = corpus
    before = tree_digest(root)
    start = time.monotonic()
    dataset = load_dataset(root, max_quarantine=1.0, max_images=None)
    seconds = time.monotonic() - start
    assert tree_digest(root) == before
    assert n_files >= 400
    read = [*dataset.fit_split, *(dataset.test or ())]
    assert len(read) + len(dataset.skipped) == n_files
    assert all(s.reason and len(s.reason) < 300 for s in dataset.skipped)
    for image in read:
        pixels = np.asarray(read_image(image.path), dtype=float)
        expected = reference(image.path.read_bytes())
        assert expected is not None, image.path
        if min(expected.shape[:2]) >= 2 * DRAFT_SIDE_PX:
            assert (image.height_px, image.width_px) == expected.shape[:2]
            continue
        assert np.abs(pixels - expected).max() <= 1, image.path
        assert (image.height_px, image.width_px) == expected.shape[:2]
    refused = [s for s in dataset.skipped if reference_of(s.path) is not None]
    assert not refused, [(s.path.name, s.reason) for s in refused]
    with capsys.disabled():
        sys.stdout.write(
            f"\ncorpus: {n_files} files, {len(read)} read to the reference pixels, "
            f"{len(dataset.skipped)} quarantined, in {seconds:.1f} s\n"
        )


def reference_of(path: Path) -> np.ndarray | None:
    """Return the reference of a regular file; None for a file that is skipped by its suffix."""
    if not path.is_file() or path.suffix == ".txt":
        return None
    return reference(path.read_bytes())
