"""Quadrant of a dataset (small or large, similar or different domain) and its rule of thumb."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from advisor.types.advice import Domain, Quadrant, Size
from strategies.core.metrics import Interval

T = TypeVar("T")

SIMILAR_FROM = 0.5
"""A domain counts as similar from this similarity on: the middle of the measured range."""
SIMILARITY_TOLERANCE = 0.1
"""How much colour and compression can change a similarity (docs/benchmarks/similarity.md)."""
ENOUGH_PER_CLASS = 200
"""Images per class that count as many: a convention, as the sources name no number."""
SIZE_TOLERANCE = 0.15
"""In decades: a factor of 1.4 in the number of images is too small to decide the size."""

RULES: Mapping[tuple[Size, Domain], str] = {
    ("small", "similar"): "linear_probe",
    ("large", "similar"): "full_fine_tune",
    ("small", "different"): "layer_svm",
    ("large", "different"): "full_fine_tune",
}
"""CS231n's rule of thumb. For large and different datasets, training from scratch is affordable,
but the rule still recommends to start from pretrained weights."""


def size_position(class_sizes: Sequence[int], feature_width: int) -> Interval:
    """Return a position on the size axis, in decades: 0 is the threshold, above it large.

    Two measures, which need not agree, are the ends of the interval; their mean is its middle:

    - all images, relative to twice the feature width: with fewer images, a linear head can fit
      more than half of all ways to label points in general position, right or wrong (Cover);
    - the harmonic mean of images per class, relative to `ENOUGH_PER_CLASS`: the classes with the
      fewest images limit the mean per-class accuracy.

    With many classes the second is the smaller one, with a wide network the first.

    References
    ----------
    T. M. Cover, Geometrical and statistical properties of systems of linear inequalities, 1965.
    """
    sizes = np.asarray(class_sizes, dtype=np.float64)
    if len(sizes) == 0 or sizes.min() < 1:
        raise ValueError(f"every class needs at least one image, got {class_sizes}")
    total = float(np.log10(sizes.sum() / (2 * feature_width)))
    per_class = float(np.log10(len(sizes) / np.sum(1 / sizes) / ENOUGH_PER_CLASS))
    return Interval(min(total, per_class), (total + per_class) / 2, max(total, per_class))


def find_quadrant(
    class_sizes: Sequence[int], feature_width: int, similarity: Interval
) -> Quadrant:
    """Place a dataset on both axes and look up the rule of thumb.

    An axis is clear if its whole interval, and the tolerance around its middle, are on one side of
    the threshold. The candidates are the rules of all quadrants that the dataset may be in.

    Parameters
    ----------
    class_sizes
        Images of train and validation by class.
    feature_width
        Channels of the backbone's penultimate activations.
    similarity
        Domain similarity, in [0, 1].
    """
    position = size_position(class_sizes, feature_width)
    size: Size = "large" if position.mid >= 0 else "small"
    sides: tuple[Size, Size] = ("small", "large")
    sizes = _possible_sides(position, 0.0, SIZE_TOLERANCE, sides)
    domain: Domain = "similar" if similarity.mid >= SIMILAR_FROM else "different"
    both: tuple[Domain, Domain] = ("different", "similar")
    domains = _possible_sides(similarity, SIMILAR_FROM, SIMILARITY_TOLERANCE, both)
    rule = RULES[size, domain]
    candidates = dict.fromkeys([rule, *(RULES[s, d] for s in sizes for d in domains)])
    return Quadrant(
        size=size,
        domain=domain,
        rule=rule,
        borderline=len(sizes) > 1 or len(domains) > 1,
        candidates=tuple(candidates),
        size_decades=position,
        similarity=similarity,
    )


def _possible_sides(
    position: Interval, threshold: float, tolerance: float, sides: tuple[T, T]
) -> list[T]:
    """Return the sides of the threshold (lower, upper) that a position may be on."""
    low = min(position.low, position.mid - tolerance)
    high = max(position.high, position.mid + tolerance)
    return [
        s
        for s, possible in zip(sides, (low < threshold, high >= threshold), strict=True)
        if possible
    ]
