"""A real dataset that comes with a dependency: scikit-learn's handwritten digits, as files."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from strategies.core.errors import StorageError


def write_digits(folder: Path) -> Path:
    """Write the 1,797 digits (8 x 8 grey) as PNG files in class folders; what is there stays.

    Returns
    -------
    The folder of class folders.

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
            part = path.with_suffix(".part")
            Image.fromarray(grey).save(part, format="PNG")
            part.replace(path)
    except OSError as error:
        raise StorageError(f"The demo's images cannot be written to {root}: {error}") from error
    return root
