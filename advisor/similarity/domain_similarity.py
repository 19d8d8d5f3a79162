"""Domain similarity of a dataset to ImageNet, from the features of a pretrained network.

The moments at every BatchNorm layer are compared with those on the pretraining domain
(`advisor.similarity.bn_shift`). For a network without BatchNorm, the kernel distance of its
features to a reference is used (`advisor.similarity.kernel_distance`); without a reference, there
is no similarity. `advisor.similarity.calibration` maps either statistic to a similarity in [0, 1].
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from advisor.similarity.bn_shift import (
    SourceMoments,
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
from strategies.core.distributions import norm, student_t
from strategies.core.metrics import LEVEL, Interval, Labels
from strategies.models.bn_statistics import Vector
from strategies.models.features import Features, Moments

MAX_IMAGES = 1000
"""Largest number of images for the distances; more would change them by less than 0.01."""
MAX_TESTED = 500
"""Largest number of images for the kernel distance and its permutation test."""
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
    """Measure the similarity of a dataset to the pretraining domain.

    Parameters
    ----------
    features
        Features of all images, from `extract_features`.
    labels
        Index into `classes` of every image, (n,).
    reference
        The user's own, or `shipped_reference`; None if there is neither.

    Returns
    -------
    The similarity, or None if it cannot be measured: for a network without BatchNorm and without
    a reference at this input size.
    """
    rng = np.random.default_rng(seed)
    rows = balanced_rows(labels, MAX_IMAGES, rng)
    labels = labels[rows]
    penultimate = features.pooled[-1][rows]
    kernel, p_value = _kernel_distance(penultimate, labels, reference, input_px, rng)
    evidence = _evidence(features, rows, labels, classes, reference, input_px)
    compared = "the network's running statistics" if reference is None else reference.name
    if features.moments is not None:
        source = reference.source(input_px) if reference else None
        moments = _rows_of(features.moments, rows)
        shift, per_depth = shift_intervals(moments, labels, source, len(features.pooled), rng)
        calibration = calibrations()["bn_shift" if source else "bn_shift_running"]
        score, between = calibration.interval(shift), calibration.between(shift.mid)
        return DomainSimilarity(
            score, "bn_shift", compared, shift, per_depth, kernel, p_value, between, evidence
        )
    if kernel is None:
        return None
    calibration = calibrations()["kernel"]
    score, between = calibration.interval(kernel), calibration.between(kernel.mid)
    return DomainSimilarity(
        score, "kernel", compared, None, (), kernel, p_value, between, evidence
    )


def shift_intervals(
    moments: Moments,
    labels: Labels,
    source: SourceMoments | None,
    n_depths: int,
    rng: np.random.Generator,
) -> tuple[Interval, tuple[Interval | None, ...]]:
    """Estimate the mean BatchNorm shift in nats, over all layers and for every depth.

    Without a source, the shift is from the running statistics.
    """
    if source is None:
        channels = moments.mean.shape[1]
        source = SourceMoments(np.zeros(channels), np.ones(channels))
    weights = balanced(labels)
    mid = layer_shifts(moments, weights, source)
    scatter = bootstrap_layer_shifts(moments, weights, source, DRAWS, rng)
    scatter *= small_sample_factor(weights)
    per_depth: list[Interval | None] = []
    for depth in range(1, n_depths + 1):
        own = moments.layer_depth == depth
        per_depth.append(_shift_interval(mid[own], scatter[:, own]) if own.any() else None)
    return _shift_interval(mid, scatter), tuple(per_depth)


def small_sample_factor(weights: Weights) -> float:
    """Return the factor by which an interval widens because its variance is estimated.

    It is the ratio of Student's quantile to the normal one: 1 for many images, 1.05 for 20.
    """
    freedom = max(len(weights.share) - len(weights.sizes), 1)
    tail = 0.5 + LEVEL / 2
    return float(student_t.ppf(tail, freedom) / norm.ppf(tail))


def balanced_rows(labels: Labels, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw about `most` rows at random, as evenly over the classes as their sizes allow.

    At least one row of every class is drawn. Rows are sorted.
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


def _shift_interval(mid: Vector, scatter: Vector) -> Interval:
    """Return the mean over layers with its bootstrap interval, clipped at 0."""
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
    """Return the kernel distance to the reference and its p-value; None without a reference."""
    reference_features = reference.rows(input_px) if reference else None
    if reference_features is None:
        return None, None
    rows = balanced_rows(labels, MAX_TESTED, rng)
    kernels = cubic_kernels(penultimate[rows], reference_features)
    weights = balanced(labels[rows])
    mid = kernel_distance(kernels, weights.share)
    scatter = bootstrap_kernel_distance(kernels, weights, DRAWS, rng) * small_sample_factor(
        weights
    )
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
    """Return the evidence of the pretrained head; None if the network has none."""
    if features.source_head is None:
        return None
    confident_share = reference.confident_share.get(input_px) if reference else None
    penultimate = features.pooled[-1][rows]
    return head_evidence(features.source_head, penultimate, labels, classes, confident_share)


def _rows_of(moments: Moments, rows: NDArray[np.int64]) -> Moments:
    return Moments(
        moments.mean[rows],
        moments.square[rows],
        moments.layer,
        moments.layer_share,
        moments.layer_depth,
    )
