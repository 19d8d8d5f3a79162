"""Demo dataset: scikit-learn's handwritten digits, written as image files."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from strategies.core.atomic_files import atomic_file
from strategies.core.errors import StorageError


def write_digits(folder: Path) -> Path:
    """Write the 1,797 digits (8 x 8, grayscale) as PNG files in class folders.

    Files that exist are kept.

    Returns
    -------
    The folder that holds the class folders.

    Raises
    ------
    StorageError
        If the folder cannot be written.

    References
    ----------
    E. Alpaydin, C. Kaynak, Optical recognition of handwritten digits, UCI, 1998.
    """
    data = load_digits()
    root = folder / "digits"
    try:
        for i, (pixels, label) in enumerate(zip(data.images, data.target, strict=True)):
            path = root / str(label) / f"{i:04d}.png"
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            grey = np.round(pixels * (255 / 16)).astype(np.uint8)
            with atomic_file(path, fsync=False) as file:
                Image.fromarray(grey).save(file, format="PNG")
    except OSError as error:
        raise StorageError(
            f"The demo dataset cannot be written to {root}: {error}. Give another --cache-dir."
        ) from error
    return root
