import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime
from strategies.data.dataset import Dataset, load_dataset
from strategies.heads import compute_budget as module
from strategies.heads.compute_budget import affordable, affordable_views, interleave_classes
from strategies.linear_probe import LinearProbe
from strategies.models.backbone import Backbone
from strategies.models.features import BATCH, extract_features, not_cached


@pytest.fixture
def dataset(make_folder: Callable[..., Path]) -> Dataset:
    return load_dataset(make_folder("d", 60))


@pytest.fixture
def small(backbone: Backbone) -> Backbone:
    return replace(backbone, input_px=32)


def within(seconds: float, ctx: RunContext, notes: list[str]) -> RunContext:
    return replace(ctx, deadline_s=time.monotonic() + seconds, on_note=notes.append)


def test_with_time_enough_nothing_is_left_out(
    dataset: Dataset, small: Backbone, ctx: RunContext
) -> None:
    notes: list[str] = []
    for each in (ctx, within(600, ctx, notes)):
        assert affordable(dataset, small, each, (6, 1)) == (dataset, (6, 1))
        assert affordable_views(dataset, small, each, (6, 1)) == (6, 1)
    assert not notes


def test_in_a_hurry_views_go_first_then_images_and_it_is_said(
    dataset: Dataset, small: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    n = len(dataset.train)
    monkeypatch.setattr(module, "passes_left", lambda *_: 2.0 * n)
    assert affordable(dataset, small, within(60, ctx, notes), (6, 1)) == (dataset, (1,))
    assert affordable_views(dataset, small, within(60, ctx, notes), (6, 1)) == (1,)
    assert len(notes) == 2

    extract_features(dataset.train[:BATCH], small, ctx)
    monkeypatch.setattr(module, "passes_left", lambda *_: 9.0)
    few, views = affordable(dataset, small, within(60, ctx, notes), (6, 1))
    assert views == (1,)
    assert len(few.train) == BATCH + 9
    assert set(dataset.train[:BATCH]) <= set(few.train)
    assert len(not_cached(few.train, small, ctx)) == 9
    assert f"{BATCH + 9} of {n} images" in notes[-1]
    with pytest.raises(OutOfTime, match=f"Of {n} images"):
        affordable_views(dataset, small, within(60, ctx, notes), (6, 1))


def test_a_probe_in_a_hurry_is_a_classifier_all_the_same(
    dataset: Dataset, small: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PASS_SHARE", 1e-9)
    notes: list[str] = []
    found = LinearProbe().fit(dataset, small, within(60, ctx, notes))
    assert found.hyperparameters["views"] == 1
    assert f"{BATCH} of {len(dataset.train)}" in notes[0]


def test_turns_are_taken_class_by_class(dataset: Dataset) -> None:
    ordered = interleave_classes(dataset.train)
    assert sorted(ordered, key=lambda p: p.path) == sorted(dataset.train, key=lambda p: p.path)
    n = dataset.n_classes
    assert {p.label for p in ordered[:n]} == {p.label for p in ordered[n : 2 * n]}
