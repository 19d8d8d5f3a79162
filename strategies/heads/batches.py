"""Batches of problems for the solver: losses and gradients, in memory or streamed by rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from strategies.heads.principal_axes import StreamedRows, sum_over_rows

Loss = Literal["softmax", "squared_hinge"]
MIN_CURVATURE = 1e-3
"""Minimum of the mean second derivative of the loss with respect to a score."""


@dataclass(frozen=True)
class Point:
    """An iterate: weights, the objective of every group, its gradient, and the scores.

    The scores are None where they are not kept.
    """

    v: Tensor
    value: Tensor
    gradient: Tensor
    scores: Tensor | None


class RowsInMemory:
    """A `Batch` whose rows, (n, r + 1), and scores are all in memory.

    Parameters
    ----------
    share
        Row weights of every problem, (problems, n), that sum to 1.
    """

    def __init__(
        self, x: Tensor, labels: Tensor, share: Tensor, n_classes: int, loss: Loss
    ) -> None:
        self.x, self.share, self.loss = x, share, loss
        self.labels = labels.expand(1, *share.shape)
        self.sign = x.new_full((n_classes, 1, len(x)), -1.0)
        self.sign.scatter_(0, labels.expand(1, 1, -1), 1.0)

    def spread(self, total: Tensor) -> Tensor:
        """Return bounds of the second moments, computed from the heaviest weight of each row.

        `total` are the sums of the row weights, (problems, 1).
        """
        heaviest = (self.share * total).amax(0)[:, None]
        return sum_over_rows(lambda rows, s: s.T @ rows.square(), self.x, heaviest) / total

    def start(self, v: Tensor) -> Point:
        """Return the point at some weights."""
        scores = self.scores(v)
        value, score_gradient = self.loss_and_gradient(scores)
        return Point(v, value, self.weight_gradient(score_gradient), scores)

    def curvature(self, point: Point) -> Tensor:
        """Return the mean second derivative, at least `MIN_CURVATURE`."""
        assert point.scores is not None
        return self.curvature_of(point.scores).clamp_min(MIN_CURVATURE)

    def line(self, point: Point, step: Tensor) -> "_ScoreLine":
        """Return the losses along a step."""
        return _ScoreLine(self, point, step)

    def scores(self, v: Tensor) -> Tensor:
        """Return the scores, (classes, problems, n)."""
        scores: Tensor = v.flatten(0, 1) @ self.x.T
        return scores.view(*v.shape[:2], -1)

    def weight_gradient(self, score_gradient: Tensor) -> Tensor:
        """Return the gradient with respect to the weights, (classes, problems, r + 1).

        It is computed from the gradient with respect to the scores, (classes, problems, n).
        """
        gradient: Tensor = score_gradient.flatten(0, 1) @ self.x
        return gradient.view(*score_gradient.shape[:2], -1)

    def loss_and_gradient(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss of every group, and its gradient with respect to the scores."""
        if self.loss == "softmax":
            logs = scores.log_softmax(0)
            value = -torch.linalg.vecdot(self.share, logs.gather(0, self.labels))[..., None]
            gradient = logs.exp_()
            minus_one = gradient.new_full((1, 1, 1), -1.0).expand_as(self.labels)
            gradient.scatter_add_(0, self.labels, minus_one)
            return value, gradient.mul_(self.share)
        violation = (1 - self.sign * scores).clamp_min_(0)
        gradient = violation * self.share
        value = torch.linalg.vecdot(gradient, violation)[..., None]
        return value, gradient.mul_(self.sign).mul_(-2)

    def curvature_of(self, scores: Tensor) -> Tensor:
        """Return the weighted sum of the losses' second derivatives with respect to a score."""
        if self.loss == "softmax":
            p = scores.softmax(0)
            second = (p * (1 - p)).sum(0, keepdim=True) / max(len(p) - 1, 1)
        else:
            second = 2 * (self.sign * scores < 1).float()
        mean: Tensor = torch.linalg.vecdot(second, self.share.expand_as(second))
        return mean[..., None]


class _ScoreLine:
    """The losses along a step, of linear scores: a length costs no matrix product."""

    def __init__(self, batch: RowsInMemory, point: Point, step: Tensor) -> None:
        assert point.scores is not None
        self.batch, self.before = batch, point.scores
        self.score_step = batch.scores(step)

    def loss(self, length: Tensor) -> Tensor:
        """Return the loss of every group after a step of this length."""
        self.scores = self.before + length * self.score_step
        value, self.score_gradient = self.batch.loss_and_gradient(self.scores)
        return value

    def end(self) -> tuple[Tensor, Tensor]:
        """Return gradient and scores at the last length."""
        return self.batch.weight_gradient(self.score_gradient), self.scores


class StreamedBatch:
    """A `Batch` that computes losses and gradients in one pass over the rows, and no scores."""

    def __init__(
        self, x: StreamedRows, labels: Tensor, share: Tensor, n_classes: int, loss: Loss
    ) -> None:
        self.x, self.labels, self.share, self.loss = x, labels, share, loss
        self.n_classes = n_classes

    def _parts(self) -> Iterator[RowsInMemory]:
        """Yield chunks of the rows. Their columns are the standardised features and 1."""
        for part, z in self.x.chunks():
            yield RowsInMemory(
                z, self.labels[part], self.share[:, part], self.n_classes, self.loss
            )

    def spread(self, total: Tensor) -> Tensor:
        """Return bounds of the second moments, computed from those of the basis."""
        return self.x.second_moments / total

    def start(self, v: Tensor) -> Point:
        """Return the point at some weights."""
        weights = self.x.to_features(v)
        value: Tensor | None = None
        gradient = torch.zeros_like(weights)
        for part in self._parts():
            loss, score_gradient = part.loss_and_gradient(part.scores(weights))
            value = loss if value is None else value + loss
            gradient += part.weight_gradient(score_gradient)
        assert value is not None
        return Point(v, value, self.x.to_coordinates(gradient), None)

    def curvature(self, point: Point) -> Tensor:
        """Return the mean second derivative, at least `MIN_CURVATURE`."""
        weights = self.x.to_features(point.v)
        parts = (part.curvature_of(part.scores(weights)) for part in self._parts())
        return torch.stack(list(parts)).sum(0).clamp_min(MIN_CURVATURE)

    def line(self, point: Point, step: Tensor) -> "_StreamedLine":
        """Return the losses along a step."""
        return _StreamedLine(self, point, step)


class _StreamedLine:
    """The losses along a step, with a pass over the rows at every length."""

    def __init__(self, batch: StreamedBatch, point: Point, step: Tensor) -> None:
        self.batch, self.point, self.step = batch, point, step

    def loss(self, length: Tensor) -> Tensor:
        """Return the loss of every group after a step of this length."""
        self.there = self.batch.start(self.point.v + length * self.step)
        return self.there.value

    def end(self) -> tuple[Tensor, None]:
        """Return the gradient at the last length, and no scores."""
        return self.there.gradient, None


Batch = RowsInMemory | StreamedBatch
"""Problems with the same rows: linear heads for row weights of their own.

Groups are minimised independently. With softmax a group is a problem; with squared hinge it is
one class of a problem. Losses and gradients are without the penalty."""
