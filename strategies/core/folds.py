"""Who is judged by whom: images dealt to the folds of a cross-validation."""

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
    """Deal the images of every class to folds at random, evenly, (n,).

    By default there are as many folds as the smallest class has images, but at least 2 and at
    most `MAX_FOLDS`. A class of one image is then judged by a
    classifier that never saw it, and counts as wrong.

    Parameters
    ----------
    groups
        Images of equal numbers (duplicates, frames of one track) are dealt to one fold, (n,).
    """
    if groups is not None and len(np.unique(groups)) < len(groups):
        return _grouped_folds(labels, seed, n_folds, groups)
    if n_folds is None:
        n_folds = int(np.clip(np.bincount(labels)[np.unique(labels)].min(), 2, MAX_FOLDS))
    rng = np.random.default_rng(seed)
    folds = np.empty(len(labels), dtype=np.int64)
    dealt = 0
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        folds[rows] = (dealt + np.arange(len(rows))) % n_folds
        dealt += len(rows)
    return folds


def _grouped_folds(
    labels: Labels, seed: int, n_folds: int | None, groups: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Deal whole groups, large ones first, each to the fold that has least of its classes."""
    group = np.unique(groups, return_inverse=True)[1]
    counts = np.zeros((int(group.max()) + 1, int(labels.max()) + 1), dtype=np.int64)
    np.add.at(counts, (group, labels), 1)
    if n_folds is None:
        n_groups = (counts > 0).sum(axis=0)
        n_folds = int(np.clip(n_groups[n_groups > 0].min(), 2, MAX_FOLDS))
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    held = np.zeros((n_folds, counts.shape[1]), dtype=np.int64)
    fold_of = np.empty(len(counts), dtype=np.int64)
    for g in order:
        mine = counts[g] > 0
        # Even classes first, even folds where they tie.
        fold_of[g] = np.lexsort((held.sum(axis=1), held[:, mine].sum(axis=1)))[0]
        held[fold_of[g]] += counts[g]
    folds: NDArray[np.int64] = fold_of[group]
    return folds
