"""Class means and shrunk covariance of features: what the unknown score needs of training images.

References
----------
O. Ledoit, M. Wolf, A well-conditioned estimator for large-dimensional covariance matrices, Journal
of Multivariate Analysis 2004.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from strategies.core.cache import Rows
from strategies.core.metrics import Labels
from strategies.models.reliability.graph import TINY, unit_rows

MAX_AXES, MIN_AXES, MAX_AXIS_VALUES = 256, 16, 1 << 20
"""Principal axes that are kept: at most 256, and fewer if these have more values than 4 MB."""
Tensors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class ShrunkCovariance:
    """A covariance whose variances differ only along some axes.

    Attributes
    ----------
    axes
        Orthonormal, (d, k).
    variances
        Along the axes, (k,).
    rest
        Variance in every other direction.
    """

    axes: NDArray[np.float32]
    variances: NDArray[np.float64]
    rest: float


def feature_statistics(features: Rows, labels: Labels, widths: Sequence[int]) -> Tensors:
    """Return the buffers of `graph.UnknownScore` that depend on features of training images.

    Parameters
    ----------
    features, labels
        Mean-pooled activations of some depths, (n, d), and the class of every image, (n,).
        Classes without an image are left out.
    widths
        Number of features of every depth.
    """
    rows = unit_rows(torch.from_numpy(features.astype(np.float32)), widths).numpy()
    present, index = np.unique(labels, return_inverse=True)
    means, centre = class_means(rows, index, len(present)), rows.mean(axis=0)
    residuals = rows - means[index]
    if not np.any(residuals):  # a single image of every class
        residuals = rows - centre
    covariance = shrunk_covariance(residuals)
    offsets = (means - centre).astype(np.float64)
    along = offsets @ covariance.axes
    rest = offsets - along @ covariance.axes.T
    class_rows = (along / covariance.variances) @ covariance.axes.T + rest / covariance.rest
    gram = class_rows @ offsets.T
    found = {
        "centre": centre,
        "axes": covariance.axes,
        "inverse_sd": 1 / np.sqrt(np.append(covariance.variances, covariance.rest)),
        "class_rows": class_rows,
        "class_norms": np.diag(gram),
        "between": _explained((gram + gram.T) / 2, np.bincount(index) / len(labels)),
    }
    return {name: np.ascontiguousarray(x, dtype=np.float32) for name, x in found.items()}


def class_means(rows: Rows, index: Labels, n: int) -> Rows:
    """Return the mean row of each of `n` classes, (n, d)."""
    return np.stack([rows[index == c].mean(axis=0) for c in range(n)])


def shrunk_covariance(residuals: Rows) -> ShrunkCovariance:
    """Return the covariance of centred rows, (n, d), shrunk to equal variances (Ledoit-Wolf)."""
    n, d = residuals.shape
    x = residuals.astype(np.float64)
    gram = x @ x.T if n <= d else x.T @ x
    values, vectors = np.linalg.eigh(gram)
    values, vectors = np.maximum(values[::-1], 0) / n, vectors[:, ::-1]
    most = min(MAX_AXES, max(MIN_AXES, MAX_AXIS_VALUES // d))
    k = int(min(most, d - 1, np.count_nonzero(values > 1e-9 * values[0])))
    axes = vectors[:, :k] if n > d else x.T @ vectors[:, :k] / np.sqrt(n * values[:k])
    mean = values.sum() / d
    shrinkage = ledoit_wolf_shrinkage(x, values)
    variances = (1 - shrinkage) * values[:k] + shrinkage * mean
    rest = (1 - shrinkage) * values[k:].sum() / (d - k) + shrinkage * mean
    return ShrunkCovariance(axes.astype(np.float32), variances, max(rest, 1e-9 * mean, TINY))


def ledoit_wolf_shrinkage(x: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """Return the share of the equal variances in the shrunk covariance of centred rows, 0 to 1.

    As ``sklearn.covariance.ledoit_wolf_shrinkage``, from the eigenvalues of the covariance: the
    (d, d) matrix is never formed, which has gigabytes where a head reads many depths.
    """
    n, d = x.shape
    square = float((values**2).sum())
    spread = square - values.sum() ** 2 / d
    noise = float(((x**2).sum(axis=1) ** 2).mean() - square) / n
    return 1.0 if spread <= 0 else float(np.clip(noise / spread, 0, 1))


def _explained(gram: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `UnknownScore.between`, from the products of the whitened class means.

    With the covariance within classes S and the class means, weighted by the roots of their
    shares, as columns of A, the covariance of all images is S + A A'. By the Woodbury identity its
    inverse is P - P A (I + A' P A)^-1 A' P, where P is the inverse of S.
    """
    root = np.sqrt(shares)
    values, vectors = np.linalg.eigh(np.eye(len(gram)) + root[:, None] * gram * root)
    explained: NDArray[np.float64] = root[:, None] * vectors / np.sqrt(values)
    return explained
