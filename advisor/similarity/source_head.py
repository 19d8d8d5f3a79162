"""What the old head says of the new images: evidence that the datasets are related."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import norm

from advisor.similarity.bn_shift import Weights, balanced
from advisor.similarity.transferability import leep_terms, nce_terms
from advisor.types.similarity import HeadEvidence, NearestSourceClass
from strategies.core.cache import Rows
from strategies.core.metrics import LEVEL, Interval, Labels, proportion
from strategies.models.features import SourceHead

CONFIDENT = 0.5
"""A prediction of at least this probability is a confident one."""
_BLOCK = 512


@dataclass(frozen=True)
class Predictions:
    """What a head says of each image.

    Attributes
    ----------
    entropy, energy
        Of every image in nats, (n,). Energy is minus the log of the summed exponentials of the
        logits: low for images like those of pretraining.
    confidence, named
        The largest probability, and whose it is.
    """

    probabilities: NDArray[np.float32]
    entropy: NDArray[np.float64]
    energy: NDArray[np.float64]
    confidence: NDArray[np.float64]
    named: Labels


def predict(head: SourceHead, penultimate: Rows) -> Predictions:
    """Apply the old head to penultimate activations (n, d).

    References
    ----------
    On energy: W. Liu et al., Energy-based out-of-distribution detection, NeurIPS 2020.
    """
    n = len(penultimate)
    probabilities = np.empty((n, len(head.bias)), dtype=np.float32)
    entropy, energy = np.empty(n), np.empty(n)
    for start in range(0, n, _BLOCK):
        rows = slice(start, start + _BLOCK)
        logits = head.logits(penultimate[rows]).astype(np.float64)
        total = logsumexp(logits, axis=1)
        p = np.exp(logits - total[:, None])
        probabilities[rows], energy[rows] = p, -total
        entropy[rows] = total - (p * logits).sum(axis=1)
    named = probabilities.argmax(axis=1)
    return Predictions(
        probabilities, entropy, energy, probabilities.max(axis=1).astype(np.float64), named
    )


def head_evidence(
    head: SourceHead,
    penultimate: Rows,
    labels: Labels,
    classes: Sequence[str],
    source_confident_share: float | None = None,
) -> HeadEvidence:
    """Collect what the old head says, classes weighing the same.

    Parameters
    ----------
    labels
        Index into `classes` of every image, (n,).
    source_confident_share
        Share of confident predictions on images of the pretraining domain, where known.
    """
    said = predict(head, penultimate)
    weights = balanced(labels)
    confident = (said.confidence >= CONFIDENT).astype(np.float64)
    n_effective = 1 / float(np.square(weights.share).sum())
    return HeadEvidence(
        entropy=_mean(said.entropy, weights),
        energy=_mean(said.energy, weights),
        confident_share=proportion(float(weights.share @ confident), n_effective),
        source_confident_share=source_confident_share,
        nearest_source_classes=nearest_source_classes(said.named, labels, classes, head.classes),
        leep=_mean(leep_terms(said.probabilities, labels), weights),
        nce=_mean(nce_terms(said.named, labels), weights),
    )


def nearest_source_classes(
    named: Labels, labels: Labels, classes: Sequence[str], source_classes: Sequence[str]
) -> tuple[NearestSourceClass, ...]:
    """Find the old class that most images of each new class are called, surest first."""
    found = []
    for label in np.unique(labels):
        counts = np.bincount(named[labels == label])
        best, n = int(counts.argmax()), int(counts.sum())
        share = proportion(counts[best] / n, n)
        found.append(NearestSourceClass(classes[label], source_classes[best], share))
    return tuple(sorted(found, key=lambda landing: -landing.share.low))


def _mean(values: NDArray[np.float64], weights: Weights) -> Interval:
    """Weighted mean with its normal interval (what each image says is taken as given)."""
    mean = float(weights.share @ values)
    n_effective = 1 / float(np.square(weights.share).sum())
    variance = float(weights.share @ (values - mean) ** 2) / max(n_effective - 1, 1)
    half = float(norm.ppf(0.5 + LEVEL / 2)) * variance**0.5
    return Interval(mean - half, mean, mean + half)
