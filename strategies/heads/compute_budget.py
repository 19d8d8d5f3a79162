"""What a time limit leaves room for: fewer views first, then fewer pictures."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime
from strategies.data.dataset import ImageTask, Picture
from strategies.models.backbone import Backbone
from strategies.models.features import BATCH, extract_features, not_cached

PASS_SHARE = 0.5
"""Passes over the pictures may take this share of what is left of a time limit."""


def passes_left(task: ImageTask, backbone: Backbone, ctx: RunContext) -> float:
    """Return how many pictures the frozen network can be shown; infinite without a time limit."""
    left_s = ctx.seconds_left()
    if np.isinf(left_s):
        return np.inf
    some = extract_features(task.train[:BATCH], backbone, ctx)
    return float(PASS_SHARE * left_s * 1000 / some.ms_per_image)


def affordable_views(
    task: ImageTask, backbone: Backbone, ctx: RunContext, views: tuple[int, ...]
) -> tuple[int, ...]:
    """Leave out numbers of views that there is no time for.

    Raises
    ------
    OutOfTime
        If there is no time for a single view of every picture.
    """
    n, most = len(task.train), passes_left(task, backbone, ctx)
    kept = tuple(v for v in views if v * n <= most)
    if not kept:
        raise OutOfTime(f"Of {n} pictures the time limit leaves room for {most:.0f}.")
    return _said(kept, views, ctx)


def affordable(
    task: ImageTask, backbone: Backbone, ctx: RunContext, views: tuple[int, ...]
) -> tuple[ImageTask, tuple[int, ...]]:
    """Leave out numbers of views, then pictures, that there is no time for, and say so.

    Pictures whose features are in the cache always stay, so that there is always something to
    learn from: those that the advice was measured on.
    """
    most = passes_left(task, backbone, ctx)
    kept = tuple(v for v in views if v == 1 or v * len(task.train) <= most)
    waiting = not_cached(task.train, backbone, ctx) if np.isfinite(most) else ()
    if len(waiting) > most:
        left_out = {p.path for p in class_by_class(waiting)[int(most) :]}
        train = tuple(p for p in task.train if p.path not in left_out)
        ctx.on_note(
            f"The head learns from {len(train)} of {len(task.train)} pictures: the time limit "
            "leaves no room for more."
        )
        return replace(task, train=train), kept
    return task, _said(kept, views, ctx)


def class_by_class(pictures: Sequence[Picture]) -> list[Picture]:
    """Return one picture of every class, then a second one of each, and so on."""
    seen: Counter[int] = Counter()
    turns = []
    for picture in pictures:
        turns.append(seen[picture.label])
        seen[picture.label] += 1
    return [pictures[i] for i in np.argsort(turns, kind="stable")]


def _said(kept: tuple[int, ...], views: tuple[int, ...], ctx: RunContext) -> tuple[int, ...]:
    if kept != views:
        ctx.on_note(f"{max(kept)} view(s) of every picture: the time limit has no room for more.")
    return kept
