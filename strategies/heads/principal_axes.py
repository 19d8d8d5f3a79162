"""Principal-axes basis: standardise features and rotate them by PCA, for the solver."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from strategies.core.metrics import Scores

_CHUNK = 8192
VARIANCE_PRIOR_ROWS = 30.0
"""Strength of the prior on a feature's variance, in rows: each variance is shrunk towards the mean
over all features that vary. In a small sample some features hardly vary; divided by their tiny
standard deviation, they would dominate on new images (benchmarks/README-probes.md)."""


@dataclass(frozen=True)
class Basis:
    """Standardised features in their principal axes, with the inverse transform.

    Attributes
    ----------
    coordinates
        ``((features - mean) / scale) @ axes`` and a column of ones, (n, r + 1). Their weighted
        second-moment matrix is diagonal; r is the numerical rank.
    mean, scale
        Shape (d,) each.
    vectors, rows
        If d <= n: the axes, (d, r), and None. Otherwise: coefficients, (n, r), and the
        standardised features, (n, d); the axes ``rows.T @ vectors`` are never formed.
    """

    coordinates: Tensor
    mean: Tensor
    scale: Tensor
    vectors: Tensor
    rows: Tensor | None

    def to_raw_features(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Transform weights of the coordinates, (classes, r + 1), for use on raw features.

        Return weights, (classes, d), and biases, (classes,).
        """
        rotated = v[:, :-1] @ self.vectors.T
        weight = (rotated if self.rows is None else rotated @ self.rows) / self.scale
        return weight, v[:, -1] - weight @ self.mean


def principal_axes(features: Scores, row_weights: Tensor, *, exact: bool = True) -> Basis:
    """Standardise features, scale the rows to unit mean squared norm, and find the principal axes.

    Variances are shrunk towards their mean by a prior worth `VARIANCE_PRIOR_ROWS` rows. Constant
    features get no weight.

    Parameters
    ----------
    features
        Shape (n, d).
    row_weights
        Weight of every row, (n,), all above 0, on the device to compute on.
    exact
        Whether to find the axes in float64, which separates axes of small variance from rounding
        errors. float32 is twice as fast.
    """
    x = torch.as_tensor(np.asarray(features, dtype=np.float32), device=row_weights.device)
    share = (row_weights.double() / row_weights.sum())[:, None]
    mean = sum_over_rows(lambda rows, s: (rows.double() * s).sum(0), x, share).float()
    x = x - mean
    variance = sum_over_rows(lambda rows, s: (rows.square() * s).sum(0), x, share).float()
    varies = variance > 1e-12 * (variance.max() + 1e-24)
    prior = variance.sum() / varies.sum().clamp_min(1)
    shrunk = (row_weights.sum() * variance + VARIANCE_PRIOR_ROWS * prior) / (
        row_weights.sum() + VARIANCE_PRIOR_ROWS
    )
    length = (variance / shrunk)[varies].sum().sqrt()
    scale = torch.where(varies, shrunk.sqrt() * length, torch.inf)
    x /= scale
    n, d = x.shape
    root = (share * n).sqrt()
    if d <= n:
        gram = sum_over_rows(lambda rows, s: ((rows * s).T @ (rows * s)).double(), x, root.float())
    else:
        weighted = x * root.float()
        gram = (weighted @ weighted.T).double()
    values, vectors = torch.linalg.eigh(gram if exact else gram.float())
    kept = values > (1e-8 if exact else 1e-6) * values[-1].clamp_min(1e-30)
    values, vectors = values[kept], vectors[:, kept]
    coordinates = x.new_ones(n, len(values) + 1)
    if d <= n:
        coordinates[:, :-1] = x @ vectors.float()
        return Basis(coordinates, mean, scale, vectors.float(), None)
    coordinates[:, :-1] = vectors * values.sqrt() / root
    return Basis(coordinates, mean, scale, (root * vectors / values.sqrt()).float(), x)


def sum_over_rows(part: Callable[[Tensor, Tensor], Tensor], x: Tensor, share: Tensor) -> Tensor:
    """Sum ``part(rows, share)`` over chunks of `_CHUNK` rows, to bound the memory."""
    pieces = zip(torch.split(x, _CHUNK), torch.split(share, _CHUNK), strict=True)
    return functools.reduce(torch.add, (part(rows, s) for rows, s in pieces))
