"""Principal-axes basis: standardise features and rotate them by PCA, for the solver.

Of more rows than fit, the coordinates are never formed: `StreamedRows` makes them chunk by chunk.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from strategies.core.metrics import Scores

_CHUNK, _MIN_CHUNK = 8192, 256
_CHUNK_NUMBERS = 1 << 21
"""Numbers of a streamed chunk: 8 MB stay in the processor's cache for both of its products."""
VARIANCE_PRIOR_ROWS = 30.0
"""Strength of the prior on a feature's variance, in rows: each variance is shrunk towards the mean
over all features that vary. In a small sample some features hardly vary; divided by their tiny
standard deviation, they would dominate on new images (docs/benchmarks/probes.md)."""


MAX_IN_MEMORY = 1 << 27
"""Maximum number of coordinates, and of scores of one fold, in memory: 0.5 GB. More are streamed,
if there are at least as many rows as features."""


@dataclass(frozen=True)
class StreamedRows:
    """Rows of coordinates that are made chunk by chunk from the features.

    Attributes
    ----------
    features
        Shape (n, d), also memory-mapped.
    mean, scale, vectors
        As in `Basis`.
    second_moments
        Sums of the squared coordinates, times the row weights, (r + 1,).
    """

    features: Scores
    mean: Tensor
    scale: Tensor
    vectors: Tensor
    second_moments: Tensor

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield centred features and a column of ones, (rows, d + 1), with their places."""
        n, d = self.features.shape
        n_rows = min(_CHUNK, max(_MIN_CHUNK, _CHUNK_NUMBERS // d))
        for start in range(0, n, n_rows):
            part = slice(start, start + n_rows)
            x = _tensor(self.features[part], self.mean.device)
            z = x.new_ones(len(x), d + 1)
            torch.sub(x, self.mean, out=z[:, :-1])
            yield part, z

    def to_features(self, v: Tensor) -> Tensor:
        """Return weights of the chunks' columns, (..., d + 1), for those of the coordinates."""
        return torch.cat([v[..., :-1] @ self.vectors.T / self.scale, v[..., -1:]], dim=-1)

    def to_coordinates(self, gradient: Tensor) -> Tensor:
        """Return the gradient by weights of coordinates for that by weights of the columns."""
        return torch.cat(
            [gradient[..., :-1] / self.scale @ self.vectors, gradient[..., -1:]], dim=-1
        )


@dataclass(frozen=True)
class Basis:
    """Standardised features in their principal axes, with the inverse transform.

    Attributes
    ----------
    coordinates
        ``((features - mean) / scale) @ axes`` and a column of ones, (n, r + 1). Their weighted
        second-moment matrix is diagonal; r is the numerical rank. Streamed if they do not fit.
    mean, scale
        Shape (d,) each.
    vectors, rows
        If d <= n: the axes, (d, r), and None. Otherwise: coefficients, (n, r), and the
        standardised features, (n, d); the axes ``rows.T @ vectors`` are never formed.
    """

    coordinates: Tensor | StreamedRows
    mean: Tensor
    scale: Tensor
    vectors: Tensor
    rows: Tensor | None

    def held_out_scores(
        self, solved: Iterable[Tensor], fold: Tensor, held_out: Sequence[int]
    ) -> Iterator[Tensor]:
        """Yield the scores of every row by the problem that holds out its fold, (n, classes).

        They are 0 for rows of other folds.

        Parameters
        ----------
        solved
            Weights (classes, problems, r + 1), of one strength after the other.
        """
        x = self.coordinates
        places = [(fold == k).nonzero()[:, 0] for k in held_out]
        rows = [x[p] for p in places] if isinstance(x, Tensor) else []
        for v in solved:
            scores = v.new_zeros(len(fold), len(v))
            if isinstance(x, Tensor):
                for problem, own in enumerate(places):
                    scores[own] = rows[problem] @ v[:, problem].T
            else:
                weights = x.to_features(v)
                for part, z in x.chunks():
                    for problem, k in enumerate(held_out):
                        own = (fold[part] == k).nonzero()[:, 0]
                        scores[part][own] = z[own] @ weights[:, problem].T
            yield scores

    def to_raw_features(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Transform weights of the coordinates, (classes, r + 1), for use on raw features.

        Return weights, (classes, d), and biases, (classes,).
        """
        rotated = v[:, :-1] @ self.vectors.T
        weight = (rotated if self.rows is None else rotated @ self.rows) / self.scale
        return weight, v[:, -1] - weight @ self.mean


def principal_axes(
    features: Scores, row_weights: Tensor, *, n_classes: int = 1, exact: bool = True
) -> Basis:
    """Standardise features, scale the rows to unit mean squared norm, and find the principal axes.

    Variances are shrunk towards their mean by a prior worth `VARIANCE_PRIOR_ROWS` rows. Constant
    features get no weight.

    Parameters
    ----------
    features
        Shape (n, d).
    row_weights
        Weight of every row, (n,), all above 0, on the device to compute on.
    n_classes
        Number of scores per row that the solver needs.
    exact
        Whether to find the axes in float64, which separates axes of small variance from rounding
        errors. float32 is twice as fast.
    """
    n, d = features.shape
    if n * max(d, n_classes) > MAX_IN_MEMORY and d <= n:
        return _streamed_axes(features, row_weights, exact)
    x = _tensor(features, row_weights.device)
    share = (row_weights.double() / row_weights.sum())[:, None]
    mean = sum_over_rows(lambda rows, s: (rows.double() * s).sum(0), x, share).float()
    x = x - mean
    variance = sum_over_rows(lambda rows, s: (rows.square() * s).sum(0), x, share).float()
    scale = _scale(variance, row_weights)
    x /= scale
    root = (share * n).sqrt()
    if d <= n:
        gram = sum_over_rows(lambda rows, s: ((rows * s).T @ (rows * s)).double(), x, root.float())
    else:
        weighted = x * root.float()
        gram = (weighted @ weighted.T).double()
    values, vectors = _eigenvectors(gram, exact)
    coordinates = x.new_ones(n, len(values) + 1)
    if d <= n:
        coordinates[:, :-1] = x @ vectors.float()
        return Basis(coordinates, mean, scale, vectors.float(), None)
    coordinates[:, :-1] = vectors * values.sqrt() / root
    return Basis(coordinates, mean, scale, (root * vectors / values.sqrt()).float(), x)


def _streamed_axes(features: Scores, row_weights: Tensor, exact: bool) -> Basis:
    """Find the principal axes in two passes over the rows: of the mean, and of second moments."""
    n, d = features.shape
    device = row_weights.device
    share = (row_weights.double() / row_weights.sum())[:, None]
    total, gram = (torch.zeros(size, dtype=torch.float64, device=device) for size in (d, (d, d)))
    parts = [slice(start, start + _CHUNK) for start in range(0, n, _CHUNK)]
    for part in parts:
        total += (_tensor(features[part], device).double() * share[part]).sum(0)
    mean = total.float()
    for part in parts:
        x = (_tensor(features[part], device) - mean) * (share[part] * n).sqrt().float()
        gram += (x.T @ x).double()
    scale = _scale((gram.diagonal() / n).float(), row_weights)
    gram /= torch.outer(scale, scale)
    values, vectors = _eigenvectors(gram, exact)
    second_moments = row_weights.sum() * torch.cat([values / n, values.new_ones(1)]).float()
    rows = StreamedRows(features, mean, scale, vectors.float(), second_moments)
    return Basis(rows, mean, scale, vectors.float(), None)


def _tensor(features: Scores, device: torch.device) -> Tensor:
    return torch.as_tensor(np.asarray(features, dtype=np.float32), device=device)


def _scale(variance: Tensor, row_weights: Tensor) -> Tensor:
    """Return what features of these variances are divided by, (d,); infinite for constants."""
    varies = variance > 1e-12 * (variance.max() + 1e-24)
    prior = variance.sum() / varies.sum().clamp_min(1)
    shrunk = (row_weights.sum() * variance + VARIANCE_PRIOR_ROWS * prior) / (
        row_weights.sum() + VARIANCE_PRIOR_ROWS
    )
    length = (variance / shrunk)[varies].sum().sqrt()
    return torch.where(varies, shrunk.sqrt() * length, torch.inf)


def _eigenvectors(gram: Tensor, exact: bool) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues above rounding errors, and their vectors as columns."""
    try:
        values, vectors = torch.linalg.eigh(gram if exact else gram.float())
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        if exact:
            raise
        # In single precision LAPACK sometimes finds no eigenvalues of images that look alike.
        values, vectors = (found.float() for found in torch.linalg.eigh(gram))
    kept = values > (1e-8 if exact else 1e-6) * values[-1].clamp_min(1e-30)
    return values[kept], vectors[:, kept]


def sum_over_rows(part: Callable[[Tensor, Tensor], Tensor], x: Tensor, share: Tensor) -> Tensor:
    """Sum ``part(rows, share)`` over chunks of `_CHUNK` rows, to bound the memory."""
    pieces = zip(torch.split(x, _CHUNK), torch.split(share, _CHUNK), strict=True)
    return functools.reduce(torch.add, (part(rows, s) for rows, s in pieces))
