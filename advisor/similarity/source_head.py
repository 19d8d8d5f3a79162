"""Predictions of the pretrained head on the new images: evidence of domain similarity."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, ndtri

from advisor.similarity.bn_shift import Weights, balanced
from advisor.similarity.transferability import leep_terms
from advisor.types.similarity import HeadEvidence, NearestSourceClass
from strategies.core.cache import Rows
from strategies.core.metrics import LEVEL, Interval, Labels, proportion
from strategies.models.features import SourceHead

CONFIDENT = 0.5
"""A prediction with at least this probability counts as confident."""
_BLOCK = 512


@dataclass(frozen=True)
class Predictions:
    """Predictions of the pretrained head for every image.

    Attributes
    ----------
    probabilities
        Probabilities of the source classes, (n, source classes).
    entropy
        Entropy of every image in nats, (n,).
    confidence, named
        The largest probability, and the source class that has it, (n,) each.
    """

    probabilities: NDArray[np.float32]
    entropy: NDArray[np.float64]
    confidence: NDArray[np.float64]
    named: Labels


def predict(head: SourceHead, penultimate: Rows) -> Predictions:
    """Apply the pretrained head to penultimate activations (n, d)."""
    n = len(penultimate)
    probabilities = np.empty((n, len(head.bias)), dtype=np.float32)
    entropy = np.empty(n)
    for start in range(0, n, _BLOCK):
        rows = slice(start, start + _BLOCK)
        logits = head.logits(penultimate[rows]).astype(np.float64)
        total = logsumexp(logits, axis=1)
        p = np.exp(logits - total[:, None])
        probabilities[rows] = p
        entropy[rows] = total - (p * logits).sum(axis=1)
    named = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1).astype(np.float64)
    return Predictions(probabilities, entropy, confidence, named)


def head_evidence(
    head: SourceHead,
    penultimate: Rows,
    labels: Labels,
    classes: Sequence[str],
    source_confident_share: float | None = None,
) -> HeadEvidence:
    """Compute all evidence from the predictions of the pretrained head.

    Classes have nearly equal weights (`balanced`).

    Parameters
    ----------
    labels
        Index into `classes` of every image, (n,).
    source_confident_share
        Share of confident predictions on images of the pretraining domain; None if not known.
    """
    predictions = predict(head, penultimate)
    weights = balanced(labels)
    confident = (predictions.confidence >= CONFIDENT).astype(np.float64)
    n_effective = 1 / float(np.square(weights.share).sum())
    return HeadEvidence(
        entropy=_mean(predictions.entropy, weights),
        confident_share=proportion(float(weights.share @ confident), n_effective),
        source_confident_share=source_confident_share,
        nearest_source_classes=nearest_source_classes(
            predictions.named, labels, classes, head.classes
        ),
        leep=_mean(leep_terms(predictions.probabilities, labels), weights),
    )


def nearest_source_classes(
    named: Labels, labels: Labels, classes: Sequence[str], source_classes: Sequence[str]
) -> tuple[NearestSourceClass, ...]:
    """Return the source class predicted most often for each class.

    The largest share (by its lower bound) is first.
    """
    found = []
    for label in np.unique(labels):
        counts = np.bincount(named[labels == label])
        best, n = int(counts.argmax()), int(counts.sum())
        share = proportion(counts[best] / n, n)
        found.append(NearestSourceClass(classes[label], source_classes[best], share))
    return tuple(sorted(found, key=lambda nearest: -nearest.share.low))


def _mean(values: NDArray[np.float64], weights: Weights) -> Interval:
    """Return the weighted mean with its normal interval."""
    mean = float(weights.share @ values)
    n_effective = 1 / float(np.square(weights.share).sum())
    variance = float(weights.share @ (values - mean) ** 2) / max(n_effective - 1, 1)
    half = float(ndtri(0.5 + LEVEL / 2)) * variance**0.5
    return Interval(mean - half, mean, mean + half)
