"""Small or large, similar or different: where a dataset lies, and what the textbook says of it."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from advisor.types.advice import Domain, Quadrant, Size
from advisor.types.similarity import DomainSimilarity
from strategies.core.metrics import Interval

T = TypeVar("T")

SIMILAR_FROM = 0.5
"""Similarity from which a domain counts as similar: the middle of the measured range."""
SIMILARITY_TOLERANCE = 0.1
"""How far input size and compression can move a similarity (benchmarks/README-domain.md)."""
ENOUGH_PER_CLASS = 200
"""Images a class from which a class is well known: a convention; the sources name no number."""
SIZE_TOLERANCE = 0.15
"""Decades: a factor of 1.4 in the number of images is not worth a verdict."""

RULES: Mapping[tuple[Size, Domain], str] = {
    ("small", "similar"): "linear_probe",
    ("large", "similar"): "full_fine_tune",
    ("small", "different"): "layer_svm",
    ("large", "different"): "full_fine_tune",
    ("small", "unknown"): "linear_probe",
    ("large", "unknown"): "full_fine_tune",
}
"""CS231n's rule of thumb. Large and different: training from scratch is affordable there, but
starting from pretrained weights is still what it advises. Where the domain is unknown: the
cautious rule for the size."""


def size_position(class_sizes: Sequence[int], feature_width: int) -> Interval:
    """Place a dataset between small and large: decades above the border, 0 = on it.

    Two measures that need not agree are its ends, their mean is its middle:

    - all images against twice the feature width: with fewer, a linear head can fit more than
      half of all ways to label points in general position, right or wrong (Cover);
    - the harmonic mean of images per class against `ENOUGH_PER_CLASS`: the accuracy averaged
      over the classes is held back by the classes with the fewest.

    With many classes the second is the smaller one, with a wide network the first.

    References
    ----------
    T. M. Cover, Geometrical and statistical properties of systems of linear inequalities, 1965.
    """
    sizes = np.asarray(class_sizes, dtype=np.float64)
    if len(sizes) == 0 or sizes.min() < 1:
        raise ValueError(f"every class needs at least one image, got {class_sizes}")
    total = float(np.log10(sizes.sum() / (2 * feature_width)))
    a_class = float(np.log10(len(sizes) / np.sum(1 / sizes) / ENOUGH_PER_CLASS))
    return Interval(min(total, a_class), (total + a_class) / 2, max(total, a_class))


def find_quadrant(
    class_sizes: Sequence[int], feature_width: int, similarity: DomainSimilarity | None
) -> Quadrant:
    """Place a dataset on both axes and look up the rule.

    An axis is clear when its whole interval, and the tolerance around its middle, lie on one
    side; the rules of all places that it may be in stand as candidates.

    Parameters
    ----------
    class_sizes
        Images to learn from, class by class.
    feature_width
        Channels of the backbone's penultimate activations.
    """
    at = size_position(class_sizes, feature_width)
    size: Size = "large" if at.mid >= 0 else "small"
    sides: tuple[Size, Size] = ("small", "large")
    sizes = _possible(at, 0.0, SIZE_TOLERANCE, sides)
    if similarity is None:
        domain: Domain = "unknown"
        domains: list[Domain] = ["similar", "different"]
    else:
        domain = "similar" if similarity.score.mid >= SIMILAR_FROM else "different"
        both: tuple[Domain, Domain] = ("different", "similar")
        domains = _possible(similarity.score, SIMILAR_FROM, SIMILARITY_TOLERANCE, both)
    rule = RULES[size, domain]
    candidates = dict.fromkeys([rule, *(RULES[s, d] for s in sizes for d in domains)])
    return Quadrant(
        size=size,
        domain=domain,
        rule=rule,
        borderline=len(sizes) > 1 or (len(domains) > 1 and similarity is not None),
        candidates=tuple(candidates),
        size_decades=at,
        similarity=None if similarity is None else similarity.score,
    )


def _possible(at: Interval, border: float, tolerance: float, sides: tuple[T, T]) -> list[T]:
    """List the sides of the border, lower and upper, that a position may be on."""
    low = min(at.low, at.mid - tolerance)
    high = max(at.high, at.mid + tolerance)
    return [s for s, there in zip(sides, (low < border, high >= border), strict=True) if there]
