"""What the pictures give without pretraining."""

from dataclasses import replace

import numpy as np

from advisor.measure.random_init_control import measure_control, pixel_probe
from strategies.core.context import RunContext
from strategies.data.dataset import ImageTask
from strategies.models.backbone import Backbone
from strategies.models.features import extract_features


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
