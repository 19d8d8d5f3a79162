import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from strategies.core.activation_store import EvalCrops
from strategies.core.allocator import joined
from strategies.core.cache import ArrayCache
from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset, load_dataset
from strategies.data.decoding import Pixels
from strategies.models import features, moments
from strategies.models.backbone import Backbone
from strategies.models.body import Body
from strategies.models.features import (
    Features,
    batches,
    eval_pixels,
    extract_features,
    time_features,
    to_input,
)
from strategies.models.moments import CHANNELS_PER_LAYER, GRID
from tests.fake_mps import MPS, FakeMps

CPU = torch.device("cpu")


def _forbid_building(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Backbone) -> nn.Module:
        raise AssertionError("a network was built")

    monkeypatch.setattr(Backbone, "build", refuse)


def _batch_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the size of every batch that passes the network."""
    sizes: list[int] = []
    activations = Body.activations

    def count(self: Body, images: torch.Tensor) -> list[torch.Tensor]:
        sizes.append(len(images))
        return activations(self, images)

    monkeypatch.setattr(Body, "activations", count)
    return sizes


def _assert_equal(left: Features, right: Features) -> None:
    for a, b in zip(left.pooled, right.pooled, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    if left.moments and right.moments:
        np.testing.assert_allclose(left.moments.mean, right.moments.mean, rtol=2e-3, atol=1e-4)


def _damage_one_row(path: Path, digest: str) -> None:
    db = sqlite3.connect(path)
    with db:
        db.execute("UPDATE rows SET crc = crc + 1 WHERE digest = ?", (digest,))
    db.close()


@torch.no_grad()
def test_pooled_activations_equal_those_recorded_by_forward_hooks(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    images = small_dataset.train[:5]
    net, caught = backbone.build(), []
    for depth in backbone.depths[:-1]:
        net.get_submodule(depth.name).register_forward_hook(
            lambda module, inputs, output: caught.append(output.mean((2, 3)))
        )
    net.get_submodule("classifier").register_forward_pre_hook(
        lambda module, inputs: caught.append(inputs[0])
    )
    pixels = np.stack([eval_pixels(p.path, backbone) for p in images])
    net(to_input(pixels, backbone, CPU))

    found = extract_features(images, backbone, ctx)

    assert len(found.pooled) == len(caught) == backbone.n_depths
    for array, expected in zip(found.pooled, caught, strict=True):
        np.testing.assert_allclose(array, expected.numpy(), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_moments_are_those_of_the_standardised_inputs_of_batch_norm(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    image = small_dataset.train[0]
    net, z = backbone.build(), []

    def standardise(norm: nn.BatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        mean, var = norm.running_mean[:, None, None], norm.running_var[:, None, None]
        z.append((inputs[0][0] - mean) / (var + norm.eps).sqrt())

    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_pre_hook(standardise)
    net(to_input(np.stack([eval_pixels(image.path, backbone)]), backbone, CPU))

    moments = extract_features([image], backbone, ctx).moments

    assert moments is not None
    assert len(moments.layer_depth) == len(norms)
    assert moments.mean.shape == moments.square.shape == (1, len(moments.layer))
    for number, activations in enumerate(z):
        mean = moments.mean[0, moments.layer == number]
        square = moments.square[0, moments.layer == number]
        assert 0 < len(mean) <= CHANNELS_PER_LAYER
        assert (square >= (1 - 2e-3) * mean**2 - 1e-4).all()  # both are rounded to float16
        stride = max(1, min(activations.shape[1:]) // GRID)
        values = activations[:, ::stride, ::stride]
        expected_mean, expected_square = values.mean((1, 2)), values.square().mean((1, 2))
        if len(mean) == len(expected_mean):  # every channel is measured, in order
            np.testing.assert_allclose(mean, expected_mean, rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(square, expected_square, rtol=1e-3, atol=1e-3)


def test_inputs_distributed_as_in_pretraining_have_mean_zero_and_square_one() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    norm.running_mean.uniform_(-5, 5)
    norm.running_var.uniform_(0.1, 9)
    layout = moments.Layout((("0", torch.arange(6)),), np.ones(1, np.float32))
    x = torch.randn(16, 6, 100, 100) * norm.running_var.sqrt()[:, None, None]
    x += norm.running_mean[:, None, None]

    with moments.watch(nn.Sequential(norm.eval()), layout) as seen:
        norm(x)

    mean, square = seen["0"].mean(0).split(6)
    assert mean.abs().max() < 0.05
    assert (square - 1).abs().max() < 0.05


def test_moments_measure_shift_and_scale_in_units_of_the_running_statistics() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3).eval()
    norm.running_var.fill_(4.0)
    layout = moments.Layout((("0", torch.arange(3)),), np.ones(1, np.float32))

    with moments.watch(nn.Sequential(norm), layout) as seen:
        norm(6 * torch.randn(8, 3, 64, 64) + 2)

    mean, square = seen["0"].mean(0).split(3)
    assert mean.mean().item() == pytest.approx(1, abs=0.05)
    assert square.mean().item() == pytest.approx(9 + 1, abs=0.3)


def test_hooks_are_removed_at_the_end_of_the_context() -> None:
    norm = nn.BatchNorm2d(3)
    with moments.watch(
        nn.Sequential(norm), moments.Layout((("0", torch.arange(3)),), np.ones(1, np.float32))
    ):
        assert norm._forward_pre_hooks
    assert not norm._forward_pre_hooks


def test_dead_channels_are_skipped() -> None:
    norm = nn.BatchNorm2d(200)
    norm.running_var[::3] = 1e-9

    chosen = moments._live_channels(norm)

    assert len(chosen) == CHANNELS_PER_LAYER
    assert (chosen % 3 != 0).all()
    assert (chosen.diff() > 0).all()


def test_rows_follow_the_order_of_the_images(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    images = small_dataset.train[:6]
    forth = extract_features(images, backbone, ctx)

    back = extract_features(images[::-1], backbone, ctx)

    for a, b in zip(forth.pooled, back.pooled, strict=True):
        np.testing.assert_array_equal(a, b[::-1])
        assert len(np.unique(a, axis=0)) == len(images)


def test_images_with_equal_content_are_computed_once(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = small_dataset.train[:2]
    computed = _batch_sizes(monkeypatch)

    found = extract_features([one, two, one, one], backbone, ctx).pooled[-1]

    assert sum(computed) == 2
    assert found.shape[0] == 4
    np.testing.assert_array_equal(found[0], found[3])


def test_a_second_call_reads_the_cache_without_building_the_network(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = extract_features(small_dataset.train[:4], backbone, ctx)
    _forbid_building(monkeypatch)

    second = extract_features(small_dataset.train[:4], backbone, ctx)

    for a, b in zip(first.pooled, second.pooled, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(first.moments.mean, second.moments.mean)
    np.testing.assert_array_equal(first.moments.square, second.moments.square)
    np.testing.assert_array_equal(first.moments.layer, second.moments.layer)


def test_only_new_images_are_computed(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract_features(small_dataset.train[:4], backbone, ctx)
    computed = _batch_sizes(monkeypatch)

    extract_features(small_dataset.train[:7], backbone, ctx)

    assert sum(computed) == 3


def test_a_damaged_row_is_computed_again(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = small_dataset.train[:3]
    before = extract_features(images, backbone, ctx)
    _damage_one_row(ctx.cache.path, images[1].digest)
    computed = _batch_sizes(monkeypatch)

    after = extract_features(images, backbone, ctx)

    assert sum(computed) == 1
    _assert_equal(before, after)


def test_a_damaged_layout_row_is_measured_again_without_a_forward_pass(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = small_dataset.train[:3]
    before = extract_features(images, backbone, ctx)
    _damage_one_row(ctx.cache.path, features._COUNTS)
    computed = _batch_sizes(monkeypatch)

    after = extract_features(images, backbone, ctx)

    assert not computed
    _assert_equal(before, after)


@pytest.mark.parametrize(
    "change",
    [
        {"input_px": 32},
        {"crop_pct": 0.5},
        {"mean": (0.4, 0.4, 0.4)},
        {"interpolation": "nearest"},
        {"weights": "random", "digest": "random"},
    ],
)
def test_everything_that_changes_the_features_changes_the_cache_space(
    backbone: Backbone, ctx: RunContext, change: dict[str, object]
) -> None:
    assert features._space(replace(backbone, **change), ctx) != features._space(backbone, ctx)


def test_the_cache_space_depends_on_precision_and_with_random_weights_on_the_seed(
    backbone: Backbone, ctx: RunContext
) -> None:
    low, reseeded = replace(ctx, precision=torch.bfloat16), replace(ctx, seed=1)
    random = backbone.with_random_weights()

    assert features._space(backbone, low) != features._space(backbone, ctx)
    assert features._space(backbone, reseeded) == features._space(backbone, ctx)
    assert features._space(random, reseeded) != features._space(random, ctx)


def test_random_weights_give_the_same_features_for_the_same_seed(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, tmp_path: Path
) -> None:
    images, random = small_dataset.train[:3], backbone.with_random_weights()
    elsewhere = replace(ctx, cache=type(ctx.cache)(tmp_path / "elsewhere"))

    _assert_equal(
        extract_features(images, random, ctx), extract_features(images, random, elsewhere)
    )


def test_a_transformer_has_no_moments(
    small_dataset: Dataset,
    ctx: RunContext,
    load_random: Callable[..., Backbone],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vit = load_random("test_vit")
    first = extract_features(small_dataset.train[:3], vit, ctx)
    _forbid_building(monkeypatch)
    second = extract_features(small_dataset.train[:3], vit, ctx)

    assert first.moments is None
    assert second.moments is None
    assert [p.shape for p in first.pooled] == [(3, d.channels) for d in vit.depths]
    np.testing.assert_array_equal(first.pooled[-1], second.pooled[-1])


def test_features_of_several_depths_are_concatenated(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    found = extract_features(small_dataset.train[:2], backbone, ctx)

    np.testing.assert_array_equal(found.at([2]), found.pooled[1])
    np.testing.assert_array_equal(
        found.at([1, 3]), np.concatenate([found.pooled[0], found.pooled[2]], axis=1)
    )


def test_batches_computed_before_the_deadline_stay_in_the_cache(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = small_dataset.train[:8]
    monkeypatch.setattr(features, "batches", partial(batches, size=3))
    elapsed = iter([0.0, 0.0, 100.0])
    monkeypatch.setattr(RunContext, "seconds_left", lambda self: 50 - next(elapsed), raising=True)

    with pytest.raises(OutOfTime):
        extract_features(images, backbone, ctx)

    cached = ctx.cache.get(features._space(backbone, ctx), [p.digest for p in images])
    assert cached.keys() == {p.digest for p in images[:6]}


def test_after_the_deadline_features_are_only_read_from_the_cache(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    late = ctx.with_deadline(time.monotonic() - 1)
    extract_features(small_dataset.train[:2], backbone, ctx)

    extract_features(small_dataset.train[:2], backbone, late)
    with pytest.raises(OutOfTime):
        extract_features(small_dataset.train[:3], backbone, late)


def test_progress_is_reported_up_to_the_last_image(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    calls: list[tuple[str, int, int]] = []
    extract_features(
        small_dataset.train[:5],
        backbone,
        replace(ctx, reporter=Reporter(on_progress=lambda *a: calls.append(a))),
    )

    assert calls[-1] == ("features", 5, 5)


def test_extracting_features_does_not_change_the_global_generator(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    before = torch.random.get_rng_state()

    extract_features(small_dataset.train[:2], backbone.with_random_weights(), ctx)

    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("n_workers", [1, 4])
def test_batches_keep_the_order_and_the_incomplete_last_batch(
    small_dataset: Dataset, backbone: Backbone, n_workers: int
) -> None:
    paths = [p.path for p in small_dataset.train[:11]]

    found = list(batches(paths, backbone, n_workers, size=2))

    assert [len(b) for b in found] == [2, 2, 2, 2, 2, 1]
    expected = np.stack([eval_pixels(path, backbone) for path in paths])
    np.testing.assert_array_equal(np.concatenate(found), expected)


def test_crops_in_memory_are_those_of_the_files_which_are_read_once(
    make_folder: Callable[..., Path], backbone: Backbone
) -> None:
    paths = sorted(make_folder("once", 3).rglob("*.png"))
    larger = replace(backbone, input_px=96)
    expected = {b.input_px: list(batches(paths, b, 2, size=4)) for b in (backbone, larger)}
    crops = EvalCrops()
    for b in (backbone, larger):
        list(batches(paths, b, 2, size=4, eval_crops=crops))
    for path in paths:
        path.unlink()

    for b in (backbone, larger):
        again = batches(paths, b, 2, size=4, eval_crops=crops)
        for found, known in zip(again, expected[b.input_px], strict=True):
            np.testing.assert_array_equal(found, known)


def test_no_paths_make_no_batches(backbone: Backbone) -> None:
    assert list(batches([], backbone, 2)) == []


def test_network_input_is_normalised_channel_by_channel(backbone: Backbone) -> None:
    odd = replace(backbone, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    pixels = np.full((2, 4, 5, 3), [51, 102, 255], dtype=np.uint8)

    found = to_input(pixels, odd, CPU)

    assert found.shape == (2, 3, 4, 5)
    expected = [(0.2 - 0.1) / 0.5, (0.4 - 0.2) / 0.25, (1.0 - 0.3) / 0.125]
    np.testing.assert_allclose(found[1, :, 2, 2], expected, rtol=1e-5)


def test_a_pass_over_a_few_new_images_does_not_change_the_measured_time(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    first = extract_features(small_dataset.train[:3], backbone, ctx).ms_per_image
    again = extract_features(small_dataset.train[:3], backbone, ctx).ms_per_image
    more = extract_features(small_dataset.train[:4], backbone, ctx).ms_per_image

    assert 0 < first < 10_000
    assert again == first
    assert more == first


def test_images_are_timed_although_their_features_are_cached(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    images = small_dataset.train[:3]
    before = extract_features(images, backbone, ctx)
    stale = np.array([1e6], dtype=np.float32)
    ctx.cache.put(features._space(backbone, ctx), {features._TIME: stale})
    assert extract_features(images, backbone, ctx).ms_per_image == 1e6

    timed = time_features(images, backbone, ctx)

    after = extract_features(images, backbone, ctx)
    assert 0 < timed < 10_000
    assert after.ms_per_image == pytest.approx(timed)
    _assert_equal(before, after)


def test_every_device_has_its_own_time_and_shares_the_features(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = small_dataset.train[:3]
    computed = []
    compute = features._compute

    def count(*given: Any) -> None:
        computed.append(given[4].device)
        compute(*given)

    monkeypatch.setattr(features, "_compute", count)
    on_cpu = extract_features(images, backbone, ctx)
    with FakeMps():
        on_mps = replace(ctx, device=MPS)
        extract_features(images, backbone, on_mps)
        again = extract_features(images, backbone, on_mps)
    assert computed == [torch.device("cpu"), MPS]
    _assert_equal(on_cpu, again)
    assert extract_features(images, backbone, ctx).ms_per_image == on_cpu.ms_per_image
    assert again.ms_per_image != on_cpu.ms_per_image


def test_a_damaged_time_row_is_measured_again(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    images = small_dataset.train[:3]
    before = extract_features(images, backbone, ctx)
    _damage_one_row(ctx.cache.path, features._TIME)

    after = extract_features(images, backbone, ctx)

    assert after.ms_per_image > 0
    _assert_equal(before, after)


@pytest.mark.parametrize("n_workers", [1, 2])
def test_features_are_the_same_with_cold_and_warm_cache_and_any_number_of_workers(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, tmp_path: Path, n_workers: int
) -> None:
    images = small_dataset.train[:5]
    cold = extract_features(images, backbone, ctx)
    elsewhere = type(ctx.cache)(tmp_path / "elsewhere")
    other = extract_features(images, backbone, replace(ctx, cache=elsewhere, n_workers=n_workers))
    warm = extract_features(images, backbone, ctx)

    for a, b, c in zip(cold.pooled, other.pooled, warm.pooled, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


KILLED = """
import sys
from functools import partial
from pathlib import Path
from strategies.models import features, moments
from strategies.models.backbone import load_backbone
from strategies.core.cache import ArrayCache
from strategies.core.context import RunContext
from strategies.core.progress import Reporter
from strategies.data.dataset import load_dataset

features.batches = partial(features.batches, size=4)
dataset = load_dataset(Path(sys.argv[1]), n_workers=1)
ctx = RunContext(
    cache=ArrayCache(Path(sys.argv[2])),
    reporter=Reporter(lambda stage, done, total: print(done, flush=True)),
)
features.extract_features(dataset.fit_split, load_backbone(input_px=64), ctx)
"""


def test_all_finished_batches_of_a_killed_pass_stay_in_the_cache(
    make_folder: Callable[..., Path], backbone: Backbone, ctx: RunContext
) -> None:
    data = make_folder("data", 40)
    command = [sys.executable, "-c", KILLED, str(data), str(ctx.cache.path.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        done = [int(process.stdout.readline()) for _ in range(3)]
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert done == [4, 8, 12]

    images = load_dataset(data).fit_split
    cached = ctx.cache.get(features._space(backbone, ctx), [p.digest for p in images])
    assert {p.digest for p in images[:12]} <= cached.keys()
    assert len(cached) % 4 == 0
    resumed = extract_features(images[:16], backbone, ctx)
    fresh = replace(ctx, cache=ArrayCache(ctx.cache.path.parent / "fresh"))
    _assert_equal(resumed, extract_features(images[:16], backbone, fresh))


def test_features_are_computed_again_if_the_cache_file_is_damaged(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    images = small_dataset.train[:3]
    before = extract_features(images, backbone, ctx)
    data = bytearray(ctx.cache.path.read_bytes())
    for start in range(0, len(data), 1024):
        data[start : start + 64] = b"\xff" * 64
    ctx.cache.path.write_bytes(data)

    _assert_equal(before, extract_features(images, backbone, ctx))
    _assert_equal(before, extract_features(images, backbone, ctx))


@pytest.mark.parametrize("error", [features.ROUNDING_TOLERANCE * 2, np.inf, np.nan])
def test_a_precision_with_a_large_rounding_error_is_never_used(
    small_dataset: Dataset,
    backbone: Backbone,
    ctx: RunContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: float,
) -> None:
    images = small_dataset.train[:4]
    exact = extract_features(images, backbone, ctx)
    monkeypatch.setattr(
        features, "_rounding_error", lambda *_: np.array([error], dtype=np.float32)
    )
    low = replace(ctx, precision=torch.bfloat16, cache=ArrayCache(tmp_path / "low"))

    _assert_equal(
        extract_features(images[:2], backbone, low),
        extract_features(images[:2], backbone, ctx),
    )
    monkeypatch.undo()
    _assert_equal(extract_features(images, backbone, low), exact)


def test_the_rounding_error_is_measured_against_float32(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    images, (body, _) = small_dataset.train[:3], features._prepare(backbone, ctx)
    low = replace(ctx, precision=torch.bfloat16)

    assert features._rounding_error(images, body, backbone, ctx) == 0
    (error,) = features._rounding_error(images, body, backbone, low)
    assert 1e-4 < error < features.ROUNDING_TOLERANCE


def test_large_batches_give_the_same_features_and_do_not_count_for_the_time(
    make_folder: Callable[..., Path],
    backbone: Backbone,
    ctx: RunContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a clock that ticks once per reading, every batch takes a second."""
    dataset = load_dataset(make_folder("large", 48))
    images = (*dataset.fit_split, *(dataset.test or ()))
    assert 128 < len(images) <= 144
    plain = extract_features(images, backbone, ctx)
    seconds, calls = iter(range(1000)), list[tuple[str, int, int]]()
    small = features.inference_passes

    def large(
        forward: Callable[[Pixels], torch.Tensor], chunks: Iterator[Pixels], device: torch.device
    ) -> Iterator[torch.Tensor]:
        rest = iter(chunks)
        return small(forward, chain(islice(rest, 2), joined(rest, 64)), device)

    monkeypatch.setattr(features, "inference_passes", large)
    monkeypatch.setattr(features, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    other = replace(
        ctx,
        cache=ArrayCache(ctx.cache.path.parent / "large"),
        reporter=Reporter(on_progress=lambda *a: calls.append(a)),
    )
    found = extract_features(images, backbone, other)

    _assert_equal(found, plain)
    sizes = [32, 32, 64, len(images) - 128]
    assert [done for _, done, _ in calls] == np.cumsum(sizes).tolist()
    assert found.ms_per_image == pytest.approx(np.median([1000 / 32, 1000 / sizes[-1]]))
    assert not features.not_cached(images, backbone, other)
