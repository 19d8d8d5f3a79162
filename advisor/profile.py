"""measure(): a task and a backbone to the numbers that advice rests on."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from advisor.domain import measure_similarity
from advisor.evidence import Measured
from advisor.reference import Reference, shipped_reference
from advisor.similarity import DomainSimilarity
from advisor.types import ProbeResult, Profile
from strategies.core.backbone import Backbone
from strategies.core.features import Features, extract_features
from strategies.core.metrics import LEVEL, Interval, Labels, Scores
from strategies.core.probes import (
    CrossValidated,
    Loss,
    cheapest_within_error,
    corrected_accuracy,
    cross_validate,
    fold_numbers,
    temperature,
)
from strategies.core.run import RunContext
from strategies.core.task import ImageTask, Picture, groups_of, labels_of
from strategies.registry import STRATEGIES

MAX_MEASURED, MIN_PER_CLASS = 2000, 5
"""Probes and similarity are measured on at most this many pictures, but these many a class."""


def measure(
    task: ImageTask,
    backbone: Backbone,
    ctx: RunContext,
    reference: Reference | None = None,
) -> Profile:
    """Measure a task without training a network; see `examine`."""
    return examine(task, backbone, ctx, reference)[0]


def examine(
    task: ImageTask,
    backbone: Backbone,
    ctx: RunContext,
    reference: Reference | None = None,
) -> tuple[Profile, Measured]:
    """Measure a task without training a network, and keep what the data findings rest on.

    Parameters
    ----------
    reference
        The user's own pictures of the pretraining domain; default: what this program ships.

    Raises
    ------
    OutOfTime
        If the deadline passes during the pass over the pictures.
    """
    pictures = sample(task.fit_split, task.n_classes, ctx.seed)
    labels = labels_of(pictures)
    features = extract_features(pictures, backbone, ctx)
    folds = fold_numbers(labels, ctx.seed, groups=groups_of(pictures))
    probes, layer_svm, scores = _probe_depths(features, labels, task.n_classes, folds, ctx)
    measured = Measured(
        backbone.input_px, pictures, scores, train_features=features.pooled[-1], seed=ctx.seed
    )
    counts = np.bincount(labels_of(task.fit_split), minlength=task.n_classes)
    defaults = {name: strategy() for name, strategy in STRATEGIES.items()}
    reasons = {name: s.why_not(task, backbone) for name, s in defaults.items()}
    profile = Profile(
        n=len(task.fit_split),
        n_train=len(task.train),
        n_val=len(task.val),
        n_by_class=dict(zip(task.classes, counts.tolist(), strict=True)),
        imbalance=float(counts.max() / max(counts.min(), 1)),
        median_side_px=float(np.median([min(p.width_px, p.height_px) for p in pictures])),
        backbone=backbone.name,
        input_px=backbone.input_px,
        feature_width=backbone.depths[-1].channels,
        depth_names=tuple(d.name for d in backbone.depths),
        flops_shares=tuple(d.flops_share for d in backbone.depths),
        similarity=_similarity(features, labels, task, backbone, reference, ctx.seed),
        probes=probes,
        layer_svm=layer_svm,
        majority_share=float(counts.max() / counts.sum()),
        n_measured=len(pictures),
        ms_per_image=features.ms_per_image,
        image_passes={n: s.image_passes(task, backbone) for n, s in defaults.items()},
        why_not={name: reason for name, reason in reasons.items() if reason},
    )
    return profile, measured


def sample(split: Sequence[Picture], n_classes: int, seed: int) -> tuple[Picture, ...]:
    """Draw at most `MAX_MEASURED` pictures, each class in proportion but at least a few."""
    if len(split) <= MAX_MEASURED:
        return tuple(split)
    labels = labels_of(tuple(split))
    rng = np.random.default_rng(seed)
    kept: list[int] = []
    for label in range(n_classes):
        rows = np.flatnonzero(labels == label)
        quota = max(MIN_PER_CLASS, round(MAX_MEASURED * len(rows) / len(split)))
        kept += rng.permutation(rows)[:quota].tolist()
    return tuple(split[i] for i in sorted(kept))


def _similarity(
    features: Features,
    labels: Labels,
    task: ImageTask,
    backbone: Backbone,
    reference: Reference | None,
    seed: int,
) -> DomainSimilarity | None:
    if backbone.weights == "random":
        return None
    return measure_similarity(
        features,
        labels,
        task.classes,
        input_px=backbone.input_px,
        reference=reference or shipped_reference(backbone),
        seed=seed,
    )


def _probe_depths(
    features: Features,
    labels: Labels,
    n_classes: int,
    folds: NDArray[np.int64],
    ctx: RunContext,
) -> tuple[tuple[ProbeResult, ...], ProbeResult, Scores]:
    """Cross-validate softmax probes at the end and SVMs at every depth; choose an SVM's depth.

    Also return the calibrated out-of-fold scores of the first probe.
    """
    n_depths = len(features.pooled)
    plan: list[tuple[int, Loss]] = [(n_depths, "softmax"), (0, "softmax")]
    plan += [(depth, "squared_hinge") for depth in (*range(1, n_depths + 1), 0)]
    tried: list[CrossValidated] = []
    for i, (depth, loss) in enumerate(plan):
        x = features.at(range(1, n_depths + 1) if depth == 0 else [depth])
        tried.append(
            cross_validate(x, labels, n_classes, folds=folds, loss=loss, device=ctx.device)
        )
        ctx.on_progress("probes", i + 1, len(plan))
    hits = [t.correct[t.best] for t in tried]
    results = tuple(
        ProbeResult(
            depth,
            loss,
            corrected_accuracy(t.correct, ctx.seed),
            t.strengths[t.best],
            paired_gain(hit, hits[0]),
        )
        for (depth, loss), t, hit in zip(plan, tried, hits, strict=True)
    )
    svms = [i for i, (_, loss) in enumerate(plan) if loss == "squared_hinge"]
    chosen = svms[cheapest_within_error([hits[i] for i in svms])]
    every_setting = np.concatenate([tried[i].correct for i in svms])
    honest = corrected_accuracy(every_setting, ctx.seed)
    scores = tried[0].scores[tried[0].best]
    calibrated = scores / temperature(scores, labels)[0]
    return results, replace(results[chosen], accuracy=honest), calibrated


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
