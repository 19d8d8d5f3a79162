"""Calibrate the unknown score and the prediction sets on held-out images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from strategies.core.cache import Rows
from strategies.core.metrics import Labels, Scores
from strategies.models.reliability.conformal import nonconformity
from strategies.models.reliability.graph import UnknownScore
from strategies.models.reliability.reliability import HeldOut, Reliability
from strategies.models.reliability.statistics import Tensors, feature_statistics

FEWEST_HELD_OUT = 20
"""With fewer held-out images there is no threshold for the default rate of false alarms, 5%."""
MAX_HELD_OUT = 10_000
"""Scores of held-out images that are stored; of more, some are drawn at random."""


@dataclass(frozen=True)
class Fold:
    """A classifier, as far as the unknown score is concerned, and images that it did not learn.

    Attributes
    ----------
    features, labels
        Of images that it was fitted to: what the head reads, (n, d), and their classes, (n,).
    held_out_features, held_out_scores, held_out_labels
        Of held-out images, with the head's scores, (n, classes).
    """

    features: Rows
    labels: Labels
    held_out_features: Rows
    held_out_scores: Scores
    held_out_labels: Labels


def calibrate_reliability(
    folds: Sequence[Fold], features: Rows, labels: Labels, held_out: HeldOut
) -> Reliability:
    """Return the reliability of a classifier.

    Parameters
    ----------
    folds
        Classifiers with held-out images, at least `FEWEST_HELD_OUT` together: the classifier
        itself, or classifiers that were fitted without some of its images.
    features, labels
        Of images that the classifier was fitted to, (n, d) and (n,).
    held_out
        As in `Reliability`.
    """
    parts = np.concatenate([_parts(fold) for fold in folds])
    sd = parts.std(axis=0)
    scaling = {
        "offsets": parts.mean(axis=0).astype(np.float32),
        "weights": np.where(sd > 0, 1 / np.maximum(sd, 1e-12), 0).astype(np.float32),
    }
    tensors = {**feature_statistics(features, labels), **scaling}
    unknown = ((parts - scaling["offsets"]) * scaling["weights"]).sum(axis=1)
    wrong = np.concatenate(
        [nonconformity(softmax(f.held_out_scores, axis=1), f.held_out_labels) for f in folds]
    )
    drawn = np.random.default_rng(0).permutation(len(unknown))[:MAX_HELD_OUT]
    return Reliability(tensors, np.sort(unknown[drawn]), np.sort(wrong[drawn]), held_out)


def _parts(fold: Fold) -> NDArray[np.float32]:
    """Return the parts of the unknown score of the held-out images before scaling, (n, 3)."""
    return score_parts(
        feature_statistics(fold.features, fold.labels),
        fold.held_out_features,
        fold.held_out_scores,
    )


@torch.inference_mode()
def score_parts(statistics: Tensors, features: Rows, scores: Scores) -> NDArray[np.float32]:
    """Return the parts of the unknown score before scaling, (n, 3)."""
    tensors = {name: torch.from_numpy(np.array(x)) for name, x in statistics.items()}
    inputs = (torch.from_numpy(np.ascontiguousarray(x)).float() for x in (features, scores))
    parts: NDArray[np.float32] = UnknownScore(tensors).parts(*inputs).numpy()
    return parts
