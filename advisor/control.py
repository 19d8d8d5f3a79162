"""What the pictures give without pretraining: the same network with random weights, and pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from advisor.types import ProbeResult
from strategies.core.backbone import Backbone
from strategies.core.features import Features, extract_features
from strategies.core.metrics import LEVEL, Interval, Scores
from strategies.core.probes import corrected_accuracy, cross_validate, fold_numbers
from strategies.core.run import RunContext
from strategies.core.sampling import content_order
from strategies.core.task import Picture, groups_of, labels_of

MAX_PICTURES, MIN_PER_CLASS = 256, 4
"""The control is measured on at most this many pictures, but on these many a class."""
STRENGTHS = (1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class Control:
    """Probes on random weights.

    Attributes
    ----------
    probes
        SVMs at every depth.
    gain
        Accuracy of the best pretrained depth minus that of the best random one, on the same
        pictures, in [-1, 1].
    """

    probes: tuple[ProbeResult, ...]
    gain: Interval


def measure_control(
    pictures: Sequence[Picture],
    pretrained: Features,
    n_classes: int,
    backbone: Backbone,
    ctx: RunContext,
) -> Control:
    """Probe the network with random weights on some of the pictures.

    A convolutional network is given them at half the side, which makes the control cost a quarter
    and leaves it what random filters can tell: texture and colour.

    Parameters
    ----------
    pretrained
        Features of all `pictures` with the pretrained weights.
    """
    rows = _some(pictures, ctx.seed)
    chosen = tuple(pictures[i] for i in rows)
    labels = labels_of(chosen)
    folds = fold_numbers(labels, ctx.seed, groups=groups_of(chosen))
    small = half_size(backbone) if any_size(pretrained) else backbone
    random = extract_features(chosen, small.with_random_weights(), ctx).pooled

    def hits(pooled: Scores) -> tuple[NDArray[np.bool_], int]:
        tried = cross_validate(
            pooled, labels, n_classes, folds=folds, loss="squared_hinge", strengths=STRENGTHS
        )
        right = tried.correct
        return right, int(right.mean(axis=1).argmax())

    without = [hits(pooled) for pooled in random]
    with_it = [hits(pooled[rows]) for pooled in pretrained.pooled]
    last, at = without[-1]
    probes = tuple(
        ProbeResult(
            depth + 1,
            "squared_hinge",
            corrected_accuracy(right, ctx.seed),
            STRENGTHS[best],
            paired_gain(right[best], last[at]),
        )
        for depth, (right, best) in enumerate(without)
    )
    return Control(probes, paired_gain(_best(with_it), _best(without)))


def any_size(features: Features) -> bool:
    """Whether the network takes pictures of any size: those with BatchNorm are convolutional."""
    return features.moments is not None


def half_size(backbone: Backbone, at_least_px: int = 32) -> Backbone:
    """Return the network for inputs of half the side, rounded up to whole strides of 32 pixels."""
    half_px = max(at_least_px, -(-backbone.input_px // 64) * 32)
    return replace(backbone, input_px=min(half_px, backbone.input_px))


def pixel_probe(pictures: Sequence[Picture], n_classes: int, seed: int) -> Interval | None:
    """Accuracy of a linear rule on the pictures as small grey thumbnails, by cross-validation.

    None where a picture was not looked at.
    """
    looks = [p.look for p in pictures]
    thumbs = [np.frombuffer(look.thumb, dtype=np.uint8) for look in looks if look is not None]
    if len(thumbs) < len(looks):
        return None
    labels = labels_of(tuple(pictures))
    folds = fold_numbers(labels, seed, groups=groups_of(tuple(pictures)))
    tried = cross_validate(
        np.stack(thumbs).astype(np.float32), labels, n_classes, folds=folds, strengths=STRENGTHS
    )
    return corrected_accuracy(tried.correct, seed)


def paired_gain(hits: NDArray[np.bool_], others: NDArray[np.bool_]) -> Interval:
    """Difference of two accuracies on the same pictures, in [-1, 1], with its interval.

    A normal interval on the discordant pairs, with Agresti and Min's half pair added to each side
    so that it keeps a width where the two never disagree.

    References
    ----------
    A. Agresti, Y. Min, Simple improved confidence intervals for comparing matched proportions,
    2005.
    """
    n = len(hits)
    gained, lost = np.sum(hits & ~others) + 0.5, np.sum(~hits & others) + 0.5
    gap = float(np.mean(hits) - np.mean(others))
    spread = np.sqrt(gained + lost - (gained - lost) ** 2 / (n + 2)) / (n + 2)
    half = float(spread * norm.ppf(0.5 + LEVEL / 2))
    return Interval(max(gap - half, -1.0), gap, min(gap + half, 1.0))


def _best(tried: list[tuple[NDArray[np.bool_], int]]) -> NDArray[np.bool_]:
    """Return the hits of the best depth and strength; both sides are equally optimistic so."""
    return max((right[best] for right, best in tried), key=np.mean)


def _some(pictures: Sequence[Picture], seed: int) -> NDArray[np.int64]:
    """Draw rows, each class in proportion but at least a few."""
    labels = labels_of(tuple(pictures))
    order = np.array(content_order((p.digest for p in pictures), seed))
    kept: list[int] = []
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        quota = max(MIN_PER_CLASS, round(MAX_PICTURES * len(rows) / len(labels)))
        kept += rows[:quota].tolist()
    return np.array(sorted(kept), dtype=np.int64)
