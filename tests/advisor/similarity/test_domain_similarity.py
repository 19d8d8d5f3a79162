from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from advisor.similarity.bn_shift import SourceMoments, balanced, layer_shifts
from advisor.similarity.calibration import Calibration, calibrations
from advisor.similarity.domain_similarity import (
    balanced_rows,
    measure_similarity,
    shift_intervals,
    small_sample_factor,
)
from advisor.similarity.reference import make_reference, shipped_reference
from advisor.types.similarity import DomainSimilarity
from strategies.core.cache import ArrayCache
from strategies.core.context import RunContext
from strategies.core.metrics import Interval
from strategies.data.dataset import LabelledImage
from strategies.models.backbone import Backbone, load_backbone
from strategies.models.features import Features, Moments, SourceHead, extract_features

CALIBRATION = Calibration(same=0.01, far=0.5, power=0.9, landmarks=(("near", 0.1), ("far", 0.4)))
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
        np.array([0.2, 0.5, 0.8]),
        np.array([1, 2, 4]),
    )
    return Features((pooled, pooled, pooled, pooled), moments if norms else None, HEAD)


def measure(
    features: Features, backbone: Backbone, reference: Features | None
) -> DomainSimilarity:
    n = len(features.pooled[-1])
    found = measure_similarity(
        features,
        np.arange(n) % 2,
        ["x", "y"],
        input_px=backbone.input_px,
        reference=None if reference is None else make_reference("own", backbone, reference, {}),
        seed=0,
    )
    assert found is not None
    return found


def test_the_similarity_falls_from_one_to_zero_with_the_distance() -> None:
    scores = [CALIBRATION.score(d) for d in (-0.1, 0.01, 0.05, 0.2, 0.49, 0.5, 3.0)]
    assert scores == sorted(scores, reverse=True)
    assert (scores[0], scores[1], scores[-2], scores[-1]) == (1, 1, 0, 0)


def test_the_largest_distance_gives_the_lower_end_of_the_similarity() -> None:
    found = CALIBRATION.interval(Interval(0.1, 0.2, 0.4))
    assert (found.low, found.high) == (CALIBRATION.score(0.4), CALIBRATION.score(0.1))


@pytest.mark.parametrize(
    ("distance", "names"), [(0.0, (None, "near")), (0.2, ("near", "far")), (0.9, ("far", None))]
)
def test_the_landmarks_next_to_a_distance_are_returned(
    distance: float, names: tuple[str | None, str | None]
) -> None:
    assert CALIBRATION.between(distance) == names


@pytest.mark.parametrize("name", ["bn_shift", "bn_shift_running", "kernel"])
def test_shipped_calibrations_are_monotone_and_end_at_their_farthest_landmark(
    name: str,
) -> None:
    calibration = calibrations()[name]
    distances = [distance for _, distance in calibration.landmarks]
    assert 0 < calibration.same < min(distances)
    assert calibration.far == max(distances)
    assert 0.5 <= calibration.power <= 1
    assert distances == sorted(distances)


def test_a_sample_of_rows_is_balanced_over_the_classes() -> None:
    labels = np.repeat([0, 1, 2, 3], [500, 100, 20, 1])
    rows = balanced_rows(labels, 61, np.random.default_rng(0))
    assert np.bincount(labels[rows]).tolist() == [20, 20, 20, 1]
    assert (np.diff(rows) > 0).all()


def test_a_sample_of_rows_has_every_class_however_many_there_are() -> None:
    labels = np.repeat(np.arange(50), 3)
    assert len(np.unique(labels[balanced_rows(labels, 10, np.random.default_rng(0))])) == 50


def test_images_like_the_reference_are_similar_and_not_significant(backbone: Backbone) -> None:
    found = measure(make_features(60, 1), backbone, make_features(300, 2))
    assert found.score.mid == pytest.approx(1)
    assert found.basis == "bn_shift"
    assert found.p_value is not None
    assert found.p_value > 0.01


def test_images_unlike_the_reference_are_not_similar_and_significant(backbone: Backbone) -> None:
    found = measure(make_features(60, 1, offset=0.8), backbone, make_features(300, 2))
    assert found.score.high < 0.7
    assert found.p_value == pytest.approx(0.001)
    assert found.kernel_distance is not None
    assert found.kernel_distance.low > 0


def test_a_shift_in_late_layers_is_measured_at_late_depths_only(backbone: Backbone) -> None:
    late = np.repeat([0.0, 0.0, 1.0], CHANNELS // 3)
    found = measure(make_features(80, 1, offset=late), backbone, None)
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


def test_without_batchnorm_the_kernel_distance_is_used(backbone: Backbone) -> None:
    reference = make_features(200, 2, norms=False)
    near, far = (
        measure(make_features(60, 1, offset, norms=False), backbone, reference)
        for offset in (0.0, 2.0)
    )
    assert near.basis == far.basis == "kernel"
    assert near.shift_nats is None
    assert near.per_depth == ()
    assert near.score.mid > 0.9 > far.score.mid


def test_without_batchnorm_and_reference_there_is_no_similarity(backbone: Backbone) -> None:
    features = make_features(30, 1, norms=False)
    labels = np.arange(30) % 2
    px = backbone.input_px
    for reference in (None, make_reference("", replace(backbone, input_px=px + 32), features, {})):
        assert (
            measure_similarity(
                features, labels, ["x", "y"], input_px=px, reference=reference, seed=0
            )
            is None
        )


def test_the_same_seed_gives_the_same_result(backbone: Backbone) -> None:
    features, reference = make_features(40, 1, 0.4), make_features(100, 2)
    first = measure(features, backbone, reference)
    assert first == measure(features, backbone, reference)


def test_ninety_percent_intervals_have_about_their_nominal_coverage() -> None:
    source = SourceMoments(np.zeros(CHANNELS), np.ones(CHANNELS))
    population = make_features(4000, 0, offset=0.4).moments
    assert population is not None
    truth = layer_shifts(population, balanced(np.zeros(4000, dtype=np.int64)), source).mean()
    is_covered = []
    for seed in range(100):
        moments = make_features(40, seed + 1, offset=0.4).moments
        assert moments is not None
        shift, _ = shift_intervals(
            moments, np.arange(40) % 2, source, 1, np.random.default_rng(seed)
        )
        is_covered.append(shift.low <= truth <= shift.high)
    assert 0.8 <= np.mean(is_covered) <= 0.98


def test_the_interval_is_wider_with_few_images() -> None:
    widths = [small_sample_factor(balanced(np.zeros(n, dtype=np.int64))) for n in (3, 20, 1000)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == pytest.approx(1, abs=0.01)


def images_in(paths: list[Path]) -> list[LabelledImage]:
    return [LabelledImage(path, 0, f"{path.parent.name}-{path.name}", 0, 0) for path in paths]


def test_imagenet_is_similar_to_itself_and_digits_are_not(shared: Path, tmp_path: Path) -> None:
    backbone = load_backbone(input_px=96)
    reference = shipped_reference(backbone)
    assert reference is not None
    files = sorted((shared / "imagenet_samples").glob("*.jp*g"))
    # The reference is the first half of this order (benchmarks/shared_datasets.py).
    unseen = np.random.default_rng(0).permutation(len(files))[len(files) // 2 :][:30]
    digits = sorted((shared / "mnist5k").rglob("*.png"))[::170]
    ctx = RunContext(cache=ArrayCache(tmp_path))
    scores = []
    for paths in ([files[i] for i in unseen], digits):
        features = extract_features(images_in(paths), backbone, ctx)
        found = measure_similarity(
            features,
            np.zeros(len(paths), dtype=np.int64),
            ["only"],
            input_px=96,
            reference=reference,
            seed=0,
        )
        assert found is not None
        scores.append(found.score)
    near, far = scores
    assert near.mid >= 0.95
    assert far.high < 0.4
