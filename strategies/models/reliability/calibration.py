"""Calibrate the unknown score and the prediction sets on held-out images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from strategies.core.cache import Rows
from strategies.core.metrics import Labels, Scores
from strategies.models.backbone import Backbone
from strategies.models.body import widths
from strategies.models.reliability.conformal import nonconformity
from strategies.models.reliability.graph import UnknownScore
from strategies.models.reliability.reliability import Depths, HeldOut, Reliability
from strategies.models.reliability.statistics import Tensors, feature_statistics

FEWEST_HELD_OUT = 20
"""With fewer held-out images there is no threshold for the default rate of false alarms, 5%."""
N_DEPTHS = 4
"""Depths that the unknown score reads. Over 18 datasets at 128 px, the AUROC of images of a
left-out class is three points higher with the last four depths than with the last alone."""
MAX_HELD_OUT = 10_000
"""Scores of held-out images that are stored; of more, some are drawn at random."""


@dataclass(frozen=True)
class Fold:
    """A classifier, as far as the unknown score is concerned, and images that it did not learn.

    Attributes
    ----------
    features, labels
        Of images that it was fitted to: mean-pooled activations of the depths that the score
        reads, (n, d), and their classes, (n,).
    held_out_features, held_out_scores, held_out_labels
        Of held-out images, with the head's scores, (n, classes).
    """

    features: Rows
    labels: Labels
    held_out_features: Rows
    held_out_scores: Scores
    held_out_labels: Labels


def calibrate_reliability(
    folds: Sequence[Fold], features: Rows, labels: Labels, depths: Depths, held_out: HeldOut
) -> Reliability:
    """Return the reliability of a classifier.

    Parameters
    ----------
    folds
        Classifiers with held-out images, at least `FEWEST_HELD_OUT` together: the classifier
        itself, or classifiers that were fitted without some of its images.
    features, labels
        Of images that the classifier was fitted to, (n, d) and (n,).
    depths
        That the features are of.
    held_out
        As in `Reliability`.
    """
    parts = np.concatenate([_parts(fold, depths) for fold in folds])
    sd = parts.std(axis=0)
    scaling = {
        "offsets": parts.mean(axis=0).astype(np.float32),
        "weights": np.where(sd > 0, 1 / np.maximum(sd, 1e-12), 0).astype(np.float32),
    }
    tensors = {**feature_statistics(features, labels, depths.widths), **scaling}
    unknown = ((parts - scaling["offsets"]) * scaling["weights"]).sum(axis=1)
    wrong = np.concatenate(
        [nonconformity(softmax(f.held_out_scores, axis=1), f.held_out_labels) for f in folds]
    )
    drawn = np.random.default_rng(0).permutation(len(unknown))[:MAX_HELD_OUT]
    return Reliability(tensors, depths, np.sort(unknown[drawn]), np.sort(wrong[drawn]), held_out)


def score_depths(backbone: Backbone, depths: Sequence[int]) -> Depths:
    """Return the depths that the unknown score of a classifier reads: its last `N_DEPTHS`.

    Parameters
    ----------
    depths
        Depths that the head reads: the network ends at the deepest of them.
    """
    last = max(depths)
    numbers = tuple(range(max(1, last - N_DEPTHS + 1), last + 1))
    by_depth = widths(backbone.depths, "mean")
    return Depths(numbers, tuple(by_depth[d - 1] for d in numbers))


def _parts(fold: Fold, depths: Depths) -> NDArray[np.float32]:
    """Return the parts of the unknown score of the held-out images before scaling, (n, 3)."""
    statistics = feature_statistics(fold.features, fold.labels, depths.widths)
    return score_parts(statistics, depths, fold.held_out_features)


@torch.inference_mode()
def score_parts(statistics: Tensors, depths: Depths, features: Rows) -> NDArray[np.float32]:
    """Return the parts of the unknown score before scaling, (n, 3)."""
    tensors = {name: torch.from_numpy(np.array(x)) for name, x in statistics.items()}
    rows = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
    parts: NDArray[np.float32] = UnknownScore(tensors, depths.widths).parts(rows).numpy()
    return parts
