import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset, load_dataset
from strategies.heads import compute_budget
from strategies.heads.compute_budget import (
    affordable_subset,
    affordable_views,
    interleave_classes,
)
from strategies.linear_probe import LinearProbe
from strategies.models.backbone import Backbone
from strategies.models.features import INFERENCE_BATCH, extract_features, not_cached


@pytest.fixture
def dataset(make_folder: Callable[..., Path]) -> Dataset:
    return load_dataset(make_folder("d", 60))


@pytest.fixture
def small(backbone: Backbone) -> Backbone:
    return replace(backbone, input_px=32)


def with_limit(seconds: float, ctx: RunContext, notes: list[str]) -> RunContext:
    return replace(
        ctx, deadline_s=time.monotonic() + seconds, reporter=Reporter(on_note=notes.append)
    )


def test_with_enough_time_all_views_and_images_are_kept(
    dataset: Dataset, small: Backbone, ctx: RunContext
) -> None:
    notes: list[str] = []
    for given in (ctx, with_limit(600, ctx, notes)):
        assert affordable_subset(dataset, small, given, (6, 1)) == (dataset, (6, 1))
        assert affordable_views(dataset, small, given, (6, 1)) == (6, 1)
    assert not notes


def test_under_a_time_limit_views_are_dropped_first_then_images_and_both_are_reported(
    dataset: Dataset, small: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    n = len(dataset.train)
    monkeypatch.setattr(compute_budget, "affordable_passes", lambda *_: 2.0 * n)
    assert affordable_subset(dataset, small, with_limit(60, ctx, notes), (6, 1)) == (dataset, (1,))
    assert affordable_views(dataset, small, with_limit(60, ctx, notes), (6, 1)) == (1,)
    assert len(notes) == 2

    extract_features(dataset.train[:INFERENCE_BATCH], small, ctx)
    monkeypatch.setattr(compute_budget, "affordable_passes", lambda *_: 9.0)
    few, views = affordable_subset(dataset, small, with_limit(60, ctx, notes), (6, 1))
    assert views == (1,)
    assert len(few.train) == INFERENCE_BATCH + 9
    assert set(dataset.train[:INFERENCE_BATCH]) <= set(few.train)
    assert len(not_cached(few.train, small, ctx)) == 9
    assert f"{INFERENCE_BATCH + 9} of {n} images" in notes[-1]
    with pytest.raises(OutOfTime, match=f"of {n} images only"):
        affordable_views(dataset, small, with_limit(60, ctx, notes), (6, 1))


def test_a_linear_probe_under_a_short_time_limit_is_fitted_to_cached_images(
    dataset: Dataset, small: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute_budget, "PASS_SHARE", 1e-9)
    notes: list[str] = []
    found = LinearProbe().fit(dataset, small, with_limit(60, ctx, notes))
    assert found.hyperparameters["views"] == 1
    assert f"{INFERENCE_BATCH} of {len(dataset.train)}" in notes[0]


def test_interleaved_images_are_in_round_robin_order_of_the_classes(dataset: Dataset) -> None:
    ordered = interleave_classes(dataset.train)
    assert sorted(ordered, key=lambda p: p.path) == sorted(dataset.train, key=lambda p: p.path)
    n = dataset.n_classes
    assert {p.label for p in ordered[:n]} == {p.label for p in ordered[n : 2 * n]}
