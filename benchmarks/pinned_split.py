"""The datasets of the suite, split as when its first rows were made.

Rows of one case are compared image by image, so all of them need the same test images. Since
2026-11-30 ``load_dataset`` draws missing splits by the images' content, so that added images
change little, and keeps crops and mirror images together. Here they are drawn by the images'
positions, and only copies are kept together, as before.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from strategies.data.dataset import Dataset, LabelledImage, Split, load_dataset
from strategies.data.near_duplicates import duplicate_groups, find_matches
from strategies.data.splitting import add_missing_splits, assign_groups


def load_pinned(folder: Path) -> Dataset:
    """Load a dataset with the splits that the committed rows were made with."""
    dataset = load_dataset(folder)
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test or ()}
    drawn = [name for name in ("val", "test") if name not in dataset.listed]
    whole = splits["train"] + tuple(p for name in drawn for p in splits.pop(name))
    splits["train"] = tuple(sorted(whole, key=_position))
    splits = add_missing_splits(_grouped(splits, folder), dataset.n_classes, 0, _order_by_position)
    return replace(dataset, train=splits["train"], val=splits["val"], test=splits["test"])


def _grouped(splits: dict[str, Split], folder: Path) -> dict[str, Split]:
    """Group the images by copies and series alone."""
    everything = tuple(image for split in splits.values() for image in split)
    copies = duplicate_groups(len(everything), find_matches(everything, crops=False))
    n_train = len(splits["train"])
    grouped, _ = assign_groups(everything, copies, None, folder, 0, n_train)
    ends = np.cumsum([len(split) for split in splits.values()]).tolist()
    return {
        name: grouped[end - len(split) : end]
        for (name, split), end in zip(splits.items(), ends, strict=True)
    }


def _position(image: LabelledImage) -> str:
    """Return what the images of a listing are sorted by."""
    return str(image.path)


def _order_by_position(_: Split, group: NDArray[np.int64], seed: int) -> Sequence[int]:
    """Return the groups in a random order."""
    order: list[int] = np.random.default_rng(seed).permutation(int(group.max()) + 1).tolist()
    return order
