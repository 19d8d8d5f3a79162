"""Feature passes that are compiled: equal rows, batches of one size, and what is given back."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from strategies.core.cache import ArrayCache
from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset
from strategies.kernels import compiled
from strategies.models import features, multi_view
from strategies.models.backbone import Backbone
from strategies.models.features import extract_features
from strategies.models.multi_view import extract_views
from tests.compiling import Tracer, compile_soon, trace_only

NETWORKS = ("cnn", "test_vit", "test_convnext", "test_resnet")
N_IMAGES, BATCH = 26, 5
"""The last batch has one image."""
COMPILED = [5, 5, 5]
"""Sizes of the batches that run compiled: the third to the fifth."""
TOLERANCE = 2e-3
"""Of the Euclidean norm of the rows in float32: twice the rounding of the cache."""

Pass = Callable[[Dataset, Backbone, RunContext], list[NDArray[np.float32]]]


@pytest.fixture
def resets(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Compile passes after two batches of `BATCH` images; return how often torch was reset."""
    monkeypatch.setattr(features, "batches", partial(features.batches, size=BATCH))
    monkeypatch.setattr(multi_view, "INFERENCE_BATCH", 2 * 6)
    yield compile_soon(monkeypatch)
    torch.compiler.reset()


@pytest.fixture
def tracer(monkeypatch: pytest.MonkeyPatch) -> Tracer:
    return trace_only(monkeypatch)


@pytest.fixture
def network_named(
    backbone: Backbone, load_random: Callable[..., Backbone]
) -> Callable[[str], Backbone]:
    """Return a loader: the embedded CNN, or a small network with random weights."""
    return lambda name: backbone if name == "cnn" else load_random(name, input_px=64)


def feature_rows(
    dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> list[NDArray[np.float32]]:
    found = extract_features(dataset.fit_split[:N_IMAGES], backbone, ctx)
    moments = [found.moments.mean, found.moments.square] if found.moments else []
    return [*found.pooled, *moments]


def view_rows(dataset: Dataset, backbone: Backbone, ctx: RunContext) -> list[NDArray[np.float32]]:
    found = extract_views(dataset.fit_split[:11], backbone, ctx, 6)
    return [*found.mean, *found.grid]


def compiled_and_not(
    rows: Pass, dataset: Dataset, backbone: Backbone, ctx: RunContext, tmp_path: Path
) -> list[list[NDArray[np.float32]]]:
    """Return the rows of a pass that is compiled, and of one that is not."""
    found = rows(dataset, backbone, ctx)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "can_compile", lambda ctx: False)
        other = replace(ctx, cache=ArrayCache(tmp_path / "other"))
        return [found, rows(dataset, backbone, other)]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_hooks_of_a_network_are_compiled_with_it_as_one_graph(
    small_dataset: Dataset,
    network_named: Callable[[str], Backbone],
    ctx: RunContext,
    resets: list[str],
    tracer: Tracer,
    tmp_path: Path,
    name: str,
) -> None:
    given = (feature_rows, small_dataset, network_named(name), ctx, tmp_path)
    found, expected = compiled_and_not(*given)
    assert len(tracer.graphs) == 1
    assert tracer.sizes == COMPILED  # the last image of the pass ran as before
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert resets == ["reset"] * 2  # before compiling, and at the end of the pass


def test_a_pass_over_views_is_compiled_too(
    small_dataset: Dataset,
    backbone: Backbone,
    ctx: RunContext,
    resets: list[str],
    tracer: Tracer,
    tmp_path: Path,
) -> None:
    found, expected = compiled_and_not(view_rows, small_dataset, backbone, ctx, tmp_path)
    assert (len(tracer.graphs), tracer.sizes) == (1, [12, 12, 12])
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert resets == ["reset"] * 2


def test_parts_that_fit_into_memory_are_not_compiled_one_by_one(
    small_dataset: Dataset,
    network_named: Callable[[str], Backbone],
    ctx: RunContext,
    resets: list[str],
    tracer: Tracer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    to_input = features.to_input

    def short_of_memory(pixels: NDArray[np.uint8], *given: object) -> Tensor:
        if len(tracer.sizes) >= 2 and len(pixels) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return to_input(pixels, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(features, "to_input", short_of_memory)
    given = (feature_rows, small_dataset, network_named("test_vit"), ctx, tmp_path)
    found, expected = compiled_and_not(*given)
    assert (len(tracer.graphs), tracer.sizes) == (1, [5, 5])
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-5)


def test_the_user_is_told_and_the_cost_is_kept_in_the_cache(
    small_dataset: Dataset,
    network_named: Callable[[str], Backbone],
    ctx: RunContext,
    resets: list[str],
    tracer: Tracer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notes: list[str] = []
    noted = replace(ctx, reporter=Reporter(on_note=notes.append))
    feature_rows(small_dataset, network_named("test_vit"), noted)
    (note,) = notes
    assert note.startswith("Feature passes are compiled: ")
    assert "less time per image, after " in note
    monkeypatch.setattr(compiled, "MIN_SAVING", 1e6)
    monkeypatch.setattr(compiled, "ASSUMED", None)  # not asked for: the cost is known
    features.time_features(small_dataset.fit_split[:N_IMAGES], network_named("test_vit"), noted)
    assert len(tracer.graphs) == 1


def test_a_pass_that_ends_early_gives_back_the_memory_of_cuda_graphs(
    small_dataset: Dataset,
    network_named: Callable[[str], Backbone],
    ctx: RunContext,
    resets: list[str],
    tracer: Tracer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def end(_: RunContext) -> None:
        if tracer.sizes:
            raise OutOfTime("no time")

    monkeypatch.setattr(RunContext, "check_time", end)
    with pytest.raises(OutOfTime):
        feature_rows(small_dataset, network_named("test_vit"), ctx)
    assert (tracer.sizes, resets) == ([5], ["reset"] * 2)


def test_nothing_is_compiled_on_a_cpu(
    small_dataset: Dataset, network_named: Callable[[str], Backbone], ctx: RunContext
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("torch.compile was called")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", refuse)
        patch.setattr(compiled, "CHECK_BATCHES", 1)
        patch.setattr(compiled, "ASSUMED", compiled.CompileCost(0.0, 0.5))
        patch.setattr(features, "batches", partial(features.batches, size=BATCH))
        feature_rows(small_dataset, network_named("test_vit"), ctx)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for CPUs with g++")
@pytest.mark.parametrize("name", NETWORKS)
def test_compiled_code_computes_the_same_rows(
    small_dataset: Dataset,
    network_named: Callable[[str], Backbone],
    ctx: RunContext,
    resets: list[str],
    tmp_path: Path,
    name: str,
) -> None:
    given = (feature_rows, small_dataset, network_named(name), ctx, tmp_path)
    found, expected = compiled_and_not(*given)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.linalg.norm(ours - theirs) < TOLERANCE * np.linalg.norm(theirs)
