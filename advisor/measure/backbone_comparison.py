"""Comparison of backbones: cross-validated linear probes on the same images, and their cost."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from advisor.measure.paired import paired_gain
from advisor.types.profile import BackboneScore
from strategies.core.context import RunContext
from strategies.core.folds import fold_numbers
from strategies.data.dataset import LabelledImage, groups_of, labels_of
from strategies.heads.cross_validation import corrected_accuracy, cross_validate
from strategies.models.backbone import Backbone
from strategies.models.features import extract_features


@dataclass(frozen=True)
class _Probed:
    """A backbone, which images its probe classifies correctly, and its score (without a rank)."""

    backbone: Backbone
    hits: NDArray[np.bool_]
    score: BackboneScore


def compare_backbones(
    backbones: Sequence[Backbone], images: Sequence[LabelledImage], n_classes: int, ctx: RunContext
) -> tuple[BackboneScore, ...]:
    """Probe every backbone on the same images and folds, and rank them; best first.

    Beside the probe stands the rank by size, the larger network first. timm's accuracies on
    ImageNet, the other half of that baseline, are not part of its package.

    The most accurate backbone and those that are not significantly worse, paired by image, share
    rank 1; the fastest of them is first. The remaining backbones are ranked in the same way.

    Parameters
    ----------
    images
        Labelled images of train and validation.

    References
    ----------
    On the baseline: P. Singh, S. Hess, J. Vanschoren, How NOT to benchmark your SITE metric, 2025.
    There, a fixed order by size ranked backbones better than LogME and similar scores.
    """
    chosen = tuple(images)
    labels = labels_of(chosen)
    folds = fold_numbers(labels, ctx.seed, groups=groups_of(chosen))
    probed = []
    for i, backbone in enumerate(backbones):
        features = extract_features(chosen, backbone, ctx)
        x = features.pooled[-1]
        result = cross_validate(x, labels, n_classes, folds=folds, device=ctx.head_device)
        score = BackboneScore(
            name=backbone.name,
            rank=0,
            accuracy=corrected_accuracy(result.correct, ctx.seed),
            behind_best=None,
            ms_per_image=features.ms_per_image,
            gmacs=backbone.gmacs,
            input_px=backbone.input_px,
            params_m=backbone.params_m,
            size_rank=1 + sum(other.params_m > backbone.params_m for other in backbones),
        )
        probed.append(_Probed(backbone, result.correct[result.best], score))
        ctx.reporter.on_progress("backbones", i + 1, len(backbones))
    return _rank(probed)


def _rank(probed: list[_Probed]) -> tuple[BackboneScore, ...]:
    """Give equal ranks to backbones that do not differ significantly, fastest first."""
    left = sorted(probed, key=lambda p: -float(p.hits.mean()))
    best, rank = left[0], 1
    ranked: list[BackboneScore] = []
    while left:
        first = left[0]
        equal = [p for p in left if p is first or paired_gain(first.hits, p.hits).low <= 0]
        for p in sorted(equal, key=lambda p: p.score.ms_per_image):
            behind = None if p is best else paired_gain(best.hits, p.hits)
            ranked.append(replace(p.score, rank=rank, behind_best=behind))
        rank += len(equal)
        left = [p for p in left if all(p is not e for e in equal)]
    return tuple(ranked)


def comparison_rationale(ranked: Sequence[BackboneScore]) -> str:
    """Return a clause on why the first backbone was chosen, with numbers."""
    others = ranked[1:]
    listed = "; ".join(
        f"{s.name} {s.accuracy.percent()}, {s.ms_per_image:.1f} ms per image" for s in ranked
    )
    equals = sum(s.rank == 1 for s in others)
    if equals == len(others):
        why = "the fastest; no other is significantly better"
    elif equals:
        why = "the fastest of those that no other is significantly better than"
    else:
        why = "significantly better than the others"
    return f"{why} on the same images: {listed}"
