"""The unknown score as a network module, for prediction and for export."""

import torch
from torch import Tensor, nn

TINY = 1e-12
"""Least length that is divided by."""


class UnknownScore(nn.Module):
    """How unlike the training images an image is, from one pass: higher is more unlike.

    The sum of three parts, each of mean 0 and standard deviation 1 on held-out images:

    - minus the log-sum-exp of the head's scores (energy; W. Liu et al., Energy-based
      out-of-distribution detection, NeurIPS 2020);
    - the Mahalanobis distance of the features to the nearest class mean, with one covariance for
      all classes (K. Lee et al., A simple unified framework for detecting out-of-distribution
      samples, NeurIPS 2018);
    - minus the largest cosine of the features with a class mean, both whitened by this covariance
      and seen from the mean of all images.

    The distance finds images of another kind, the cosine images of another class of the same
    kind, the energy images between the classes. Features are first scaled to length 1 (as Y. Sun
    et al., Out-of-distribution detection with deep nearest neighbors, ICML 2022).

    Parameters
    ----------
    features, scores
        Arguments of `forward`: what the head reads, (n, d), and what it returns, (n, classes),
        both float32. The result has the shape (n,), float32.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, values in tensors.items():
            self.register_buffer(name, values.float(), persistent=True)

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
    offsets: Tensor
    """Mean of every part on held-out images, (3,)."""
    weights: Tensor
    """Inverse standard deviation of every part on held-out images, (3,)."""

    def forward(self, features: Tensor, scores: Tensor) -> Tensor:
        """Return the unknown score of every image, (n,)."""
        parts = (self.parts(features, scores) - self.offsets) * self.weights
        return parts.sum(dim=1)

    def parts(self, features: Tensor, scores: Tensor) -> Tensor:
        """Return energy, distance and minus the cosine before scaling, (n, 3)."""
        rows = features.float()
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(TINY) - self.centre
        along = rows @ self.axes
        rest = rows - along @ self.axes.T
        square = ((along * self.inverse_sd[:-1]) ** 2).sum(dim=1)
        square = square + (rest**2).sum(dim=1) * self.inverse_sd[-1] ** 2
        products = rows @ self.class_rows.T
        distance = (square + (self.class_norms - 2 * products).amin(dim=1)).clamp_min(0).sqrt()
        lengths = self.class_norms.clamp_min(TINY).sqrt() * square.clamp_min(TINY).sqrt()[:, None]
        cosine = (products / lengths).amax(dim=1)
        energy = -torch.logsumexp(scores.float(), dim=1)
        return torch.stack([energy, distance, -cosine], dim=1)
