"""Several backbones on one dataset: cross-validated probes on the same images, and their cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from advisor.measure.paired import paired_gain
from advisor.types.profile import BackboneScore
from strategies.core.context import RunContext
from strategies.data.dataset import LabelledImage, groups_of, labels_of
from strategies.heads.cross_validation import corrected_accuracy, cross_validate, fold_numbers
from strategies.models.backbone import Backbone
from strategies.models.features import extract_features


@dataclass(frozen=True)
class _Tried:
    backbone: Backbone
    hits: NDArray[np.bool_]
    score: BackboneScore


def compare_backbones(
    backbones: Sequence[Backbone], images: Sequence[LabelledImage], n_classes: int, ctx: RunContext
) -> tuple[BackboneScore, ...]:
    """Probe every backbone on the same images and folds; best first, equals by cost.

    A backbone is ranked above another only where it is better by more than chance, image by
    image; those that no other is clearly better than share rank 1, and the fastest of them
    stands first. So do those that only the ones above are clearly better than.

    Parameters
    ----------
    images
        Of train and validation; their labels are read.
    """
    chosen = tuple(images)
    labels = labels_of(chosen)
    folds = fold_numbers(labels, ctx.seed, groups=groups_of(chosen))
    tried = []
    for i, backbone in enumerate(backbones):
        features = extract_features(chosen, backbone, ctx)
        x = features.pooled[-1]
        found = cross_validate(x, labels, n_classes, folds=folds, device=ctx.device)
        score = BackboneScore(
            name=backbone.name,
            rank=0,
            accuracy=corrected_accuracy(found.correct, ctx.seed),
            behind_best=None,
            ms_per_image=features.ms_per_image,
            gmacs=backbone.gmacs,
            input_px=backbone.input_px,
        )
        tried.append(_Tried(backbone, found.correct[found.best], score))
        ctx.on_progress("backbones", i + 1, len(backbones))
    return _rank(tried)


def _rank(tried: list[_Tried]) -> tuple[BackboneScore, ...]:
    left = sorted(tried, key=lambda t: -float(t.hits.mean()))
    best, rank = left[0], 1
    ranked: list[BackboneScore] = []
    while left:
        leader = left[0]
        equal = [t for t in left if t is leader or paired_gain(leader.hits, t.hits).low <= 0]
        for t in sorted(equal, key=lambda t: t.score.ms_per_image):
            behind = None if t is best else paired_gain(best.hits, t.hits)
            s = t.score
            ranked.append(
                BackboneScore(
                    s.name, rank, s.accuracy, behind, s.ms_per_image, s.gmacs, s.input_px
                )
            )
        rank += len(equal)
        left = [t for t in left if all(t is not e for e in equal)]
    return tuple(ranked)


def why_first(ranked: Sequence[BackboneScore]) -> str:
    """Say in a clause why the first stands there, with numbers."""
    others = ranked[1:]
    listed = "; ".join(
        f"{s.name} {s.accuracy.percent()}, {s.ms_per_image:.1f} ms an image" for s in ranked
    )
    equals = sum(s.rank == 1 for s in others)
    if equals == len(others):
        why = "the fastest; none is better by more than chance"
    elif equals:
        why = "the fastest of those that nothing beats by more than chance"
    else:
        why = "better than the others by more than chance"
    return f"{why} on the same images: {listed}"
