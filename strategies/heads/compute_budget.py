"""Compute budget: reduce views, then train images, of a linear head to meet a time limit."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime
from strategies.data.dataset import Dataset, LabelledImage
from strategies.models.backbone import Backbone
from strategies.models.features import INFERENCE_BATCH, extract_features, not_cached

PASS_SHARE = 0.7
"""Share of the remaining time that forward passes over the images may take. The rest is for the
fit of the head, and for a machine that becomes slower."""


def affordable_passes(dataset: Dataset, backbone: Backbone, ctx: RunContext) -> float:
    """Return how many images can pass the frozen backbone in time; infinite without a limit."""
    left_s = ctx.seconds_left()
    if np.isinf(left_s):
        return np.inf
    sample = extract_features(dataset.train[:INFERENCE_BATCH], backbone, ctx)
    return float(PASS_SHARE * left_s * 1000 / sample.ms_per_image)


def affordable_views(
    dataset: Dataset, backbone: Backbone, ctx: RunContext, views: tuple[int, ...]
) -> tuple[int, ...]:
    """Return those of the numbers of views that there is time for.

    Raises
    ------
    OutOfTime
        If there is no time for one view of every image.
    """
    n, n_passes = len(dataset.train), affordable_passes(dataset, backbone, ctx)
    kept = tuple(v for v in views if v * n <= n_passes)
    if not kept:
        raise OutOfTime(f"The time limit allows features of {n_passes:.0f} of {n} images only.")
    return _note_fewer_views(kept, views, ctx)


def affordable_subset(
    dataset: Dataset, backbone: Backbone, ctx: RunContext, views: tuple[int, ...]
) -> tuple[Dataset, tuple[int, ...]]:
    """Drop numbers of views, then train images, that there is no time for, and report it.

    Images whose features are in the cache are always kept. They include those that the advice was
    measured on, so the train set is never empty.
    """
    n_passes = affordable_passes(dataset, backbone, ctx)
    kept = tuple(v for v in views if v == 1 or v * len(dataset.train) <= n_passes)
    uncached = not_cached(dataset.train, backbone, ctx) if np.isfinite(n_passes) else ()
    if len(uncached) > n_passes:
        dropped = {image.path for image in interleave_classes(uncached)[int(n_passes) :]}
        train = tuple(image for image in dataset.train if image.path not in dropped)
        ctx.reporter.on_note(
            f"The head is fitted to {len(train)} of {len(dataset.train)} images, because of the "
            "time limit."
        )
        return replace(dataset, train=train), kept
    return dataset, _note_fewer_views(kept, views, ctx)


def interleave_classes(images: Sequence[LabelledImage]) -> list[LabelledImage]:
    """Order images round-robin by class: one of every class, then a second of each, and so on."""
    counts: Counter[int] = Counter()
    ranks = []
    for image in images:
        ranks.append(counts[image.label])
        counts[image.label] += 1
    return [images[i] for i in np.argsort(ranks, kind="stable")]


def _note_fewer_views(
    kept: tuple[int, ...], views: tuple[int, ...], ctx: RunContext
) -> tuple[int, ...]:
    if kept != views:
        ctx.reporter.on_note(
            f"Views of every image: at most {max(kept)}, because of the time limit."
        )
    return kept
