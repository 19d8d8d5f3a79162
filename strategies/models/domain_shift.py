"""Domain shift: how far images are from ImageNet, as the embedded network sees them.

The shift is a property of the images: it is always measured with the same network at the same
input size, whatever backbone is adapted to them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from strategies.core.context import RunContext
from strategies.core.metrics import Labels, Scores
from strategies.core.progress import OnProgress
from strategies.data.dataset import LabelledImage, labels_of
from strategies.data.sampling import balanced_rows, content_order
from strategies.models.backbone import Backbone, load_backbone
from strategies.models.catalogue import DEFAULT_BACKBONE
from strategies.models.features import extract_features
from strategies.models.moments import Moments

Vector = NDArray[np.float64]

SHIFT_PX = 96
"""Input size of the embedded network for the domain shift. It separates datasets as well as 224 px
at a fifth of the cost, and the suite's rows were measured at it
(docs/benchmarks/similarity.md)."""
SHIFT_IMAGES = 200
"""Largest number of images. The ends of the similarity's 90% interval are then about 0.01 from it,
and the forward pass takes 4% of the time of an advice on 1,000 images."""
PHASE = "similarity"
"""Name under which the forward pass reports its progress."""

VARIANCE_OFFSET = 0.1
"""Added to all variances (in units of the pretraining variance).

It bounds the shift of channels that hardly vary.
"""


def bn_shift(
    mean: Scores, variance: Scores, source_mean: Vector | float, source_variance: Vector | float
) -> Vector:
    """Return the divergence of every channel's activations from those of the pretraining data.

    ``KL(N(mean, v + e) || N(source mean, source v + e))`` in nats with e = `VARIANCE_OFFSET`, for
    activations in units of the running statistics. It is 0 if the moments are those of the
    pretraining data, and unbounded above. Comparable between datasets on one backbone and input
    size.

    Parameters
    ----------
    mean, variance
        Moments by channel, shape (..., channels).
    source_mean, source_variance
        Moments on the pretraining data, shape (channels,). The running statistics themselves have
        mean 0 and variance 1.
    """
    v, s = np.maximum(variance, 0) + VARIANCE_OFFSET, source_variance + VARIANCE_OFFSET
    shift: Vector = 0.5 * ((v + (mean - source_mean) ** 2) / s - 1 - np.log(v / s))
    return shift


def by_layer(values: Vector, layer: NDArray[np.int64]) -> Vector:
    """Return the mean over the columns of each layer; layers are numbered in order."""
    starts = np.flatnonzero(np.diff(layer, prepend=-1))
    counts = np.diff(np.append(starts, len(layer)))
    means: Vector = np.add.reduceat(values, starts, axis=-1) / counts
    return means


def mean_shift(moments: Moments) -> float:
    """Return the mean over layers of the shift from the running statistics, in nats.

    All images have the same weight. It is a plug-in estimate, so few images bias it upwards.
    """
    mean = moments.mean.mean(axis=0, dtype=np.float64)
    variance = moments.square.mean(axis=0, dtype=np.float64) - mean**2
    return float(by_layer(bn_shift(mean, variance, 0.0, 1.0), moments.layer).mean())


@dataclass(frozen=True)
class ShiftSample:
    """The images that the domain shift is measured on.

    Attributes
    ----------
    labels
        Class of every image, (n,).
    moments
        Moments of the embedded network's BatchNorm inputs, one row per image.
    """

    labels: Labels
    moments: Moments


def shift_network() -> Backbone:
    """Return the embedded network at the input size of the domain shift."""
    return replace(load_backbone(DEFAULT_BACKBONE), input_px=SHIFT_PX)


def measure_moments(images: Sequence[LabelledImage], ctx: RunContext) -> ShiftSample:
    """Run the embedded network over at most `SHIFT_IMAGES` images, drawn evenly over the classes.

    The draw depends on the images' contents, their labels and the seed alone. The features are
    cached; an advice on the embedded network at the same input size uses them again.

    Raises
    ------
    OutOfTime
        If the deadline passes first.
    """
    labels = labels_of(tuple(images))
    order = content_order((image.digest for image in images), ctx.seed)
    rows = balanced_rows(labels, SHIFT_IMAGES, order)
    features = extract_features([images[i] for i in rows], shift_network(), _reporting(ctx))
    assert features.moments is not None
    return ShiftSample(labels[rows], features.moments)


def _reporting(ctx: RunContext) -> RunContext:
    """Return the context with progress reported under the name of this phase."""
    report: OnProgress = ctx.reporter.on_progress

    def on_progress(_: str, done: int, total: int) -> None:
        report(PHASE, done, total)

    return replace(ctx, reporter=replace(ctx.reporter, on_progress=on_progress))
