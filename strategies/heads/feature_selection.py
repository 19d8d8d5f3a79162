"""Feature selection: keep the features with the largest weights in a linear head on all depths.

References
----------
U. Evci et al., Head2Toe: Utilizing intermediate representations for better transfer learning,
ICML 2022.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from strategies.core.metrics import Labels, Scores
from strategies.heads.batches import Loss
from strategies.heads.cross_validation import (
    ClassWeight,
    RegularisationPath,
    fit_head,
    out_of_fold,
)


def select_strongest(
    features: Scores,
    labels: Labels,
    n_classes: int,
    share: float,
    strength: float,
    *,
    loss: Loss,
    class_weight: ClassWeight = "none",
    device: torch.device | None = None,
) -> NDArray[np.int64]:
    """Return the sorted indices of the features with the largest effect on a head's scores.

    The effect is the norm of a feature's weights over all classes, times its standard deviation.

    Parameters
    ----------
    features, labels
        Shapes (n, d) and (n,).
    share
        Share of the features to keep.
    strength
        L2 strength of the head that ranks the features.
    """
    head = fit_head(
        features, labels, n_classes, strength, loss=loss, class_weight=class_weight, device=device
    )
    effect = np.linalg.norm(head.weight, axis=0) * features.std(axis=0)
    n_kept = max(1, round(share * features.shape[1]))
    columns: NDArray[np.int64] = np.sort(np.argsort(-effect, kind="stable")[:n_kept])
    return columns


def strongest_out_of_fold(
    features: Scores,
    labels: Labels,
    n_classes: int,
    share: float,
    strength: float,
    path: RegularisationPath,
    *,
    folds: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Return out-of-fold scores of heads on selected features, (strengths, n, classes).

    The features are selected for every fold without the images of that fold. Parameters as in
    `select_strongest` and `cross_validation.cross_validate`.
    """
    scores = np.zeros((len(path.strengths), len(labels), n_classes), dtype=np.float32)
    for fold in range(int(folds.max()) + 1):
        fitted = folds != fold
        columns = select_strongest(
            features[fitted],
            labels[fitted],
            n_classes,
            share,
            strength,
            loss=path.loss,
            class_weight=path.class_weight,
            device=path.device,
        )
        by_strength = out_of_fold(
            features[:, columns],
            labels,
            n_classes,
            path,
            folds=np.where(fitted, 1, 0),
            held_out=[0],
        )
        for number, found in enumerate(by_strength):
            scores[number, ~fitted] = found[~fitted]
    return scores
