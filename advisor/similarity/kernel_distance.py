"""Kernel distance (MMD) between the features of two samples of images, with a two-sample test."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from advisor.similarity.bn_shift import Weights, bootstrap_weights
from strategies.core.metrics import Scores

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Kernels:
    """Kernel matrices: images x images, images x reference, and reference x reference."""

    own: Vector
    cross: Vector
    reference: Vector


def cubic_kernels(features: Scores, reference: Scores) -> Kernels:
    """Compute the cubic kernel of KID, ``(x . y / d + 1) ** 3``, of scaled features.

    Features are divided by the root mean square of the reference, so that the result does not
    depend on the scale of a network's activations.

    References
    ----------
    M. Binkowski et al., Demystifying MMD GANs, ICLR 2018.
    """
    rms = float(np.sqrt(np.mean(np.square(reference, dtype=np.float64)))) or 1.0
    x, y = (np.asarray(f, dtype=np.float32) / np.float32(rms) for f in (features, reference))
    d = x.shape[1]

    def kernel(a: Scores, b: Scores) -> Vector:
        value: Vector = (a @ b.T).astype(np.float64) / d + 1
        return value**3

    return Kernels(kernel(x, x), kernel(x, y), kernel(y, y))


def mmd2(kernels: Kernels, share: Vector) -> float:
    """Return the unbiased squared maximum mean discrepancy.

    Its expected value is 0 for samples of one distribution, whatever their sizes, so it can be
    negative. Unbounded above. It is in units of the kernel; `kernel_distance` is normalised.

    Parameters
    ----------
    share
        Weight of every image; they sum to 1. Images of the reference have equal weights.

    References
    ----------
    A. Gretton et al., A kernel two-sample test, JMLR 2012.
    """
    own, reference, across = _mean_kernels(kernels, share)
    return own + reference - 2 * across


def kernel_distance(kernels: Kernels, share: Vector) -> float:
    """Return `mmd2` divided by its value for two samples with nothing in common.

    ``1 - 2 k(x, y) / (k(x, x') + k(y, y'))`` with mean kernels k. It is 0 on average for samples
    of one distribution (so it can be slightly negative), and at most 1 if the kernel is not
    negative.
    Comparable between datasets on one backbone. Without this division, a dataset of very similar
    images would seem farther from the reference than it is.
    """
    own, reference, across = _mean_kernels(kernels, share)
    return 1 - 2 * across / (own + reference)


def bootstrap_kernel_distance(
    kernels: Kernels, weights: Weights, draws: int, rng: np.random.Generator
) -> Vector:
    """Return bootstrap deviations of `kernel_distance` over samples of the images, (draws,).

    First order: the linear contribution of every image is resampled. The reference is fixed.
    """
    own, reference, across = _mean_kernels(kernels, weights.share)
    whole = own + reference
    to_own = kernels.own @ weights.share - np.diag(kernels.own) * weights.share
    to_own = 2 * to_own / (1 - weights.share)
    to_reference = kernels.cross.mean(axis=1)
    contribution = 2 * (across * to_own / whole - to_reference) / whole
    values = bootstrap_weights(weights, draws, rng) @ contribution
    scatter: Vector = values - values.mean()
    return scatter


def permutation_p_value(
    kernels: Kernels, share: Vector, permutations: int, rng: np.random.Generator
) -> float:
    """Return the probability of so large a distance if the images were drawn like the reference.

    In (0, 1]. The permutation test is exact: under this hypothesis, images and reference are
    exchangeable, whatever the weights.

    References
    ----------
    B. Phipson and G. K. Smyth, Permutation p-values should never be zero, 2010.
    """
    n, m = kernels.cross.shape
    joint = np.block([[kernels.own, kernels.cross], [kernels.cross.T, kernels.reference]])
    joint = joint.astype(np.float32)
    diagonal = np.diag(joint)
    signed_shares = np.concatenate([share, np.full(m, -1 / m)])
    orders = rng.permuted(np.tile(np.arange(n + m), (permutations, 1)), axis=1)
    signed = np.vstack([signed_shares, signed_shares[orders]]).astype(np.float32)
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
    """Return the mean kernel within the images, within the reference, and between them."""
    m = len(kernels.reference)
    return (
        _unbiased_mean(kernels.own, share),
        _unbiased_mean(kernels.reference, np.full(m, 1 / m)),
        float((share @ kernels.cross).mean()),
    )


def _unbiased_mean(kernel: Vector, share: Vector) -> float:
    """Return the weighted mean of the kernel over pairs of different images."""
    whole = share @ kernel @ share - np.square(share) @ np.diag(kernel)
    return float(whole / (1 - np.square(share).sum()))
