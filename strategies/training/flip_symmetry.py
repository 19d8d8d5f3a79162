"""Whether images may be mirrored: whether those of a class lean to one side.

References
----------
Z. Lin et al., Visual chirality, CVPR 2020.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strategies.core.cache import Rows
from strategies.core.context import RunContext
from strategies.core.metrics import Labels
from strategies.data.dataset import LabelledImage, groups_of, labels_of
from strategies.data.sampling import content_order
from strategies.models.backbone import Backbone, half_size
from strategies.models.multi_view import extract_views

MAX_IMAGES, PER_CLASS = 128, 8
"""What a class leans to is seen on about this many images, so many of a class or more."""
SMALLEST_PX = 96
_TINY = 1e-3


@dataclass(frozen=True)
class FlipAsymmetry:
    """How much alike the images of a class differ from their mirror images.

    Attributes
    ----------
    cosine
        Between the differences (activations of an image minus those of its mirror image) of two
        images of a class, mean over such pairs and over depths, in [-1, 1]: 0 on the average
        where a mirror image is as likely as the image, as of animals; above 0 where a class has
        a side, as letters have. Unbiased. Comparable between datasets on one backbone.
    noise
        Its standard deviation were the classes without sides; infinite if no class has two
        images.
    """

    cosine: float
    noise: float


UNSEEN = FlipAsymmetry(0.0, np.inf)
"""Where no two images tell."""


def measure_flip_asymmetry(
    images: Sequence[LabelledImage], backbone: Backbone, ctx: RunContext, *, any_size: bool
) -> FlipAsymmetry:
    """See by some of the images, at half the input size, whether their classes have sides.

    Parameters
    ----------
    any_size
        Whether the network takes smaller images too.

    Raises
    ------
    OutOfTime
        If the deadline passes first.
    """
    chosen = _some_of_each(images, ctx.seed)
    small = half_size(backbone, SMALLEST_PX) if any_size else backbone
    seen = extract_views(chosen, small, ctx, 2).mean
    return flip_asymmetry([both[:, 0] for both in seen], [both[:, 1] for both in seen], chosen)


def flip_asymmetry(
    plain: Sequence[Rows], mirrored: Sequence[Rows], images: Sequence[LabelledImage]
) -> FlipAsymmetry:
    """Compare activations of images, (n, d) for every depth, with those of their mirror images.

    Pairs within a group (duplicates, frames of one track) do not count.
    """
    labels, groups = labels_of(tuple(images)), groups_of(tuple(images))
    pairs = (labels[:, None] == labels) & (groups[:, None] != groups)
    if not pairs.any():
        return UNSEEN
    cosines = np.mean([_cosines(a, b) for a, b in zip(plain, mirrored, strict=True)], axis=0)
    terms = np.where(pairs, cosines, 0) / pairs.sum()
    between = _summed(_summed(terms, groups).T, groups)  # a group's differences have one sign
    return FlipAsymmetry(float(between.sum()), float(np.sqrt(2 * np.square(between).sum())))


def _cosines(plain: Rows, mirrored: Rows) -> NDArray[np.float64]:
    both = np.concatenate([plain, mirrored]).astype(np.float64)
    scale = both.std(axis=0) + _TINY * both.std()
    difference = (plain - mirrored) / np.where(scale > 0, scale, 1)
    length = np.linalg.norm(difference, axis=1, keepdims=True)
    unit = np.divide(difference, length, out=np.zeros_like(difference), where=length > 0)
    cosines: NDArray[np.float64] = unit @ unit.T
    return cosines


def _summed(terms: NDArray[np.float64], groups: Labels) -> NDArray[np.float64]:
    numbers = np.unique(groups, return_inverse=True)[1]
    total = np.zeros((numbers.max() + 1, terms.shape[1]))
    np.add.at(total, numbers, terms)
    return total


def _some_of_each(images: Sequence[LabelledImage], seed: int) -> tuple[LabelledImage, ...]:
    """Draw images of as many classes as there is room for, some of each."""
    by_class: dict[int, list[LabelledImage]] = {}
    for i in content_order((p.digest for p in images), seed):
        by_class.setdefault(images[i].label, []).append(images[i])
    quota = max(PER_CLASS, MAX_IMAGES // len(by_class))
    kept: list[LabelledImage] = []
    for own in by_class.values():
        kept += own[:quota]
        if len(kept) >= MAX_IMAGES:
            break
    return tuple(kept)
