"""What the images give without pretraining: the same network with random weights, and pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from advisor.measure.paired import loss_gain, paired_gain
from advisor.types.profile import ProbeResult
from strategies.core.context import RunContext
from strategies.core.metrics import Interval, Scores
from strategies.data.dataset import LabelledImage, groups_of, labels_of
from strategies.data.sampling import content_order
from strategies.heads.cross_validation import (
    CrossValidated,
    corrected_accuracy,
    cross_validate,
    fold_numbers,
)
from strategies.models.backbone import Backbone, half_size
from strategies.models.features import Features, extract_features

MAX_IMAGES, MIN_PER_CLASS = 256, 4
"""The control is measured on at most this many images, but on these many per class."""
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
        images, in [-1, 1].
    """

    probes: tuple[ProbeResult, ...]
    gain: Interval


def measure_control(
    images: Sequence[LabelledImage],
    pretrained: Features,
    n_classes: int,
    backbone: Backbone,
    ctx: RunContext,
) -> Control:
    """Probe the network with random weights on some of the images.

    A convolutional network is given them at half the side, which makes the control cost a quarter
    and leaves it what random filters can tell: texture and colour.

    Parameters
    ----------
    pretrained
        Features of all `images` with the pretrained weights.
    """
    rows = _some(images, ctx.seed)
    chosen = tuple(images[i] for i in rows)
    labels = labels_of(chosen)
    folds = fold_numbers(labels, ctx.seed, groups=groups_of(chosen))
    small = half_size(backbone) if pretrained.any_size else backbone
    random = extract_features(chosen, small.with_random_weights(), ctx).pooled

    def judged(pooled: Scores) -> CrossValidated:
        return cross_validate(
            pooled, labels, n_classes, folds=folds, loss="squared_hinge", strengths=STRENGTHS
        )

    without = [judged(pooled) for pooled in random]
    with_it = [judged(pooled[rows]) for pooled in pretrained.pooled]
    last = without[-1]
    probes = tuple(
        ProbeResult(
            depth + 1,
            "squared_hinge",
            corrected_accuracy(t.correct, ctx.seed),
            STRENGTHS[_most_hits(t)],
            paired_gain(_best_hits(t), _best_hits(last)),
            loss_gain(t.losses, last.losses),
        )
        for depth, t in enumerate(without)
    )
    return Control(probes, paired_gain(_best(with_it), _best(without)))


def pixel_probe(images: Sequence[LabelledImage], n_classes: int, seed: int) -> Interval | None:
    """Accuracy of a linear rule on the images as small grey thumbnails, by cross-validation.

    None where an image was not looked at.
    """
    with_stats = [p.stats for p in images]
    thumbs = [
        np.frombuffer(stats.thumb, dtype=np.uint8) for stats in with_stats if stats is not None
    ]
    if len(thumbs) < len(with_stats):
        return None
    labels = labels_of(tuple(images))
    folds = fold_numbers(labels, seed, groups=groups_of(tuple(images)))
    tried = cross_validate(
        np.stack(thumbs).astype(np.float32), labels, n_classes, folds=folds, strengths=STRENGTHS
    )
    return corrected_accuracy(tried.correct, seed)


def _best(tried: Sequence[CrossValidated]) -> NDArray[np.bool_]:
    """Return the hits of the best depth and strength; both sides are equally optimistic so."""
    return max((_best_hits(t) for t in tried), key=np.mean)


def _best_hits(tried: CrossValidated) -> NDArray[np.bool_]:
    hits: NDArray[np.bool_] = tried.correct[_most_hits(tried)]
    return hits


def _most_hits(tried: CrossValidated) -> int:
    return int(tried.correct.mean(axis=1).argmax())


def _some(images: Sequence[LabelledImage], seed: int) -> NDArray[np.int64]:
    """Draw rows, each class in proportion but at least a few."""
    labels = labels_of(tuple(images))
    order = np.array(content_order((p.digest for p in images), seed))
    kept: list[int] = []
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        quota = max(MIN_PER_CLASS, round(MAX_IMAGES * len(rows) / len(labels)))
        kept += rows[:quota].tolist()
    return np.array(sorted(kept), dtype=np.int64)
