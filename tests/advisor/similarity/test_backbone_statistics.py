"""Statistics of the backbone in use: its own layers and its head."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from advisor.similarity.backbone_statistics import measure_backbone_statistics
from advisor.similarity.reference import Reference, make_reference
from advisor.types.similarity import BackboneStatistics
from strategies.models.backbone import Backbone
from strategies.models.features import Features, SourceHead
from strategies.models.moments import Moments

CHANNELS, WIDTH = 60, 16
HEAD = SourceHead(np.eye(3, WIDTH, dtype=np.float32), np.zeros(3, np.float32), ("a", "b", "c"))


def make_features(
    n: int, seed: int, offset: NDArray[np.floating] | float = 0.0, *, norms: bool = True
) -> Features:
    """Make random features; `offset` shifts the channels (and pooled values by its mean)."""
    rng = np.random.default_rng(seed)
    z = offset + rng.normal(0, 0.6, (n, 1, CHANNELS)) + rng.normal(0, 0.8, (n, 16, CHANNELS))
    pooled = np.abs(rng.normal(np.mean(offset), 1, (n, WIDTH))).astype(np.float32)
    moments = Moments(
        z.mean(axis=1).astype(np.float32),
        np.square(z).mean(axis=1).astype(np.float32),
        np.repeat(np.arange(3), CHANNELS // 3),
        np.array([1, 2, 4]),
    )
    return Features((pooled, pooled, pooled, pooled), moments if norms else None, HEAD)


def measure(features: Features, px: int, reference: Reference | None = None) -> BackboneStatistics:
    return measure_backbone_statistics(
        features,
        np.arange(len(features.pooled[-1])) % 2,
        ["x", "y"],
        input_px=px,
        reference=reference,
        seed=0,
    )


def test_images_like_the_reference_have_no_distance_and_are_not_significant(
    backbone: Backbone,
) -> None:
    reference = make_reference("own", backbone, make_features(300, 2), {})
    found = measure(make_features(60, 1), backbone.input_px, reference)
    assert found.reference == "own"
    assert found.shift_nats is not None
    assert found.shift_nats.low < 0.02
    assert found.p_value is not None
    assert found.p_value > 0.01


def test_images_unlike_the_reference_have_a_significant_distance(backbone: Backbone) -> None:
    reference = make_reference("own", backbone, make_features(300, 2), {})
    found = measure(make_features(60, 1, offset=0.8), backbone.input_px, reference)
    assert found.shift_nats is not None
    assert found.shift_nats.low > 0.1
    assert found.p_value == pytest.approx(0.001)
    assert found.kernel_distance is not None
    assert found.kernel_distance.low > 0


def test_a_shift_in_late_layers_is_measured_at_late_depths_only() -> None:
    late = np.repeat([0.0, 0.0, 1.0], CHANNELS // 3)
    found = measure(make_features(80, 1, offset=late), 64)
    first, second, without_layer, last = found.per_depth
    assert without_layer is None
    assert first is not None
    assert second is not None
    assert last is not None
    assert first.mid == pytest.approx(0, abs=0.02)
    assert second.mid == pytest.approx(0, abs=0.02)
    assert last.low > 0.2
    assert found.shift_at(4) == last.mid
    assert found.shift_at(3) is None


def test_without_batchnorm_the_head_and_the_kernel_distance_remain(backbone: Backbone) -> None:
    features = make_features(60, 1, norms=False)
    reference = make_reference("own", backbone, make_features(200, 2, norms=False), {})
    found = measure(features, backbone.input_px, reference)
    assert (found.shift_nats, found.per_depth) == (None, ())
    assert found.kernel_distance is not None
    assert found.head is not None
    assert {c.name for c in found.head.nearest_source_classes} == {"x", "y"}


def test_without_a_reference_at_this_size_there_is_no_kernel_distance(backbone: Backbone) -> None:
    features = make_features(30, 1, norms=False)
    larger = replace(backbone, input_px=backbone.input_px + 32)
    for reference in (None, make_reference("", larger, features, {})):
        found = measure(features, backbone.input_px, reference)
        assert (found.kernel_distance, found.p_value) == (None, None)
        assert found.head is not None


def test_a_network_without_a_head_has_no_predictions() -> None:
    assert measure(replace(make_features(30, 1), source_head=None), 64).head is None


def test_the_same_seed_gives_the_same_result(backbone: Backbone) -> None:
    reference = make_reference("own", backbone, make_features(100, 2), {})
    features = make_features(40, 1, 0.4)
    first = measure(features, backbone.input_px, reference)
    assert first == measure(features, backbone.input_px, reference)
