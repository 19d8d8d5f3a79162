"""One convex solver for all linear heads: every fold and class of a problem together.

All problems share their features, so one limited-memory quasi-Newton method runs them side by
side: two matrix products a step hold every fold and class. In the basis of the features' principal
axes the curvature of the loss is bounded by a *diagonal* matrix (Boehning's bound), which is where
the method's image of the curvature starts from. Scores are linear in the weights, so the line
search costs no matrix product.

References
----------
D. Boehning, Multinomial logistic regression algorithm, 1992. J. Nocedal, Updating quasi-Newton
matrices with limited storage, 1980.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from strategies.heads.whitening import total_over

Loss = Literal["softmax", "squared_hinge"]

MAX_STEPS, TOLERANCE = 200, 1e-3
MEMORY = 8
"""Pairs of steps and gradient changes that the curvature is estimated from."""
MAX_HELD = 1 << 26
"""Scores (rows x folds x classes) held at once; folds are solved one after the other beyond it."""
BOUND = {"softmax": 0.5, "squared_hinge": 2.0}
"""Upper bounds of the second derivative of the losses by a score."""
_DECREASE = 1e-4


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
    For every strength the weights, (classes, problems, r + 1); the last, the bias, is free.
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
    total = weights.sum(1, keepdim=True).clamp_min(1e-12)
    problem = _Problem(x, labels, weights / total, n_classes, loss)
    heaviest = total_over(lambda rows, s: s.T @ rows.square(), x, weights.amax(0)[:, None])
    spread = heaviest / total
    penalised = x.new_ones(x.shape[1])
    penalised[-1] = 0
    v = x.new_zeros(n_classes, len(weights), x.shape[1])
    here = _evaluate(problem, 0 * penalised, v, problem.scores(v))
    pairs: list[_Pair] = []
    enough, before, path = None, 0.0, []
    for strength in strengths:
        # What was learnt of the curvature at one strength holds at the next, up to the penalty.
        more = (strength - before) * penalised
        here = _penalise(here, more, loss)
        penalty = strength * penalised
        bound = 1 / (BOUND[loss] * spread + penalty).clamp_min(1e-30)
        guess = 1 / (problem.curvature(here.scores) * spread + penalty).clamp_min(1e-30)
        pairs = [_pair(p.moved, p.changed + more * p.moved, guess, loss) for p in pairs]
        if enough is None:
            enough = tolerance**2 * _dot(here.slope * bound, here.slope, loss).clamp_min(1e-12)
        here = _minimise(problem, penalty, (bound, guess), here, pairs, enough)
        path.append(here.v)
        before = strength
    return path


class _Problem:
    """Rows (n, r), labels (n,), shares of rows in problems (problems, n): what to fit to what."""

    def __init__(
        self, x: Tensor, labels: Tensor, share: Tensor, n_classes: int, loss: Loss
    ) -> None:
        self.x, self.share, self.loss = x, share, loss
        self.own = labels.expand(1, *share.shape)
        self.sign = x.new_full((n_classes, 1, len(x)), -1.0)
        self.sign.scatter_(0, labels.expand(1, 1, -1), 1.0)

    def scores(self, v: Tensor) -> Tensor:
        """Return the scores, (classes, problems, n)."""
        found: Tensor = v.flatten(0, 1) @ self.x.T
        return found.view(*v.shape[:2], -1)

    def by_weights(self, by_score: Tensor) -> Tensor:
        """Turn a derivative by the scores into the one by the weights, (classes, problems, r)."""
        found: Tensor = by_score.flatten(0, 1) @ self.x
        return found.view(*by_score.shape[:2], -1)

    def fit_of(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss of every group, and its derivative by the scores."""
        if self.loss == "softmax":
            logs = scores.log_softmax(0)
            value = -torch.linalg.vecdot(self.share, logs.gather(0, self.own))[..., None]
            slope = logs.exp_()
            slope.scatter_add_(0, self.own, slope.new_full((1, 1, 1), -1.0).expand_as(self.own))
            return value, slope.mul_(self.share)
        short = (1 - self.sign * scores).clamp_min_(0)
        slope = short * self.share
        value = torch.linalg.vecdot(slope, short)[..., None]
        return value, slope.mul_(self.sign).mul_(-2)

    def curvature(self, scores: Tensor) -> Tensor:
        """Return the mean second derivative of a group's loss by a score, at least a little."""
        if self.loss == "softmax":
            p = scores.softmax(0)
            bend = (p * (1 - p)).sum(0, keepdim=True) / max(len(p) - 1, 1)
        else:
            bend = 2 * (self.sign * scores < 1).float()
        mean: Tensor = torch.linalg.vecdot(bend, self.share.expand_as(bend))
        return mean[..., None].clamp_min(1e-3)


@dataclass(frozen=True)
class _Point:
    """Where a search stands: weights, their scores, the objective by group, its slope."""

    v: Tensor
    scores: Tensor
    value: Tensor
    slope: Tensor


def _dot(a: Tensor, b: Tensor, loss: Loss) -> Tensor:
    """Return the inner products group by group, (1 or classes, problems, 1).

    The classes of one fold are one group under the softmax, groups of their own otherwise.
    """
    by_class: Tensor = torch.linalg.vecdot(a, b.expand_as(a))[..., None]
    return by_class.sum(0, keepdim=True) if loss == "softmax" else by_class


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
    slope = problem.by_weights(by_score).add_(penalty * v)
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
    calibrations: tuple[Tensor, Tensor],
    start: _Point,
    pairs: list[_Pair],
    enough: Tensor,
) -> _Point:
    """Take quasi-Newton steps until the gradient of every group is small; finished groups rest.

    `pairs` is added to.

    Parameters
    ----------
    scales
        One over the curvature by coordinate: its bound, which says what gradient is small, and
        what it is likely to be, which steps are taken by.
    """
    here, (bound, guess) = start, calibrations
    for _ in range(MAX_STEPS):
        moving = _dot(here.slope * bound, here.slope, problem.loss) > enough
        if not moving.any():
            break
        step = -_curved(here.slope, guess, pairs, problem.loss) * moving
        there = _search_line(problem, penalty, here, step)
        pairs.append(_pair(there.v - here.v, there.slope - here.slope, guess, problem.loss))
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
    slope = problem.by_weights(by_score).add_(penalty * v)
    return _Point(v, scores, value, slope)
