"""Random-init control and pixel baseline."""

from dataclasses import replace

import numpy as np

from advisor.measure.random_init_control import measure_random_init_control, pixel_probe
from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.models.features import extract_features


def test_random_weights_are_probed_at_every_depth_and_paired_with_pretrained_ones(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    images = small_dataset.fit_split
    features = extract_features(images, backbone, ctx)
    control = measure_random_init_control(images, features, small_dataset.n_classes, backbone, ctx)
    assert [p.depth for p in control.probes] == list(range(1, backbone.n_depths + 1))
    assert -1 <= control.gain.low <= control.gain.mid <= control.gain.high <= 1
    again = measure_random_init_control(images, features, small_dataset.n_classes, backbone, ctx)
    assert again == control


def test_features_of_noise_do_not_beat_random_weights(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    images = small_dataset.fit_split
    features = extract_features(images, backbone, ctx)
    rng = np.random.default_rng(0)
    noise = tuple(rng.normal(size=x.shape).astype(np.float32) for x in features.pooled)
    useless = replace(features, pooled=noise)
    gain = measure_random_init_control(
        images, useless, small_dataset.n_classes, backbone, ctx
    ).gain
    assert gain.mid < 0


def test_the_pixel_probe_separates_classes_of_different_brightness(
    small_dataset: Dataset,
) -> None:
    def shade(label: int) -> bytes:
        rng = np.random.default_rng(label)
        return (rng.integers(0, 20, 1024) + 100 * (label == 0)).astype(np.uint8).tobytes()

    images = small_dataset.fit_split
    assert all(p.stats is not None for p in images)
    shaded = [replace(p, stats=replace(p.stats, thumb=shade(p.label))) for p in images if p.stats]
    found = pixel_probe(shaded, 3, seed=0)
    assert found is not None
    assert found.mid > 0.9
    assert pixel_probe([replace(images[0], stats=None), *shaded], 3, seed=0) is None
