"""What the pictures give without pretraining."""

from dataclasses import replace

import numpy as np
import pytest

from advisor.control import any_size, half_size, measure_control, paired_gain, pixel_probe
from strategies.core.backbone import Backbone
from strategies.core.features import extract_features
from strategies.core.run import RunContext
from strategies.core.task import ImageTask


def test_random_weights_are_probed_at_every_depth_and_paired_with_pretrained_ones(
    small_task: ImageTask, backbone: Backbone, ctx: RunContext
) -> None:
    pictures = small_task.fit_split
    features = extract_features(pictures, backbone, ctx)
    control = measure_control(pictures, features, small_task.n_classes, backbone, ctx)
    assert [p.depth for p in control.probes] == list(range(1, backbone.n_depths + 1))
    assert -1 <= control.gain.low <= control.gain.mid <= control.gain.high <= 1
    again = measure_control(pictures, features, small_task.n_classes, backbone, ctx)
    assert again == control


def test_features_of_noise_do_not_beat_random_weights(
    small_task: ImageTask, backbone: Backbone, ctx: RunContext
) -> None:
    pictures = small_task.fit_split
    features = extract_features(pictures, backbone, ctx)
    rng = np.random.default_rng(0)
    noise = tuple(rng.normal(size=x.shape).astype(np.float32) for x in features.pooled)
    useless = replace(features, pooled=noise)
    gain = measure_control(pictures, useless, small_task.n_classes, backbone, ctx).gain
    assert gain.mid < 0


def test_half_a_side_is_whole_strides_and_never_more_than_the_side(backbone: Backbone) -> None:
    sides = {224: 128, 96: 64, 64: 32, 32: 32, 260: 160}
    for side, half in sides.items():
        assert half_size(replace(backbone, input_px=side)).input_px == half
    assert half_size(replace(backbone, input_px=64), 96).input_px == 64


def test_a_network_with_batch_norm_takes_any_size(
    small_task: ImageTask, backbone: Backbone, ctx: RunContext
) -> None:
    features = extract_features(small_task.train[:2], backbone, ctx)
    assert any_size(features)
    assert not any_size(replace(features, moments=None))


def test_thumbnails_tell_classes_that_differ_in_brightness(small_task: ImageTask) -> None:
    def shade(label: int) -> bytes:
        rng = np.random.default_rng(label)
        return (rng.integers(0, 20, 1024) + 100 * (label == 0)).astype(np.uint8).tobytes()

    pictures = small_task.fit_split
    assert all(p.look is not None for p in pictures)
    told = [replace(p, look=replace(p.look, thumb=shade(p.label))) for p in pictures if p.look]
    found = pixel_probe(told, 3, seed=0)
    assert found is not None
    assert found.mid > 0.9
    assert pixel_probe([replace(pictures[0], look=None), *told], 3, seed=0) is None


@pytest.mark.parametrize("n", [30, 300])
def test_a_paired_gain_keeps_its_sign_and_narrows_with_pictures(n: int) -> None:
    better = np.arange(n) % 10 != 0
    worse = np.arange(n) % 3 != 0
    gain, loss = paired_gain(better, worse), paired_gain(worse, better)
    assert gain.mid == -loss.mid > 0
    assert gain.low == pytest.approx(-loss.high)
    same = paired_gain(better, better)
    assert same.low < 0 < same.high
