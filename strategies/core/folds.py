"""Stratified, grouped folds for cross-validation."""

import numpy as np
from numpy.typing import NDArray

from strategies.core.metrics import Labels

MAX_FOLDS = 5


def fold_numbers(
    labels: Labels,
    seed: int,
    n_folds: int | None = None,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Return the fold number of every image, shape (n,): random, stratified by class.

    By default there are as many folds as the smallest class has images, but at least 2 and at
    most `MAX_FOLDS`. The only image of a class is predicted by a classifier that was fitted
    without that class, so it counts as wrong.

    Parameters
    ----------
    groups
        Group numbers, (n,): a group (duplicates, frames of one track) stays in one fold.
    """
    if groups is not None and len(np.unique(groups)) < len(groups):
        return _grouped_folds(labels, seed, n_folds, groups)
    if n_folds is None:
        n_folds = int(np.clip(np.bincount(labels)[np.unique(labels)].min(), 2, MAX_FOLDS))
    rng = np.random.default_rng(seed)
    folds = np.empty(len(labels), dtype=np.int64)
    n_assigned = 0
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        folds[rows] = (n_assigned + np.arange(len(rows))) % n_folds
        n_assigned += len(rows)
    return folds


def _grouped_folds(
    labels: Labels, seed: int, n_folds: int | None, groups: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Assign whole groups, largest first, each to the fold with the fewest of its classes."""
    group = np.unique(groups, return_inverse=True)[1]
    counts = np.zeros((int(group.max()) + 1, int(labels.max()) + 1), dtype=np.int64)
    np.add.at(counts, (group, labels), 1)
    if n_folds is None:
        n_groups = (counts > 0).sum(axis=0)
        n_folds = int(np.clip(n_groups[n_groups > 0].min(), 2, MAX_FOLDS))
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    n_in_fold = np.zeros((n_folds, counts.shape[1]), dtype=np.int64)
    fold_of = np.empty(len(counts), dtype=np.int64)
    for g in order:
        own_classes = counts[g] > 0
        # Balance the classes first; where folds tie, balance their sizes.
        fold_of[g] = np.lexsort((n_in_fold.sum(axis=1), n_in_fold[:, own_classes].sum(axis=1)))[0]
        n_in_fold[fold_of[g]] += counts[g]
    folds: NDArray[np.int64] = fold_of[group]
    return folds
