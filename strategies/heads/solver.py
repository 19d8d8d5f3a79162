"""Batched L-BFGS for linear softmax and squared-hinge heads: L2 paths of all folds at once.

A problem is the fit to one weighting of the samples, for example to one fold's training rows. All
problems share their features, so one limited-memory quasi-Newton method solves them together, with
two matrix products per step for all folds and classes. In the principal axes of the features the
curvature of the loss is bounded by a *diagonal* matrix (Boehning's bound). The same matrix, with
the current mean second derivative of the loss instead of its bound, scales the initial Hessian
approximation. Scores are linear in the weights, so the line search needs no matrix product; where
they do not fit in memory, it needs a pass over the rows instead.

References
----------
D. Boehning, Multinomial logistic regression algorithm, 1992. J. Nocedal, Updating quasi-Newton
matrices with limited storage, 1980.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from strategies.heads.batches import Batch, Loss, Point, RowsInMemory, StreamedBatch
from strategies.heads.principal_axes import StreamedRows

MAX_STEPS, TOLERANCE = 200, 1e-3
MEMORY = 8
"""Number of pairs (step, gradient change) from which the curvature is estimated."""
MAX_SCORES = 1 << 26
"""Maximum number of scores (rows x folds x classes) in memory; with more, the folds are split into
chunks of at least one fold."""
CURVATURE_BOUND = {"softmax": 0.5, "squared_hinge": 2.0}
"""Upper bound of the second derivative of each loss with respect to a score."""
_SUFFICIENT_DECREASE = 1e-4
"""Armijo constant of the line search."""


def solve_path(
    x: Tensor | StreamedRows,
    labels: Tensor,
    n_classes: int,
    weights: Tensor,
    loss: Loss,
    strengths: Sequence[float],
    tolerance: float = TOLERANCE,
) -> list[Tensor]:
    """Minimise mean loss + strength/2 * |w|^2 for every problem and each of the strengths.

    Each solution starts from that of the previous strength.

    Parameters
    ----------
    x
        Coordinates of a `Basis`, (n, r + 1), in memory or streamed.
    weights
        Sample weights of every problem, (problems, n): the row weights of the basis, or 0 for
        rows that are left out.
    strengths
        L2 penalties, in decreasing order.
    tolerance
        Norm of the gradient (scaled by the curvature bound), relative to its value at zero
        weights, at which to stop.

    Returns
    -------
    For every strength the weights, (classes, problems, r + 1). The last one of the r + 1 is the
    bias, which is not penalised.
    """
    in_memory = n_classes * (len(labels) if isinstance(x, Tensor) else 1)
    chunk = max(1, MAX_SCORES // in_memory)
    parts = [
        _solve_batch(x, labels, n_classes, some, loss, strengths, tolerance)
        for some in torch.split(weights, chunk)
    ]
    return [torch.cat(solutions, dim=1) for solutions in zip(*parts, strict=True)]


def _solve_batch(
    x: Tensor | StreamedRows,
    labels: Tensor,
    n_classes: int,
    weights: Tensor,
    loss: Loss,
    strengths: Sequence[float],
    tolerance: float,
) -> list[Tensor]:
    """Follow the path for a batch of problems. Parameters and results as in `solve_path`."""
    total = weights.sum(1, keepdim=True).clamp_min(1e-12)
    batch: Batch
    if isinstance(x, Tensor):
        batch = RowsInMemory(x, labels, weights / total, n_classes, loss)
    else:
        batch = StreamedBatch(x, labels, weights / total, n_classes, loss)
    spread = batch.spread(total)
    penalised = spread.new_ones(spread.shape[-1])
    penalised[-1] = 0
    v = spread.new_zeros(n_classes, len(weights), spread.shape[-1])
    here = batch.start(v)
    pairs: list[_Pair] = []
    threshold, previous, path = None, 0.0, []
    for strength in strengths:
        # The curvature estimate of one strength holds for the next, up to the change of penalty.
        change = (strength - previous) * penalised
        here = _add_penalty(here, change, loss)
        penalty = strength * penalised
        bound = 1 / (CURVATURE_BOUND[loss] * spread + penalty).clamp_min(1e-30)
        guess = 1 / (batch.curvature(here) * spread + penalty).clamp_min(1e-30)
        pairs = [_pair(p.step, p.change + change * p.step, guess, loss) for p in pairs]
        if threshold is None:
            squared = _dot(here.gradient * bound, here.gradient, loss)
            threshold = tolerance**2 * squared.clamp_min(1e-12)
        here = _minimise(batch, penalty, (bound, guess), here, pairs, threshold)
        path.append(here.v)
        previous = strength
    return path


def _dot(a: Tensor, b: Tensor, loss: Loss) -> Tensor:
    """Return the inner product of every group, (1 or classes, problems, 1).

    With softmax all classes of a problem form one group; with squared hinge each class is one.
    """
    by_class: Tensor = torch.linalg.vecdot(a, b.expand_as(a))[..., None]
    return by_class.sum(0, keepdim=True) if loss == "softmax" else by_class


@dataclass(frozen=True)
class _Pair:
    """A step, the change of the gradient along it, and the inverse of their inner product.

    The inverse is 0 for groups whose pair is discarded.
    """

    step: Tensor
    change: Tensor
    inverse: Tensor


def _pair(step: Tensor, change: Tensor, scale: Tensor, loss: Loss) -> _Pair:
    product = _dot(step, change, loss)
    # Converged groups, and changes below the rounding error, hold no information on the curvature.
    usable = product > 1e-12 * _dot(change * scale, change, loss)
    return _Pair(step, change, torch.where(usable, 1 / product, 0.0))


def _add_penalty(here: Point, change: Tensor, loss: Loss) -> Point:
    """Return the point at the same weights after the penalty has changed by `change`."""
    by_weights = change * here.v
    value = here.value + 0.5 * _dot(by_weights, here.v, loss)
    return Point(here.v, value, here.gradient + by_weights, here.scores)


def _minimise(
    batch: Batch,
    penalty: Tensor,
    scales: tuple[Tensor, Tensor],
    start: Point,
    pairs: list[_Pair],
    threshold: Tensor,
) -> Point:
    """Take quasi-Newton steps until the gradient of every group is small.

    Converged groups are not moved. New pairs are appended to `pairs`.

    Parameters
    ----------
    scales
        Two inverse curvatures per coordinate: from the upper bound, to measure the gradient, and
        from the estimate, to scale the steps.
    threshold
        Squared norm of the gradient, scaled by the first of `scales`, at which a group has
        converged.
    """
    here, (bound, guess) = start, scales
    for _ in range(MAX_STEPS):
        moving = _dot(here.gradient * bound, here.gradient, batch.loss) > threshold
        if not moving.any():
            break
        step = -_two_loop_recursion(here.gradient, guess, pairs, batch.loss) * moving
        there = _line_search(batch, penalty, here, step)
        change = there.gradient - here.gradient
        pairs.append(_pair(there.v - here.v, change, guess, batch.loss))
        del pairs[:-MEMORY]
        here = there
    return here


def _two_loop_recursion(gradient: Tensor, scale: Tensor, pairs: list[_Pair], loss: Loss) -> Tensor:
    """Multiply a gradient by the estimated inverse curvature."""
    q = gradient
    alphas = []
    for pair in reversed(pairs):
        alpha = pair.inverse * _dot(pair.step, q, loss)
        q = q - alpha * pair.change
        alphas.append(alpha)
    q = q * scale
    if pairs:
        last = pairs[-1]
        factor = 1 / (last.inverse * _dot(last.change * scale, last.change, loss))
        q = q * torch.where(last.inverse > 0, factor, 1.0)
    for pair, alpha in zip(pairs, reversed(alphas), strict=True):
        q = q + pair.step * (alpha - pair.inverse * _dot(pair.change, q, loss))
    return q


def _line_search(batch: Batch, penalty: Tensor, here: Point, step: Tensor) -> Point:
    """Backtrack along `step`, for each group, until its objective decreases sufficiently."""
    loss = batch.loss
    line = batch.line(here, step)
    descent = _dot(here.gradient, step, loss)
    # The penalty along the step: (constant + 2 * length * linear + length**2 * quadratic) / 2.
    quadratic, linear = _dot(penalty * step, step, loss), _dot(penalty * here.v, step, loss)
    constant = _dot(penalty * here.v, here.v, loss)
    length = torch.ones_like(descent)
    for _ in range(20):
        value = line.loss(length) + 0.5 * (constant + 2 * length * linear + length**2 * quadratic)
        allowed = here.value + _SUFFICIENT_DECREASE * length * descent
        too_high = value > allowed + 1e-6 * here.value.abs()
        if not too_high.any():
            break
        # Minimum of the interpolating parabola, clamped to 0.1 to 0.5 of the current length.
        best = -descent * length**2 / (2 * (value - here.value - length * descent))
        length = torch.where(too_high, best.clamp(0.1 * length, 0.5 * length), length)
    v = here.v + length * step
    gradient, scores = line.end()
    return Point(v, value, gradient.add_(penalty * v), scores)
