"""The strongest of many features: what a linear head on all depths leans on most.

References
----------
U. Evci et al., Head2Toe: Utilizing intermediate representations for better transfer learning,
ICML 2022.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from strategies.core.metrics import Labels, Scores
from strategies.heads.cross_validation import (
    STRENGTHS,
    ClassWeight,
    CrossValidated,
    Loss,
    fit_head,
    out_of_fold,
    row_weights,
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
    """Return the columns whose weights, over all classes, move the scores of a head most.

    Parameters
    ----------
    features, labels
        Shapes (n, d) and (n,).
    share
        Of the columns, how many are kept.
    strength
        L2 strength of the head that they are ranked by.
    """
    head = fit_head(
        features, labels, n_classes, strength, loss=loss, class_weight=class_weight, device=device
    )
    moved = np.linalg.norm(head.weight, axis=0) * features.std(axis=0)
    most = max(1, round(share * features.shape[1]))
    found: NDArray[np.int64] = np.sort(np.argsort(-moved, kind="stable")[:most])
    return found


def cross_validate_strongest(
    features: Scores,
    labels: Labels,
    n_classes: int,
    share: float,
    strength: float,
    *,
    folds: NDArray[np.int64],
    loss: Loss,
    strengths: Sequence[float] = STRENGTHS,
    class_weight: ClassWeight = "none",
    device: torch.device | None = None,
) -> CrossValidated:
    """Cross-validate a path on the strongest columns, chosen again without each fold's images.

    Parameters as for `select_strongest` and `probes.cross_validate`.
    """
    scores = np.empty((len(strengths), len(labels), n_classes), dtype=np.float32)
    for fold in range(int(folds.max()) + 1):
        seen = folds != fold
        kept = select_strongest(
            features[seen],
            labels[seen],
            n_classes,
            share,
            strength,
            loss=loss,
            class_weight=class_weight,
            device=device,
        )
        scores[:, ~seen] = out_of_fold(
            features[:, kept],
            labels,
            n_classes,
            folds=np.where(seen, 1, 0),
            judged=[0],
            loss=loss,
            strengths=strengths,
            class_weight=class_weight,
            device=device,
        )[:, ~seen]
    return CrossValidated(scores, labels, tuple(strengths), row_weights(labels, class_weight))
