"""What is compiled computes what runs without compiling: feature passes, and training steps."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from strategies.core import allocator
from strategies.core.cache import ArrayCache
from strategies.core.context import RunContext
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset
from strategies.models import features
from strategies.models.backbone import Backbone
from strategies.models.classifier import make_network
from strategies.models.features import extract_features
from strategies.training import optimiser
from strategies.training.optimiser import CHECK_STEPS
from strategies.training.recipe import Recipe
from strategies.training.trainer import train
from tests.compiling import compile_soon
from tests.gpu.conftest import Devices
from tests.gpu.loops import make_loop, relative_error
from tests.gpu.synchronisation import no_synchronisation

pytestmark = pytest.mark.gpu

Load = Callable[[str], Backbone]
TOLERANCE = {"float32": 2e-3, "own": 2e-2}
"""Of the Euclidean norm of the rows of a depth. In float32 it is twice the rounding of the cache;
in 16 bits, what benchmarks/gpu.py allows."""
WEIGHT_TOLERANCE = 2e-2
"""Of the Euclidean norm of what a run adds to a weight."""


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Compile after two checks; give back what the user is told."""
    torch._dynamo.utils.counters.clear()
    compile_soon(monkeypatch)
    yield []
    torch.compiler.reset()


def noting(ctx: RunContext, notes: list[str]) -> RunContext:
    return replace(ctx, reporter=Reporter(on_note=notes.append))


@pytest.mark.parametrize(
    ("name", "precision"), [("cnn", "own"), ("vit", "float32"), ("convnext", "own")]
)
def test_a_compiled_feature_pass_gives_the_same_rows(
    devices: Devices,
    small_dataset: Dataset,
    network_named: Load,
    notes: list[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    precision: str,
) -> None:
    monkeypatch.setattr(features, "batches", partial(features.batches, size=3))
    monkeypatch.setattr(features, "N_ROUNDING_IMAGES", 3)  # one batch
    monkeypatch.setattr(allocator, "MAX_INFERENCE_BATCH", 3)  # nine batches, the last of two
    backbone, ctx = network_named(name), devices.with_precision(precision)
    images = small_dataset.fit_split[:26]
    found = extract_features(images, backbone, noting(ctx, notes))
    assert [note.split(": ")[0] for note in notes] == ["Feature passes are compiled"]
    n_skipped = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
    assert n_skipped == (0 if ctx.device.type == "cuda" else 1)
    other = ArrayCache(ctx.cache.path.parent / "not compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("strategies.kernels.compiled.can_compile", lambda ctx: False)
        expected = extract_features(images, backbone, replace(ctx, cache=other))
    pairs = list(zip(found.pooled, expected.pooled, strict=True))
    if found.moments is not None and expected.moments is not None:
        pairs += [(found.moments.mean, expected.moments.mean)]
        pairs += [(found.moments.square, expected.moments.square)]
    for number, (ours, theirs) in enumerate(pairs):
        assert relative_error(ours, theirs) < TOLERANCE[precision], number
        assert np.isfinite(ours).all()


def _changes(
    backbone: Backbone, dataset: Dataset, recipe: Recipe, ctx: RunContext
) -> dict[str, Tensor]:
    """Return what a run of training adds to every weight."""
    with ctx.seeded():
        network = make_network(backbone, (backbone.n_depths,), dataset.n_classes)
        start = {name: value.clone() for name, value in network.state_dict().items()}
        train(network, replace(dataset, val=()), backbone, recipe, ctx)
    return {name: value.cpu() - start[name] for name, value in network.state_dict().items()}


# Adam's first steps amplify rounding errors where a gradient is nearly zero.
SGD = Recipe(8, 1e-2, batch_size=8, batch_norm="trained", optimiser="sgd")


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_a_compiled_training_run_gives_the_same_weights(
    devices: Devices,
    small_dataset: Dataset,
    network_named: Load,
    notes: list[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setattr(optimiser, "CHECK_STEPS", 1)
    backbone = network_named(name)
    found = _changes(backbone, small_dataset, SGD, noting(devices.gpu, notes))
    assert [note.split(": ")[0] for note in notes] == ["Training steps are compiled"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("strategies.training.loop.can_compile", lambda ctx: False)
        expected = _changes(backbone, small_dataset, SGD, devices.gpu)
    moved = [k for k, v in expected.items() if v.is_floating_point() and v.abs().max() > 1e-5]
    assert "head.weight" in moved
    for key in moved:
        assert relative_error(found[key], expected[key]) < WEIGHT_TOLERANCE, key


def test_compiled_steps_between_two_checks_wait_for_nothing(
    devices: Devices, small_dataset: Dataset, network_named: Load, notes: list[str]
) -> None:
    recipe = Recipe(1000, 1e-3, batch_size=8, batch_norm="trained")
    ctx = noting(devices.own, notes)
    loop = make_loop(network_named("resnet"), small_dataset, recipe, ctx)
    with contextlib.closing(loop.inputs.batches(0)) as batches:
        for _ in range(5 * CHECK_STEPS):  # decided, compiled and judged
            with ctx.device_settings():
                loop.take_step(*next(batches))
        assert [note.split(": ")[0] for note in notes] == ["Training steps are compiled"]
        with ctx.device_settings(), no_synchronisation():
            for _ in range(CHECK_STEPS - 1):
                loop.take_step(*next(batches))
