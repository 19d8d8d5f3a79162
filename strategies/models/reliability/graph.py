"""The unknown score as network modules, for prediction and for export."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from strategies.models.body import Body, pool
from strategies.models.network import Network

TINY = 1e-12
"""Least length that is divided by."""


class UnknownScore(nn.Module):
    """How unlike the training images an image is: higher is more unlike.

    The sum of three parts, each of mean 0 and standard deviation 1 on held-out images:

    - the Mahalanobis distance of the features to the nearest class mean, with one covariance for
      all classes (K. Lee et al., A simple unified framework for detecting out-of-distribution
      samples, NeurIPS 2018);
    - its square minus that to the mean of all images, with the covariance of all images
      (relative Mahalanobis distance; J. Ren et al., A simple fix to Mahalanobis distance for
      improving near-OOD detection, 2021);
    - minus the largest cosine of the features with a class mean, both whitened by the covariance
      within classes and seen from the mean of all images.

    The distance finds images of another kind, the others images of another class of the same
    kind. The scores of the head take no part: with their energy (W. Liu et al., 2020) the score is
    hardly better, and it would depend on how far the head was trained. The features of every depth
    are scaled to length 1 (as in Y. Sun et al., Out-of-distribution detection with deep nearest
    neighbors, ICML 2022).

    Parameters
    ----------
    tensors
        The buffers. Without the last two, only `parts` can be used.
    widths
        Number of features of every depth.
    """

    centre: Tensor
    """Mean of the features scaled to length 1, (d,)."""
    axes: Tensor
    """First principal axes within classes, (d, k)."""
    inverse_sd: Tensor
    """Inverse standard deviations along the axes, and in all other directions last, (k + 1,)."""
    class_rows: Tensor
    """Class means minus `centre`, times the inverse covariance, (classes, d)."""
    class_norms: Tensor
    """Squared Mahalanobis length of the class means minus `centre`, (classes,)."""
    between: Tensor
    """The squared length of (products with `class_rows`) @ `between` is what the class means
    explain of the squared distance to `centre`, (classes, classes)."""
    offsets: Tensor
    """Mean of every part on held-out images, (3,)."""
    weights: Tensor
    """Inverse standard deviation of every part on held-out images, (3,)."""

    def __init__(self, tensors: Mapping[str, Tensor], widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = [int(width) for width in widths]
        for name, values in tensors.items():
            self.register_buffer(name, values.float())

    def forward(self, features: Tensor) -> Tensor:
        """Return the unknown score of every image, (n,), in float32, also within autocast.

        In bfloat16 its distances had so large errors that 41% of the test images of a dataset were
        unknown instead of 7%.

        Parameters
        ----------
        features
            Mean-pooled activations of the depths, one after the other, (n, d).
        """
        kind = features.device.type
        if not torch.is_autocast_enabled(kind):
            return self._score(features)
        with torch.autocast(kind, enabled=False):
            return self._score(features)

    def _score(self, features: Tensor) -> Tensor:
        parts = (self.parts(features) - self.offsets) * self.weights
        return parts.sum(dim=1)

    def parts(self, features: Tensor) -> Tensor:
        """Return distance, relative distance and minus the cosine before scaling, (n, 3)."""
        rows = unit_rows(features.float(), self.widths) - self.centre
        along = rows @ self.axes
        rest = rows - along @ self.axes.T
        square = ((along * self.inverse_sd[:-1]) ** 2).sum(dim=1)
        square = square + (rest**2).sum(dim=1) * self.inverse_sd[-1] ** 2
        products = rows @ self.class_rows.T
        nearest = (self.class_norms - 2 * products).amin(dim=1)
        distance = (square + nearest).clamp_min(0).sqrt()
        relative = nearest + ((products @ self.between) ** 2).sum(dim=1)
        lengths = self.class_norms.clamp_min(TINY).sqrt() * square.clamp_min(TINY).sqrt()[:, None]
        cosine = (products / lengths).amax(dim=1)
        return torch.stack([distance, relative, -cosine], dim=1)


def unit_rows(features: Tensor, widths: Sequence[int]) -> Tensor:
    """Scale the features of every depth, side by side in (n, d), to length 1."""
    depths = torch.split(features, list(widths), dim=1)
    return torch.cat([x / x.norm(dim=1, keepdim=True).clamp_min(TINY) for x in depths], dim=1)


class JudgedBody(nn.Module):
    """A body that also returns the features of the unknown score, from the same pass.

    Parameters
    ----------
    body
        The body of the classifier's network.
    depths
        Depths that the unknown score reads, counted from 1. None is deeper than the body.
    n_depths
        Number of depths of the whole backbone: that of the penultimate one.
    """

    def __init__(self, body: Body, depths: Sequence[int], n_depths: int) -> None:
        super().__init__()
        self.levels, self.whole, self.pooling = tuple(body.levels), body.whole, body.pooling
        self.depths = tuple(depths)
        read = {*depths, *(level + 1 for level in body.levels), *([n_depths] * body.whole)}
        self.body = Body(body.net, tuple(sorted(read)), n_depths, body.pooling)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the head reads, (n, d), and what the unknown score reads, (n, its d).

        Parameters
        ----------
        images
            Normalised, (n, 3, h, w).
        """
        levels, last = self.body.levels_of(images)
        by_depth = dict(zip(self.body.levels, levels, strict=True))
        penultimate = [] if last is None else [last]
        features = [pool(by_depth[level], self.pooling) for level in self.levels]
        features += penultimate if self.whole else []
        own = [pool(by_depth[d - 1], "mean") for d in self.depths if d - 1 in by_depth]
        own += penultimate if len(own) < len(self.depths) else []
        return torch.cat(features, dim=1), torch.cat(own, dim=1)


class JudgedNetwork(nn.Module):
    """A network that also returns the unknown score of every image, from the same pass."""

    def __init__(self, network: Network, body: JudgedBody, score: UnknownScore) -> None:
        super().__init__()
        self.network, self.body, self.score = network, body, score

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores, (n, classes), and the unknown scores, (n,), both float32.

        Parameters
        ----------
        images
            Normalised, (n, 3, h, w).
        """
        features, own = self.body(images)
        unknown: Tensor = self.score(own.float())
        return self.network.scores(features).float(), unknown
