"""What a time limit leaves room for: fewer views first, then fewer images."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime
from strategies.data.dataset import Dataset, LabelledImage
from strategies.models.backbone import Backbone
from strategies.models.features import BATCH, extract_features, not_cached

PASS_SHARE = 0.5
"""Passes over the images may take this share of what is left of a time limit."""


def passes_left(dataset: Dataset, backbone: Backbone, ctx: RunContext) -> float:
    """Return how many images the frozen network can be shown; infinite without a time limit."""
    left_s = ctx.seconds_left()
    if np.isinf(left_s):
        return np.inf
    some = extract_features(dataset.train[:BATCH], backbone, ctx)
    return float(PASS_SHARE * left_s * 1000 / some.ms_per_image)


def affordable_views(
    dataset: Dataset, backbone: Backbone, ctx: RunContext, views: tuple[int, ...]
) -> tuple[int, ...]:
    """Leave out numbers of views that there is no time for.

    Raises
    ------
    OutOfTime
        If there is no time for a single view of every image.
    """
    n, most = len(dataset.train), passes_left(dataset, backbone, ctx)
    kept = tuple(v for v in views if v * n <= most)
    if not kept:
        raise OutOfTime(f"Of {n} images the time limit leaves room for {most:.0f}.")
    return _said(kept, views, ctx)


def affordable(
    dataset: Dataset, backbone: Backbone, ctx: RunContext, views: tuple[int, ...]
) -> tuple[Dataset, tuple[int, ...]]:
    """Leave out numbers of views, then images, that there is no time for, and say so.

    Images whose features are in the cache always stay, so that there is always something to
    learn from: those that the advice was measured on.
    """
    most = passes_left(dataset, backbone, ctx)
    kept = tuple(v for v in views if v == 1 or v * len(dataset.train) <= most)
    waiting = not_cached(dataset.train, backbone, ctx) if np.isfinite(most) else ()
    if len(waiting) > most:
        left_out = {p.path for p in interleave_classes(waiting)[int(most) :]}
        train = tuple(p for p in dataset.train if p.path not in left_out)
        ctx.on_note(
            f"The head learns from {len(train)} of {len(dataset.train)} images: the time limit "
            "leaves no room for more."
        )
        return replace(dataset, train=train), kept
    return dataset, _said(kept, views, ctx)


def interleave_classes(images: Sequence[LabelledImage]) -> list[LabelledImage]:
    """Return one image of every class, then a second one of each, and so on."""
    seen: Counter[int] = Counter()
    turns = []
    for image in images:
        turns.append(seen[image.label])
        seen[image.label] += 1
    return [images[i] for i in np.argsort(turns, kind="stable")]


def _said(kept: tuple[int, ...], views: tuple[int, ...], ctx: RunContext) -> tuple[int, ...]:
    if kept != views:
        ctx.on_note(f"{max(kept)} view(s) of every image: the time limit has no room for more.")
    return kept
