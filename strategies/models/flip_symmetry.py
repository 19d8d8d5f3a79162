"""Flip symmetry: measure whether horizontal flips preserve the classes of a dataset.

References
----------
Z. Lin et al., Visual chirality, CVPR 2020.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from strategies.core.cache import Rows
from strategies.core.context import RunContext
from strategies.core.metrics import FlipAsymmetry
from strategies.data.dataset import LabelledImage, groups_of, labels_of
from strategies.data.sampling import content_order
from strategies.models.backbone import Backbone, half_size
from strategies.models.multi_view import extract_views

MAX_IMAGES, PER_CLASS = 128, 8
"""Number of images measured in total (about), and the minimum quota per class."""
SMALLEST_PX = 96
"""Smallest input size to which the images are reduced."""
_TINY = 1e-3


def measure_flip_asymmetry(
    images: Sequence[LabelledImage], backbone: Backbone, ctx: RunContext
) -> FlipAsymmetry | None:
    """Measure the flip asymmetry on a sample of the images, at half the input size (`half_size`).

    None if no class has two images of different groups.

    Raises
    ------
    OutOfTime
        If the deadline passes first.
    """
    sample = _sample_per_class(images, ctx.seed)
    views = extract_views(sample, half_size(backbone, SMALLEST_PX), ctx, 2).mean
    return flip_asymmetry([both[:, 0] for both in views], [both[:, 1] for both in views], sample)


def flip_asymmetry(
    plain: Sequence[Rows], flipped: Sequence[Rows], images: Sequence[LabelledImage]
) -> FlipAsymmetry | None:
    """Return the flip asymmetry, given activations of images and of their flips.

    None if no class has two images of different groups. Pairs of images within a group
    (duplicates, frames of one track) do not count.

    Parameters
    ----------
    plain, flipped
        Activations, one array (n, d) per depth.
    """
    labels, groups = labels_of(tuple(images)), groups_of(tuple(images))
    pairs = (labels[:, None] == labels) & (groups[:, None] != groups)
    if not pairs.any():
        return None
    cosines = np.mean([_cosines(a, b) for a, b in zip(plain, flipped, strict=True)], axis=0)
    terms = np.where(pairs, cosines, 0) / pairs.sum()
    members = (groups[:, None] == np.unique(groups)).astype(np.float64)
    between = members.T @ terms @ members  # one sign per group
    return FlipAsymmetry(float(between.sum()), float(np.sqrt(2 * np.square(between).sum())))


def _cosines(plain: Rows, flipped: Rows) -> NDArray[np.float64]:
    """Return the cosine similarities of all pairs of standardised differences, (n, n)."""
    both = np.concatenate([plain, flipped]).astype(np.float64)
    scale = both.std(axis=0) + _TINY * both.std()
    difference = (plain - flipped) / np.where(scale > 0, scale, 1)
    length = np.linalg.norm(difference, axis=1, keepdims=True)
    unit = np.divide(difference, length, out=np.zeros_like(difference), where=length > 0)
    cosines: NDArray[np.float64] = unit @ unit.T
    return cosines


def _sample_per_class(images: Sequence[LabelledImage], seed: int) -> tuple[LabelledImage, ...]:
    """Sample images class by class, up to a quota for each class and a total of `MAX_IMAGES`."""
    by_class: dict[int, list[LabelledImage]] = {}
    for i in content_order((p.digest for p in images), seed):
        by_class.setdefault(images[i].label, []).append(images[i])
    quota = max(PER_CLASS, MAX_IMAGES // len(by_class))
    sample: list[LabelledImage] = []
    for of_class in by_class.values():
        sample += of_class[:quota]
        if len(sample) >= MAX_IMAGES:
            break
    return tuple(sample)
