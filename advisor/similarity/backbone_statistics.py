"""Statistics of the backbone in use: what its own layers and its head make of the images.

They compare the backbone's activations with those on images of its pretraining domain: its running
statistics, or a reference. They exist where the backbone has BatchNorm layers, a reference or a
pretrained head, and are comparable between datasets on one backbone and input size only.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from advisor.similarity.bn_shift import (
    DRAWS,
    balanced,
    shift_intervals,
    small_sample_factor,
)
from advisor.similarity.kernel_distance import (
    bootstrap_kernel_distance,
    cubic_kernels,
    kernel_distance,
    permutation_p_value,
)
from advisor.similarity.reference import Reference
from advisor.similarity.source_head import head_evidence
from advisor.types.similarity import BackboneStatistics, HeadEvidence
from strategies.core.metrics import LEVEL, Interval, Labels
from strategies.data.sampling import balanced_rows
from strategies.models.features import Features

MAX_IMAGES = 1000
"""Largest number of images for the shift and the head, but at least one of every class."""
MAX_TESTED = 500
"""Largest number of images for the kernel distance and its permutation test."""
PERMUTATIONS = 999


def measure_backbone_statistics(
    features: Features,
    labels: Labels,
    classes: Sequence[str],
    *,
    input_px: int,
    reference: Reference | None,
    seed: int,
) -> BackboneStatistics:
    """Compare the activations of the backbone in use with those of its pretraining domain.

    Parameters
    ----------
    features
        Features of all images, from `extract_features`.
    labels
        Index into `classes` of every image, (n,).
    reference
        The user's own, or `shipped_reference`; None if there is neither.
    """
    rng = np.random.default_rng(seed)
    most = max(MAX_IMAGES, len(np.unique(labels)))
    rows = balanced_rows(labels, most, rng.permutation(len(labels)))
    labels = labels[rows]
    penultimate = features.pooled[-1][rows]
    kernel, p_value = _kernel_distance(penultimate, labels, reference, input_px, rng)
    shift: Interval | None = None
    per_depth: tuple[Interval | None, ...] = ()
    if features.moments is not None:
        source = reference.source(input_px) if reference else None
        m = features.moments
        moments = replace(m, mean=m.mean[rows], square=m.square[rows])
        shift, per_depth = shift_intervals(moments, labels, source, len(features.pooled), rng)
    return BackboneStatistics(
        reference="the network's running statistics" if reference is None else reference.name,
        shift_nats=shift,
        per_depth=per_depth,
        kernel_distance=kernel,
        p_value=p_value,
        head=_head_evidence(features, rows, labels, classes, reference, input_px),
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
    most = max(MAX_TESTED, len(np.unique(labels)))
    rows = balanced_rows(labels, most, rng.permutation(len(labels)))
    kernels = cubic_kernels(penultimate[rows], reference_features)
    weights = balanced(labels[rows])
    mid = kernel_distance(kernels, weights.share)
    scatter = bootstrap_kernel_distance(kernels, weights, DRAWS, rng) * small_sample_factor(
        weights
    )
    low, high = np.quantile(scatter, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    distance = Interval(mid + min(0.0, float(low)), mid, mid + max(0.0, float(high)))
    return distance, permutation_p_value(kernels, weights.share, PERMUTATIONS, rng)


def _head_evidence(
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
