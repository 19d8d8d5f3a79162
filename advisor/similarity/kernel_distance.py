"""Kernel distance: whether two samples of features could come from one distribution."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from advisor.similarity.bn_shift import Weights, resampled
from strategies.core.metrics import Scores

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Kernels:
    """Kernel values within the images, between them and the reference, and within it."""

    own: Vector
    cross: Vector
    reference: Vector


def cubic_kernels(features: Scores, reference: Scores) -> Kernels:
    """Return KID's kernel ``(x . y / d + 1) ** 3`` of features in units of the reference's size.

    Dividing by the root mean square of the reference makes networks of any scale comparable.

    References
    ----------
    M. Binkowski et al., Demystifying MMD GANs, ICLR 2018.
    """
    size = float(np.sqrt(np.mean(np.square(reference, dtype=np.float64)))) or 1.0
    x, y = (np.asarray(f, dtype=np.float32) / np.float32(size) for f in (features, reference))
    d = x.shape[1]

    def kernel(a: Scores, b: Scores) -> Vector:
        value: Vector = (a @ b.T).astype(np.float64) / d + 1
        return value**3

    return Kernels(kernel(x, x), kernel(x, y), kernel(y, y))


def mmd2(kernels: Kernels, share: Vector) -> float:
    """Squared maximum mean discrepancy, unbiased.

    0 on average for samples of one distribution, whatever their number (so it can be negative);
    unbounded above. In units of the kernel: see `kernel_distance` for one that compares.

    Parameters
    ----------
    share
        Weight of every image, sums to 1. The reference's weigh the same.

    References
    ----------
    A. Gretton et al., A kernel two-sample test, JMLR 2012.
    """
    own, reference, across = _mean_kernels(kernels, share)
    return own + reference - 2 * across


def kernel_distance(kernels: Kernels, share: Vector) -> float:
    """`mmd2` as a share of what it would be if the two samples had nothing in common.

    ``1 - 2 k(x, y) / (k(x, x') + k(y, y'))`` of mean kernels: 0 on average for samples of one
    distribution (so it can be slightly negative), at most 1 where the kernel is not negative.
    Comparable between datasets on one backbone. Without this division a set of images that are
    all alike would look farther than its place in feature space.
    """
    own, reference, across = _mean_kernels(kernels, share)
    return 1 - 2 * across / (own + reference)


def bootstrap_kernel_distance(
    kernels: Kernels, weights: Weights, draws: int, rng: np.random.Generator
) -> Vector:
    """Return how `kernel_distance` scatters over samples of the images, shape (draws,).

    First-order: every image's own contribution is resampled. The reference is held fixed.
    """
    own, reference, across = _mean_kernels(kernels, weights.share)
    whole = own + reference
    to_own = kernels.own @ weights.share - np.diag(kernels.own) * weights.share
    to_own = 2 * to_own / (1 - weights.share)
    to_reference = kernels.cross.mean(axis=1)
    contribution = 2 * (across * to_own / whole - to_reference) / whole
    values = resampled(weights, draws, rng) @ contribution
    scatter: Vector = values - values.mean()
    return scatter


def permutation_p_value(
    kernels: Kernels, share: Vector, permutations: int, rng: np.random.Generator
) -> float:
    """Chance of so large a distance if the images were drawn like the reference.

    In (0, 1]. Exact: images and reference are exchangeable under that hypothesis, whatever
    weights their places carry.

    References
    ----------
    B. Phipson and G. K. Smyth, Permutation p-values should never be zero, 2010.
    """
    n, m = kernels.cross.shape
    joint = np.block([[kernels.own, kernels.cross], [kernels.cross.T, kernels.reference]])
    joint = joint.astype(np.float32)
    diagonal = np.diag(joint)
    places = np.concatenate([share, np.full(m, -1 / m)])
    orders = rng.permuted(np.tile(np.arange(n + m), (permutations, 1)), axis=1)
    signed = np.vstack([places, places[orders]]).astype(np.float32)
    first = np.arange(n + m) < n
    is_first = np.vstack([first, first[orders]])
    own_scale, m_scale = 1 / (1 - np.square(share).sum()), m / (m - 1)
    x, y = np.where(is_first, signed, 0), np.where(is_first, 0, signed)
    across = x @ joint
    within = np.einsum("pi,pi->p", across, x) - np.square(x) @ diagonal
    reference = np.einsum("pi,pi->p", y @ joint, y) - np.square(y) @ diagonal
    distance = own_scale * within + m_scale * reference + 2 * np.einsum("pi,pi->p", across, y)
    return float((1 + np.sum(distance[1:] >= distance[0])) / (1 + permutations))


def _mean_kernels(kernels: Kernels, share: Vector) -> tuple[float, float, float]:
    """Mean kernel of two images, of two of the reference, and of one of each."""
    m = len(kernels.reference)
    return (
        _unbiased_mean(kernels.own, share),
        _unbiased_mean(kernels.reference, np.full(m, 1 / m)),
        float((share @ kernels.cross).mean()),
    )


def _unbiased_mean(kernel: Vector, share: Vector) -> float:
    """Mean kernel of two different images."""
    whole = share @ kernel @ share - np.square(share) @ np.diag(kernel)
    return float(whole / (1 - np.square(share).sum()))
