"""Cached activations of frozen stages: same outputs, sharing, limits and fallbacks."""

import copy
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from strategies.core.activation_store import ActivationStore
from strategies.core.context import RunContext, TrainingResources
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.models.classifier import make_network
from strategies.models.features import batches, to_input
from strategies.models.network import Network
from strategies.models.stages import stages
from strategies.training import frozen_activations
from strategies.training.dataloader import ImageInputs, Inputs
from strategies.training.frozen_activations import CachedPrefix, make_inputs
from strategies.training.recipe import Recipe
from strategies.training.trainer import train
from tests.gpu.synchronisation import no_synchronisation

RECIPE = Recipe(20, 0.01, batch_size=8, frozen_stages=2)


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def ctx(ctx: RunContext, notes: list[str]) -> RunContext:
    return replace(ctx, reporter=Reporter(on_note=notes.append))


def _network(backbone: Backbone, ctx: RunContext) -> Network:
    with ctx.seeded():
        return make_network(backbone, (backbone.n_depths,), 3)


@pytest.mark.parametrize("frozen", [1, 3, 5])
def test_the_suffix_on_cached_activations_gives_the_scores_of_the_network(
    backbone: Backbone, small_dataset: Dataset, ctx: RunContext, notes: list[str], frozen: int
) -> None:
    network = _network(backbone, ctx).eval()
    stage = stages(network.body.net, backbone)
    recipe = replace(RECIPE, frozen_stages=frozen)
    paths = [p.path for p in small_dataset.val]
    images = torch.cat([to_input(p, backbone, ctx.device) for p in batches(paths, backbone, 1)])

    inputs = make_inputs(network, stage, small_dataset, backbone, recipe, ctx)
    assert isinstance(inputs, CachedPrefix)
    with torch.no_grad():
        found = torch.cat([inputs.network.eval()(part) for part in inputs.val()])
        expected = network(images)

    assert not notes
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.01 * float(expected.abs().max()))


def test_a_row_of_a_batch_is_a_view_of_its_image_and_views_alternate(
    backbone: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    dataset = replace(small_dataset, train=small_dataset.train[:6])
    network = _network(backbone, ctx)
    stage = stages(network.body.net, backbone)
    recipe = replace(RECIPE, batch_size=6)
    inputs = make_inputs(network, stage, dataset, backbone, recipe, ctx)
    assert isinstance(inputs, CachedPrefix)
    n, views = inputs.train.shape[:2]
    assert n == 6
    assert 1 < views < recipe.steps
    drawn: dict[int, list[int]] = {row: [] for row in range(6)}
    for rows, values in islice(inputs.batches(0), views):
        for row, value in zip(rows, values.numpy(), strict=True):
            matches = [
                np.array_equal(value, view.astype(np.float32)) for view in inputs.train[row]
            ]
            drawn[row].append(matches.index(True))
    resumed = next(iter(inputs.batches(2)))
    third = next(islice(inputs.batches(0), 2, None))

    assert all(sorted(order) == list(range(views)) for order in drawn.values())
    assert resumed[0] == third[0]
    assert torch.equal(resumed[1], third[1])


class _Watched(np.ndarray):
    """Array that notes in which threads its rows are read."""

    threads: set[str]

    def __array_finalize__(self, _: object) -> None:
        self.threads = set()

    def __getitem__(self, index: Any) -> Any:
        self.threads.add(threading.current_thread().name)
        return np.asarray(self).__getitem__(index)


@pytest.fixture
def prefix(backbone: Backbone, small_dataset: Dataset, ctx: RunContext) -> CachedPrefix:
    """Inputs with random activations, cheaper than those of a network."""
    rng = np.random.default_rng(0)
    train = rng.normal(size=(12, 3, 4, 5, 5)).astype(np.float16)
    val = rng.normal(size=(50, 4, 5, 5)).astype(np.float16)
    return CachedPrefix(_network(backbone, ctx), train, val, RECIPE, ctx)


def test_activations_are_gathered_outside_the_main_thread(prefix: CachedPrefix) -> None:
    watched = replace(
        prefix, train=prefix.train.view(_Watched), val_rows=prefix.val_rows.view(_Watched)
    )
    list(islice(watched.batches(0), 3))
    list(watched.val())
    main = threading.current_thread().name
    for rows in (watched.train, watched.val_rows):
        assert isinstance(rows, _Watched)
        assert rows.threads
        assert main not in rows.threads


def test_batches_have_exactly_the_cached_values_in_full_precision(prefix: CachedPrefix) -> None:
    views = prefix.train.shape[1]
    for number, (rows, values) in enumerate(islice(prefix.batches(0), 9)):
        epochs = (number * RECIPE.batch_size + np.arange(RECIPE.batch_size)) // len(prefix.train)
        expected = prefix.train[rows, (np.asarray(rows) + epochs) % views].astype(np.float32)
        assert values.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_array_equal(values.numpy(), expected, strict=True)
    found = torch.cat(list(prefix.val()))
    np.testing.assert_array_equal(found.numpy(), prefix.val_rows.astype(np.float32), strict=True)


@pytest.mark.parametrize("read", [lambda p: p.batches(0), CachedPrefix.val])
def test_the_threads_that_gather_end_with_the_loop(
    prefix: CachedPrefix, read: Callable[[CachedPrefix], Iterator[object]]
) -> None:
    before = threading.active_count()
    batches: Any = read(prefix)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


@pytest.mark.gpu
def test_activations_on_cuda_equal_those_on_the_cpu_and_no_copy_waits(
    prefix: CachedPrefix, cuda: torch.device
) -> None:
    there = replace(prefix, ctx=replace(prefix.ctx, device=cuda))
    with no_synchronisation():
        found = [*islice(there.batches(0), 6)], list(there.val())
    for (rows, values), (known, expected) in zip(found[0], prefix.batches(0), strict=False):
        assert rows == known
        assert values.device.type == "cuda"
        assert torch.equal(values.cpu(), expected)
    assert torch.equal(torch.cat(found[1]).cpu(), torch.cat(list(prefix.val())))


def test_frozen_stages_run_once_for_any_number_of_epochs(
    backbone: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    network = _network(backbone, ctx)
    n_images: list[int] = []

    def count(module: object, inputs: tuple[torch.Tensor], output: object) -> None:
        n_images.append(len(inputs[0]))

    network.body.net.get_submodule("blocks.0").register_forward_hook(count)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    train(network, small_dataset, backbone, RECIPE, ctx)

    n_val = len(small_dataset.val)
    assert sum(n_images) <= 0.5 * RECIPE.steps * RECIPE.batch_size + n_val
    changed = {k for k, v in network.state_dict().items() if not torch.equal(before[k], v)}
    assert "head.weight" in changed
    assert not {k for k in changed if "blocks.0." in k or "blocks.1." in k or "conv_stem" in k}
    assert any("blocks.5." in k for k in changed)


def test_runs_that_freeze_the_same_stages_share_the_file_and_the_result_is_the_same(
    backbone: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled: list[object] = []
    fill = frozen_activations._fill_train
    monkeypatch.setattr(
        frozen_activations, "_fill_train", lambda *a: (filled.append(a[0]), fill(*a))
    )
    sharing = replace(ctx, training=TrainingResources(activation_store=ActivationStore()))
    other_lr = replace(RECIPE, lr=0.003)
    alone = _trained(backbone, small_dataset, other_lr, ctx)
    assert len(filled) == 1
    _trained(backbone, small_dataset, RECIPE, sharing)
    shared = _trained(backbone, small_dataset, other_lr, sharing)

    assert len(filled) == 2
    assert all(torch.equal(alone[k], shared[k]) for k in alone)


@pytest.mark.parametrize(
    "change", [{"frozen_stages": 3}, {"hflip": not RECIPE.hflip}, {"min_area": 0.3}, {"steps": 60}]
)
def test_activations_are_not_shared_between_other_stages_or_crops(
    backbone: Backbone, small_dataset: Dataset, ctx: RunContext, change: dict[str, Any]
) -> None:
    ctx = replace(ctx, training=TrainingResources(activation_store=ActivationStore()))
    first, again, other = (
        _cached(backbone, small_dataset, r, ctx)
        for r in (RECIPE, RECIPE, replace(RECIPE, **change))
    )
    assert np.shares_memory(first.train, again.train)
    assert not np.shares_memory(first.train, other.train)


def test_activations_of_other_weights_or_images_are_not_shared(
    backbone: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    ctx = replace(ctx, training=TrainingResources(activation_store=ActivationStore()))
    first = _cached(backbone, small_dataset, RECIPE, ctx)
    fewer = replace(small_dataset, train=small_dataset.train[1:])
    random = backbone.with_random_weights()
    assert not np.shares_memory(first.train, _cached(backbone, fewer, RECIPE, ctx).train)
    assert not np.shares_memory(first.train, _cached(random, small_dataset, RECIPE, ctx).train)


@pytest.mark.parametrize(("module", "shared"), [("bn1", False), ("blocks.6", True)])
def test_activations_are_shared_if_only_stages_after_the_frozen_ones_differ(
    backbone: Backbone, small_dataset: Dataset, ctx: RunContext, module: str, *, shared: bool
) -> None:
    ctx = replace(ctx, training=TrainingResources(activation_store=ActivationStore()))
    first = _cached(backbone, small_dataset, RECIPE, ctx)
    network = _network(backbone, ctx)
    for value in network.body.net.get_submodule(module).state_dict().values():
        value += 1
    stage = stages(network.body.net, backbone)
    found = make_inputs(network, stage, small_dataset, backbone, RECIPE, ctx)
    assert isinstance(found, CachedPrefix)
    assert np.shares_memory(first.train, found.train) is shared


def test_old_files_are_evicted_to_make_room_for_new_ones(
    backbone: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = replace(ctx, training=TrainingResources(activation_store=ActivationStore()))
    first = _cached(backbone, small_dataset, RECIPE, ctx)
    n_bytes = first.train.nbytes + first.val_rows.nbytes
    monkeypatch.setattr(frozen_activations, "MOST_BYTES", 1.5 * n_bytes)
    _cached(backbone, small_dataset, replace(RECIPE, hflip=not RECIPE.hflip), ctx)
    again = _cached(backbone, small_dataset, RECIPE, ctx)
    assert not np.shares_memory(first.train, again.train)
    assert np.array_equal(first.train, again.train)


def _inputs(
    network: Network, dataset: Dataset, backbone: Backbone, recipe: Recipe, ctx: RunContext
) -> Inputs:
    stage = stages(network.body.net, backbone)
    return make_inputs(network, stage, dataset, backbone, recipe, ctx)


def _trained(
    backbone: Backbone, dataset: Dataset, recipe: Recipe, ctx: RunContext
) -> dict[str, torch.Tensor]:
    network = _network(backbone, ctx)
    train(network, dataset, backbone, recipe, ctx)
    return network.state_dict()


def _cached(backbone: Backbone, dataset: Dataset, recipe: Recipe, ctx: RunContext) -> CachedPrefix:
    found = _inputs(_network(backbone, ctx), dataset, backbone, recipe, ctx)
    assert isinstance(found, CachedPrefix)
    return found


def test_a_file_that_is_too_large_is_reported_and_images_are_used(
    backbone: Backbone,
    small_dataset: Dataset,
    ctx: RunContext,
    notes: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frozen_activations, "MOST_BYTES", 1000)
    network = _network(backbone, ctx)
    stage = stages(network.body.net, backbone)

    inputs = make_inputs(network, stage, small_dataset, backbone, RECIPE, ctx)

    assert isinstance(inputs, ImageInputs)
    assert len(notes) == 1
    assert "GB" in notes[0]


@pytest.mark.parametrize("frozen", [1, 6])
@pytest.mark.parametrize("name", ["test_vit", "test_vit3"])  # class and register tokens
def test_the_blocks_of_a_plain_transformer_train_from_the_tokens_before_them(
    name: str,
    frozen: int,
    load_random: Callable[..., Backbone],
    small_dataset: Dataset,
    ctx: RunContext,
    notes: list[str],
) -> None:
    vit = load_random(name)
    dataset = replace(small_dataset, train=small_dataset.train[:6], val=small_dataset.val[:4])
    network = _network(vit, ctx).eval()
    inputs = _inputs(network, dataset, vit, replace(RECIPE, frozen_stages=frozen), ctx)
    assert isinstance(inputs, CachedPrefix)
    images = to_input(next(batches([p.path for p in dataset.val], vit, 1)), vit, ctx.device)
    averaged = copy.deepcopy(inputs.network).eval()
    with torch.no_grad():
        for parameter in inputs.network.body.net.get_submodule("norm").parameters():
            parameter.zero_()
        found = torch.cat([averaged(part) for part in inputs.val()])
        expected = network(images)

    assert not notes
    assert inputs.val_rows.ndim == 3
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.01 * float(expected.abs().max()))


def test_training_from_tokens_changes_the_later_blocks_only(
    load_random: Callable[..., Backbone], small_dataset: Dataset, ctx: RunContext
) -> None:
    vit = load_random("test_vit")
    network = _network(vit, ctx)
    before = {k: v.clone() for k, v in network.state_dict().items()}

    train(network, small_dataset, vit, replace(RECIPE, steps=12, frozen_stages=4), ctx)

    changed = {k for k, v in network.state_dict().items() if not torch.equal(before[k], v)}
    blocks = {k.split(".")[3] for k in changed if k.startswith("body.net.blocks.")}
    assert blocks == {"4", "5"}
    others = {k.split(".")[2] for k in changed if k.startswith("body.net.")} - {"blocks"}
    assert others <= {"norm", "fc_norm"}


def test_a_network_that_cannot_be_split_is_trained_from_images(
    load_random: Callable[..., Backbone],
    small_dataset: Dataset,
    ctx: RunContext,
    notes: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vit = load_random("test_vit")
    forward = type(vit.build()).forward_features

    def doubled(net: Any, images: torch.Tensor, **masks: Any) -> torch.Tensor:
        found: torch.Tensor = 2 * forward(net, images, **masks)  # what no module does
        return found

    monkeypatch.setattr(type(vit.build()), "forward_features", doubled)
    network = _network(vit, ctx)
    before = {k: v.clone() for k, v in network.state_dict().items()}

    train(network, small_dataset, vit, replace(RECIPE, steps=12, frozen_stages=1), ctx)

    assert len(notes) == 1
    assert "cannot be split" in notes[0]
    assert any(not torch.equal(before[k], v) for k, v in network.state_dict().items())


@pytest.mark.parametrize("change", [{"frozen_stages": 0}, {"steps": 1}])
def test_nothing_is_cached_or_reported_where_caching_would_not_pay(
    backbone: Backbone,
    small_dataset: Dataset,
    ctx: RunContext,
    notes: list[str],
    change: dict[str, int],
) -> None:
    network = _network(backbone, ctx)
    stage = stages(network.body.net, backbone)
    recipe = replace(RECIPE, **change)

    assert isinstance(
        make_inputs(network, stage, small_dataset, backbone, recipe, ctx), ImageInputs
    )
    assert not notes


def test_no_file_remains_after_training(
    backbone: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    folder = ctx.cache.path.parent
    before = set(folder.iterdir())
    train(_network(backbone, ctx), small_dataset, backbone, replace(RECIPE, steps=8), ctx)

    assert set(folder.iterdir()) == before


def test_caching_stops_if_it_leaves_no_time_to_train(
    backbone: Backbone, small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(frozen_activations, "TIME_SHARE", 0.0)
    limited = replace(
        ctx, deadline_s=time.monotonic() + 3600, reporter=Reporter(on_note=notes.append)
    )

    train(_network(backbone, ctx), small_dataset, backbone, replace(RECIPE, steps=8), limited)

    assert any("no time" in note for note in notes)


@pytest.mark.parametrize("value", [7e4, float("inf"), float("nan")])
def test_activations_out_of_the_range_of_half_precision_are_not_cached(value: float) -> None:
    with pytest.raises(frozen_activations.NotCached, match="half precision"):
        frozen_activations._half(torch.tensor([0.0, value]))
