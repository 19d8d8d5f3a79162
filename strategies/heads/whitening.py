"""Features in their principal axes, where the curvature of a linear head's loss is diagonal."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from strategies.core.metrics import Scores

_CHUNK = 8192
ALIKE = 30.0
"""What is known of a feature's variance beforehand, in rows: that it is as usual among features.
A few images show some features hardly at all; divided by their spread there, they would drown
all others on the images to come (benchmarks/README-probes.md)."""


@dataclass(frozen=True)
class Basis:
    """Standardised features in their principal axes, with what undoes it.

    Attributes
    ----------
    coordinates
        ``((features - mean) / scale) @ axes`` and a column of ones, (n, r + 1). The weighted mean
        of their outer products is diagonal.
    mean, scale
        Shape (d,) each.
    vectors, rows
        The axes, (d, r), and None; or, where there are fewer images than features, (n, r) and
        the standardised features, (n, d): the axes are ``rows.T @ vectors``, never multiplied out.
    """

    coordinates: Tensor
    mean: Tensor
    scale: Tensor
    vectors: Tensor
    rows: Tensor | None

    def on_features(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights of raw features, (classes, d), and biases for (classes, r + 1)."""
        along = v[:, :-1] @ self.vectors.T
        weight = (along if self.rows is None else along @ self.rows) / self.scale
        return weight, v[:, -1] - weight @ self.mean


def principal_axes(features: Scores, row_weights: Tensor, *, exact: bool = True) -> Basis:
    """Standardise features, scale them to unit mean squared length, find their principal axes.

    Variances are drawn to their mean, as by `ALIKE` rows; features without any count for nothing.

    Parameters
    ----------
    features
        Shape (n, d).
    row_weights
        What every row counts, (n,), all above 0, on the device to work on.
    exact
        Whether axes of next to no variance are told from rounding; twice as fast if not.
    """
    x = torch.as_tensor(np.asarray(features, dtype=np.float32), device=row_weights.device)
    share = (row_weights.double() / row_weights.sum())[:, None]
    mean = total_over(lambda rows, s: (rows.double() * s).sum(0), x, share).float()
    x = x - mean
    variance = total_over(lambda rows, s: (rows.square() * s).sum(0), x, share).float()
    shown = variance > 1e-12 * (variance.max() + 1e-24)
    prior = variance.sum() / shown.sum().clamp_min(1)
    drawn = (row_weights.sum() * variance + ALIKE * prior) / (row_weights.sum() + ALIKE)
    length = (variance / drawn)[shown].sum().sqrt()
    scale = torch.where(shown, drawn.sqrt() * length, torch.inf)
    x /= scale
    n, d = x.shape
    root = (share * n).sqrt()
    if d <= n:
        gram = total_over(lambda rows, s: ((rows * s).T @ (rows * s)).double(), x, root.float())
    else:
        weighed = x * root.float()
        gram = (weighed @ weighed.T).double()
    values, vectors = torch.linalg.eigh(gram if exact else gram.float())
    kept = values > (1e-8 if exact else 1e-6) * values[-1].clamp_min(1e-30)
    values, vectors = values[kept], vectors[:, kept]
    coordinates = x.new_ones(n, len(values) + 1)
    if d <= n:
        coordinates[:, :-1] = x @ vectors.float()
        return Basis(coordinates, mean, scale, vectors.float(), None)
    coordinates[:, :-1] = vectors * values.sqrt() / root
    return Basis(coordinates, mean, scale, (root * vectors / values.sqrt()).float(), x)


def total_over(part: Callable[[Tensor, Tensor], Tensor], x: Tensor, share: Tensor) -> Tensor:
    """Sum something over the rows, some thousands at a time, so that memory stays bounded."""
    pieces = zip(torch.split(x, _CHUNK), torch.split(share, _CHUNK), strict=True)
    return functools.reduce(torch.add, (part(rows, s) for rows, s in pieces))
