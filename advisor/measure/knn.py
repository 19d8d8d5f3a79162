"""k-nearest-neighbour accuracy of the penultimate features: a baseline without any fitting."""

import numpy as np
from numpy.typing import NDArray

from strategies.core.metrics import Interval, Labels, Scores, proportion

TEMPERATURE = 0.07


def knn_accuracy(
    features: Scores, labels: Labels, n_classes: int, folds: NDArray[np.int64]
) -> Interval:
    """Return the accuracy of a weighted vote of the nearest neighbours in other folds.

    Neighbours are found by cosine similarity; nearer ones have more weight. Their number is about
    the square root of the number of images per class.

    Parameters
    ----------
    features, labels, folds
        Shapes (n, d), (n,) and (n,). Images of one group must be in one fold.

    References
    ----------
    Z. Wu et al., Unsupervised feature learning via non-parametric instance discrimination, CVPR
    2018 (the weighted vote).
    """
    x = np.asarray(features, dtype=np.float32)
    x = x - x.mean(axis=0)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    near = x @ x.T
    near[folds[:, None] == folds[None, :]] = -np.inf
    k = int(np.clip(round((len(labels) / n_classes) ** 0.5), 1, len(labels) - 1))
    voters = np.argpartition(-near, k - 1, axis=1)[:, :k]
    weight = np.exp(np.take_along_axis(near, voters, axis=1) / TEMPERATURE)
    votes = np.zeros((len(labels), n_classes))
    np.add.at(votes, (np.arange(len(labels))[:, None], labels[voters]), weight)
    return proportion(float(np.mean(votes.argmax(axis=1) == labels)), len(labels))
