"""Real image datasets beside the repository: names, descriptions and random samples."""

import hashlib
from pathlib import Path

import numpy as np

from strategies.data.dataset import LabelledImage

DATA = Path(__file__).parents[1].parent / "shared" / "data"
IMAGENET = "imagenet_samples"
DESCRIPTIONS: dict[str, str] = {
    "hymenoptera": "ants and bees",
    "cats_dogs": "cats and dogs",
    "flowers5": "flowers",
    "trash6": "rubbish",
    "cifar10": "32 px photos",
    "dtd10": "textures",
    "gtsrb": "traffic signs",
    "pacs_sketch": "sketches",
    "neu_surface": "steel surfaces",
    "pneumonia_cxr": "chest X-rays",
    "sign_digits": "hand signs",
    "fsdd_spec": "spectrograms",
    "mnist5k": "handwritten digits",
    "omniglot_small1": "handwritten characters",
}
NEWER = (
    "art_painting7",
    "bean_leaf",
    "bird_groups",
    "busi",
    "drawn_shapes",
    "eurosat",
    "fruit28",
    "galaxy4",
    "hiragana30",
    "pcb_defects",
    "scene_letters",
    "weather4",
)
"""Datasets that joined the suite after its methods were chosen."""
NEAR = ("hymenoptera", "cats_dogs", "flowers5")
FAR = ("mnist5k", "fsdd_spec", "omniglot_small1", "neu_surface", "pneumonia_cxr")
_HALVES_SEED = 0


def images_of(name: str, most: int = 1000, seed: int = 0) -> list[LabelledImage]:
    """Return at most `most` training images of a dataset, drawn at random, in a stable order."""
    root = DATA / name
    root = root / "train" if (root / "train").is_dir() else root
    if name == IMAGENET:
        files = [(path, label) for label, path in enumerate(sorted(root.glob("*.jp*g")))]
    else:
        folders = sorted(p for p in root.iterdir() if p.is_dir())
        files = [
            (path, label)
            for label, folder in enumerate(folders)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        ]
    if len(files) > most:
        chosen = np.random.default_rng(seed).permutation(len(files))[:most]
        files = [files[i] for i in np.sort(chosen)]
    return [
        LabelledImage(path, label, hashlib.sha256(path.read_bytes()).hexdigest(), 0, 0)
        for path, label in files
    ]


def imagenet_halves() -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Split the ImageNet images: the half used for reference and calibration, the unseen half."""
    images = images_of(IMAGENET)
    order = np.random.default_rng(_HALVES_SEED).permutation(len(images))
    half = len(images) // 2
    return [images[i] for i in order[:half]], [images[i] for i in order[half:]]
