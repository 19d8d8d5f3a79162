"""One convex solver for all linear heads: every fold and class of a problem together.

All problems share their features, so one limited-memory quasi-Newton method runs them side by
side: two matrix products a step hold every fold and class. In the basis of the features' principal
axes the curvature of the loss is bounded by a *diagonal* matrix (Boehning's bound), which is where
the method's picture of the curvature starts from. Scores are linear in the weights, so the line
search costs no matrix product.

References
----------
D. Boehning, Multinomial logistic regression algorithm, 1992. J. Nocedal, Updating quasi-Newton
matrices with limited storage, 1980.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from strategies.core.metrics import Scores

Loss = Literal["softmax", "squared_hinge"]

MAX_STEPS, TOLERANCE = 200, 1e-3
MEMORY = 8
"""Pairs of steps and gradient changes that the curvature is estimated from."""
MAX_HELD = 1 << 26
"""Scores (rows x folds x classes) held at once; folds are solved one after the other beyond it."""
_CHUNK = 8192
_DECREASE = 1e-4


@dataclass(frozen=True)
class Basis:
    """Standardised features in their principal axes, with what undoes it.

    Attributes
    ----------
    coordinates
        ``((features - mean) / scale) @ axes`` and a column of ones, (n, r + 1). The weighted mean
        of their outer products is diagonal.
    axes, mean, scale
        Shapes (d, r), (d,) and (d,).
    """

    coordinates: Tensor
    axes: Tensor
    mean: Tensor
    scale: Tensor


def principal_axes(features: Scores, row_weights: Tensor) -> Basis:
    """Standardise features, scale them to unit mean squared length, find their principal axes.

    Parameters
    ----------
    features
        Shape (n, d).
    row_weights
        What every row counts, (n,), on the device to work on.
    """
    x = torch.as_tensor(np.asarray(features, dtype=np.float32), device=row_weights.device)
    share = (row_weights.double() / row_weights.sum())[:, None]
    mean = _total(lambda rows, s: (rows.double() * s).sum(0), x, share).float()
    x = x - mean
    std = _total(lambda rows, s: (rows.square() * s).sum(0), x, share).sqrt().float()
    scale = torch.where(std > 1e-6 * (std.max() + 1e-12), std, torch.inf) * x.shape[1] ** 0.5
    x /= scale
    n, d = x.shape
    root = (share * n).sqrt().float()
    if d <= n:
        gram = _total(lambda rows, s: ((rows * s).T @ (rows * s)).double(), x, root)
    else:
        gram = ((x * root) @ (x * root).T).double()
    values, vectors = torch.linalg.eigh(gram)
    kept = values > 1e-8 * values[-1].clamp_min(1e-30)
    values, vectors = values[kept], vectors[:, kept]
    if d > n:
        vectors = ((x * root).T.double() @ vectors) / values.sqrt()
    axes = vectors.float()
    coordinates = x.new_ones(n, axes.shape[1] + 1)
    coordinates[:, :-1] = x @ axes
    return Basis(coordinates, axes, mean, scale)


def solve_path(
    x: Tensor,
    labels: Tensor,
    n_classes: int,
    weights: Tensor,
    loss: Loss,
    strengths: Sequence[float],
    tolerance: float = TOLERANCE,
) -> list[Tensor]:
    """Minimise mean loss + strength/2 * |w|^2 for every row of sample weights, strong to weak.

    Parameters
    ----------
    x
        Coordinates of a `Basis`, (n, r + 1).
    weights
        What every row counts in every problem, (problems, n): what it counted in the basis, or 0.
    tolerance
        Size of the gradient, as a share of what it was at the start, that is small enough.

    Returns
    -------
    For every strength the weights, (r + 1, problems, classes); the last row, the bias, is free.
    """
    at_once = max(1, MAX_HELD // (len(x) * n_classes))
    parts = [
        _solve_together(x, labels, n_classes, some, loss, strengths, tolerance)
        for some in torch.split(weights, at_once)
    ]
    return [torch.cat(found, dim=1) for found in zip(*parts, strict=True)]


def _solve_together(
    x: Tensor,
    labels: Tensor,
    n_classes: int,
    weights: Tensor,
    loss: Loss,
    strengths: Sequence[float],
    tolerance: float,
) -> list[Tensor]:
    """Follow the path for some problems at once; parameters and results as in `solve_path`."""
    total = weights.sum(1).clamp_min(1e-12)
    problem = _Problem(x, labels, (weights / total[:, None]).T.contiguous(), n_classes, loss)
    heaviest = _total(lambda rows, s: rows.square().T @ s, x, weights.amax(0)[:, None])
    bound = 0.5 if loss == "softmax" else 2.0
    curvature = (bound * heaviest / total)[:, :, None]
    penalised = x.new_ones(x.shape[1], 1, 1)
    penalised[-1] = 0
    v = x.new_zeros(x.shape[1], len(weights), n_classes)
    here = _evaluate(problem, 0 * penalised, v, problem.scores(v))
    pairs: list[_Pair] = []
    enough, before, path = None, 0.0, []
    for strength in strengths:
        # What was learnt of the curvature at one strength holds at the next, up to the penalty.
        more = (strength - before) * penalised
        here = _penalise(here, more, loss)
        scale = 1 / (curvature + strength * penalised).clamp_min(1e-30)
        pairs = [_pair(p.moved, p.changed + more * p.moved, scale, loss) for p in pairs]
        if enough is None:
            enough = tolerance**2 * _dot(here.slope * scale, here.slope, loss).clamp_min(1e-12)
        here = _minimise(problem, strength * penalised, scale, here, pairs, enough)
        path.append(here.v)
        before = strength
    return path


@dataclass(frozen=True)
class _Problem:
    """Rows (n, r), labels (n,), shares of rows in problems (n, problems): what to fit to what."""

    x: Tensor
    labels: Tensor
    share: Tensor
    n_classes: int
    loss: Loss

    def scores(self, v: Tensor) -> Tensor:
        """Return the scores, (n, problems, classes)."""
        return (self.x @ v.flatten(1)).view(len(self.x), *v.shape[1:])

    def fit_of(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss of every group, and its derivative by the scores."""
        share = self.share[:, :, None]
        own = self.labels[:, None, None].expand(-1, scores.shape[1], 1)
        if self.loss == "softmax":
            level = scores.logsumexp(2, keepdim=True)
            value = (share * (level - scores.gather(2, own))).sum(0, keepdim=True)
            slope = (scores - level).exp_()
            slope.scatter_add_(2, own, slope.new_full((1, 1, 1), -1.0).expand(own.shape))
            return value, slope.mul_(share)
        sign = torch.full_like(scores, -1.0).scatter_(2, own, 1.0)
        short = (1 - sign * scores).clamp_min_(0)
        value = (share * short.square()).sum(0, keepdim=True)
        return value, sign.mul_(short).mul_(-2 * share)


@dataclass(frozen=True)
class _Point:
    """Where a search stands: weights, their scores, the objective by group, its slope."""

    v: Tensor
    scores: Tensor
    value: Tensor
    slope: Tensor


def _dot(a: Tensor, b: Tensor, loss: Loss) -> Tensor:
    """Return the inner products group by group, (1, problems, 1 or classes).

    The classes of one fold are one group under the softmax, groups of their own otherwise.
    """
    return (a * b).sum((0, 2) if loss == "softmax" else 0, keepdim=True)


@dataclass(frozen=True)
class _Pair:
    """A step, how the gradient changed along it, and one over their inner product (0: no use)."""

    moved: Tensor
    changed: Tensor
    inverse: Tensor


def _pair(moved: Tensor, changed: Tensor, scale: Tensor, loss: Loss) -> _Pair:
    along = _dot(moved, changed, loss)
    # Groups that rest, or whose change is lost in rounding, teach nothing.
    known = along > 1e-12 * _dot(changed * scale, changed, loss)
    return _Pair(moved, changed, torch.where(known, 1 / along, 0.0))


def _evaluate(problem: _Problem, penalty: Tensor, v: Tensor, scores: Tensor) -> _Point:
    value, by_score = problem.fit_of(scores)
    slope = (problem.x.T @ by_score.flatten(1)).view(v.shape).add_(penalty * v)
    return _Point(v, scores, value + 0.5 * _dot(penalty * v, v, problem.loss), slope)


def _penalise(here: _Point, more: Tensor, loss: Loss) -> _Point:
    """Return the same weights under a penalty that is `more` than it was."""
    pull = more * here.v
    return _Point(
        here.v, here.scores, here.value + 0.5 * _dot(pull, here.v, loss), here.slope + pull
    )


def _minimise(
    problem: _Problem,
    penalty: Tensor,
    scale: Tensor,
    start: _Point,
    pairs: list[_Pair],
    enough: Tensor,
) -> _Point:
    """Take quasi-Newton steps until the gradient of every group is small; finished groups rest.

    `pairs` is added to.
    """
    here = start
    for _ in range(MAX_STEPS):
        moving = _dot(here.slope * scale, here.slope, problem.loss) > enough
        if not moving.any():
            break
        step = -_curved(here.slope, scale, pairs, problem.loss) * moving
        there = _search_line(problem, penalty, here, step)
        pairs.append(_pair(there.v - here.v, there.slope - here.slope, scale, problem.loss))
        del pairs[:-MEMORY]
        here = there
    return here


def _curved(slope: Tensor, scale: Tensor, pairs: list[_Pair], loss: Loss) -> Tensor:
    """Multiply a gradient by the estimated inverse curvature (the two-loop recursion)."""
    q = slope
    shares = []
    for pair in reversed(pairs):
        share = pair.inverse * _dot(pair.moved, q, loss)
        q = q - share * pair.changed
        shares.append(share)
    q = q * scale
    if pairs:
        last = pairs[-1]
        stretch = 1 / (last.inverse * _dot(last.changed * scale, last.changed, loss))
        q = q * torch.where(last.inverse > 0, stretch, 1.0)
    for pair, share in zip(pairs, reversed(shares), strict=True):
        q = q + pair.moved * (share - pair.inverse * _dot(pair.changed, q, loss))
    return q


def _search_line(problem: _Problem, penalty: Tensor, here: _Point, step: Tensor) -> _Point:
    """Go along `step`, group by group as far as the objective falls as it should."""
    loss = problem.loss
    across = problem.scores(step)
    descent = _dot(here.slope, step, loss)
    bend, tilt = _dot(penalty * step, step, loss), _dot(penalty * here.v, step, loss)
    resting = _dot(penalty * here.v, here.v, loss)
    length = torch.ones_like(descent)
    for _ in range(20):
        scores = here.scores + length * across
        value, by_score = problem.fit_of(scores)
        value = value + 0.5 * (resting + 2 * length * tilt + length**2 * bend)
        allowed = here.value + _DECREASE * length * descent
        high = value > allowed + 1e-6 * here.value.abs()
        if not high.any():
            break
        # The minimum of the parabola through what is known, kept within a tenth and a half.
        best = -descent * length**2 / (2 * (value - here.value - length * descent))
        length = torch.where(high, best.clamp(0.1 * length, 0.5 * length), length)
    v = here.v + length * step
    slope = (problem.x.T @ by_score.flatten(1)).view(v.shape).add_(penalty * v)
    return _Point(v, scores, value, slope)


def _total(part: Callable[[Tensor, Tensor], Tensor], x: Tensor, share: Tensor) -> Tensor:
    """Sum something over the rows, some thousands at a time, so that memory stays bounded."""
    pieces = zip(torch.split(x, _CHUNK), torch.split(share, _CHUNK), strict=True)
    return functools.reduce(torch.add, (part(rows, s) for rows, s in pieces))
