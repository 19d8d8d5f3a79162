"""How far the images are from ImageNet, as the pretrained network sees them: pure numerics.

Moments at every BatchNorm layer are compared with those of the pretraining domain
(`advisor.similarity.bn_shift`). A network without BatchNorm is judged by the kernel
distance of its features to a reference (`advisor.similarity.kernel_distance`), or not at all.
`calibration.json` maps either statistic to a similarity between 0 and 1;
``benchmarks/fit_domain.py`` wrote it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student_t

from advisor.similarity.bn_shift import (
    Source,
    Vector,
    Weights,
    balanced,
    bootstrap_layer_shifts,
    layer_shifts,
)
from advisor.similarity.calibration import calibrations
from advisor.similarity.kernel_distance import (
    bootstrap_kernel_distance,
    cubic_kernels,
    kernel_distance,
    permutation_p_value,
)
from advisor.similarity.reference import Reference
from advisor.similarity.source_head import head_evidence
from advisor.types.similarity import DomainSimilarity, HeadEvidence
from strategies.core.metrics import LEVEL, Interval, Labels
from strategies.models.features import Features, Moments

MAX_IMAGES = 1000
"""Distances are measured on at most this many images; more would move them by less than 0.01."""
MAX_TESTED = 500
"""The permutation test is given at most this many images."""
DRAWS, PERMUTATIONS = 200, 999


def measure_similarity(
    features: Features,
    labels: Labels,
    classes: Sequence[str],
    *,
    input_px: int,
    reference: Reference | None,
    seed: int,
) -> DomainSimilarity | None:
    """Score how near a dataset is to the pretraining domain, with all the evidence.

    Parameters
    ----------
    features
        Of all images, from `extract_features`.
    labels
        Index into `classes` of every image, (n,).
    reference
        The user's, or `shipped_reference`; None where there is neither.

    Returns
    -------
    None for a network without BatchNorm and without a reference at this input size: then nothing
    can be said.
    """
    rng = np.random.default_rng(seed)
    rows = balanced_rows(labels, MAX_IMAGES, rng)
    labels = labels[rows]
    penultimate = features.pooled[-1][rows]
    kernel, p_value = _kernel_distance(penultimate, labels, reference, input_px, rng)
    evidence = _evidence(features, rows, labels, classes, reference, input_px)
    known = "the network's running statistics" if reference is None else reference.name
    if features.moments is not None:
        source = reference.source(input_px) if reference else None
        moments = _rows_of(features.moments, rows)
        shift, per_depth = shift_intervals(moments, labels, source, len(features.pooled), rng)
        scale = calibrations()["bn_shift" if source else "bn_shift_running"]
        score, between = scale.interval(shift), scale.between(shift.mid)
        return DomainSimilarity(
            score, "bn_shift", known, shift, per_depth, kernel, p_value, between, evidence
        )
    if kernel is None:
        return None
    scale = calibrations()["kernel"]
    score, between = scale.interval(kernel), scale.between(kernel.mid)
    return DomainSimilarity(score, "kernel", known, None, (), kernel, p_value, between, evidence)


def shift_intervals(
    moments: Moments,
    labels: Labels,
    source: Source | None,
    n_depths: int,
    rng: np.random.Generator,
) -> tuple[Interval, tuple[Interval | None, ...]]:
    """Estimate the mean BatchNorm shift in nats, over all layers and for every depth."""
    if source is None:
        channels = moments.mean.shape[1]
        source = Source(np.zeros(channels), np.ones(channels))
    weights = balanced(labels)
    mid = layer_shifts(moments, weights, source)
    scatter = bootstrap_layer_shifts(moments, weights, source, DRAWS, rng)
    scatter *= few_images(weights)
    per_depth: list[Interval | None] = []
    for depth in range(1, n_depths + 1):
        own = moments.layer_depth == depth
        per_depth.append(_around(mid[own], scatter[:, own]) if own.any() else None)
    return _around(mid, scatter), tuple(per_depth)


def few_images(weights: Weights) -> float:
    """Return how much wider an interval must be because the spread itself is estimated.

    The ratio of Student's quantile to the normal one: 1 for many images, 1.05 for 20.
    """
    freedom = max(len(weights.share) - len(weights.sizes), 1)
    tail = 0.5 + LEVEL / 2
    return float(student_t.ppf(tail, freedom) / norm.ppf(tail))


def balanced_rows(labels: Labels, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Choose at most about `most` rows at random, as evenly over the classes as they allow.

    One of every class is always kept. Rows ascend.
    """
    if len(labels) <= most:
        return np.arange(len(labels))
    order = rng.permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        rank[rows] = np.arange(len(rows))
    chosen = order[np.argsort(rank[order], kind="stable")]
    n_first = int((rank == 0).sum())
    return np.sort(chosen[: max(most, n_first)])


def _around(mid: Vector, scatter: Vector) -> Interval:
    """Place the scatter of the mean over layers around its estimate; a shift is not negative."""
    value, spread = float(mid.mean()), scatter.mean(axis=1)
    low, high = np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(
        max(0.0, value + min(0.0, float(low))),
        max(0.0, value),
        max(0.0, value + max(0.0, float(high))),
    )


def _kernel_distance(
    penultimate: NDArray[np.float32],
    labels: Labels,
    reference: Reference | None,
    input_px: int,
    rng: np.random.Generator,
) -> tuple[Interval | None, float | None]:
    known = reference.rows(input_px) if reference else None
    if known is None:
        return None, None
    rows = balanced_rows(labels, MAX_TESTED, rng)
    kernels = cubic_kernels(penultimate[rows], known)
    weights = balanced(labels[rows])
    mid = kernel_distance(kernels, weights.share)
    scatter = bootstrap_kernel_distance(kernels, weights, DRAWS, rng) * few_images(weights)
    low, high = np.quantile(scatter, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    distance = Interval(mid + min(0.0, float(low)), mid, mid + max(0.0, float(high)))
    return distance, permutation_p_value(kernels, weights.share, PERMUTATIONS, rng)


def _evidence(
    features: Features,
    rows: NDArray[np.int64],
    labels: Labels,
    classes: Sequence[str],
    reference: Reference | None,
    input_px: int,
) -> HeadEvidence | None:
    if features.source_head is None:
        return None
    known = reference.confident_share.get(input_px) if reference else None
    return head_evidence(features.source_head, features.pooled[-1][rows], labels, classes, known)


def _rows_of(moments: Moments, rows: NDArray[np.int64]) -> Moments:
    return Moments(
        moments.mean[rows],
        moments.square[rows],
        moments.layer,
        moments.layer_share,
        moments.layer_depth,
    )
