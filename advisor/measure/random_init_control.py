"""Random-init control and pixel baseline: probe accuracy without pretrained weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from advisor.measure.paired import loss_gain, paired_gain
from advisor.types.profile import ProbeResult
from strategies.core.context import RunContext
from strategies.core.folds import fold_numbers
from strategies.core.metrics import Interval, Scores
from strategies.data.dataset import LabelledImage, groups_of, labels_of
from strategies.data.sampling import stratified_rows
from strategies.heads.cross_validation import CrossValidated, corrected_accuracy, cross_validate
from strategies.models.backbone import Backbone, half_size
from strategies.models.features import Features, extract_features

MAX_IMAGES, MIN_PER_CLASS = 256, 4
"""Sample for the control: at most this many images, but at least 4 per class."""
STRENGTHS = (1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class RandomInitControl:
    """Probes of the same network with random weights, compared with pretrained weights.

    Attributes
    ----------
    probes
        SVMs at every depth.
    gain
        Accuracy at the best pretrained depth minus that at the best random depth, on the same
        images, in [-1, 1].
    """

    probes: tuple[ProbeResult, ...]
    gain: Interval


def measure_random_init_control(
    images: Sequence[LabelledImage],
    pretrained: Features,
    n_classes: int,
    backbone: Backbone,
    ctx: RunContext,
) -> RandomInitControl:
    """Probe the network with random weights on a sample of the images.

    It gets them at half the input size, if it takes that. The control then costs a quarter, and
    random filters still capture what they can: texture and colour.

    Parameters
    ----------
    pretrained
        Features of all `images` with pretrained weights.
    """
    rows = stratified_rows(images, MAX_IMAGES, MIN_PER_CLASS, ctx.seed)
    chosen = tuple(images[i] for i in rows)
    labels = labels_of(chosen)
    folds = fold_numbers(labels, ctx.seed, groups=groups_of(chosen))
    small = half_size(backbone)
    random = extract_features(chosen, small.with_random_weights(), ctx).pooled

    def probe(pooled: Scores) -> CrossValidated:
        return cross_validate(
            pooled, labels, n_classes, folds=folds, loss="squared_hinge", strengths=STRENGTHS
        )

    random_results = [probe(pooled) for pooled in random]
    pretrained_results = [probe(pooled[rows]) for pooled in pretrained.pooled]
    last = random_results[-1]
    probes = tuple(
        ProbeResult(
            depth + 1,
            "squared_hinge",
            corrected_accuracy(r.correct, ctx.seed),
            STRENGTHS[_best_strength(r)],
            paired_gain(_best_hits(r), _best_hits(last)),
            loss_gain(r.losses, last.losses),
        )
        for depth, r in enumerate(random_results)
    )
    gain = paired_gain(_best_depth_hits(pretrained_results), _best_depth_hits(random_results))
    return RandomInitControl(probes, gain)


def pixel_probe(images: Sequence[LabelledImage], n_classes: int, seed: int) -> Interval | None:
    """Return the cross-validated accuracy of a linear classifier on small greyscale thumbnails.

    None if an image has no thumbnail.
    """
    all_stats = [p.stats for p in images]
    thumbs = [np.frombuffer(s.thumb, dtype=np.uint8) for s in all_stats if s is not None]
    if len(thumbs) < len(all_stats):
        return None
    labels = labels_of(tuple(images))
    folds = fold_numbers(labels, seed, groups=groups_of(tuple(images)))
    result = cross_validate(
        np.stack(thumbs).astype(np.float32), labels, n_classes, folds=folds, strengths=STRENGTHS
    )
    return corrected_accuracy(result.correct, seed)


def _best_depth_hits(results: Sequence[CrossValidated]) -> NDArray[np.bool_]:
    """Return which images are correct at the best depth and strength.

    Pretrained and random weights are chosen from in the same way, so both are equally optimistic.
    """
    return max((_best_hits(r) for r in results), key=np.mean)


def _best_hits(result: CrossValidated) -> NDArray[np.bool_]:
    """Return which images are correct at the most accurate strength."""
    hits: NDArray[np.bool_] = result.correct[_best_strength(result)]
    return hits


def _best_strength(result: CrossValidated) -> int:
    """Return the index of the most accurate strength."""
    return int(result.correct.mean(axis=1).argmax())
