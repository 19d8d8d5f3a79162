"""Domain similarity: a property of the images, the same for every backbone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm

from advisor.advise import advise
from advisor.similarity.calibration import Calibration, calibration
from advisor.similarity.domain_similarity import measure_similarity
from advisor.types.advice import Advice
from advisor.types.options import Options
from strategies.core.cache import ArrayCache
from strategies.core.context import RunContext
from strategies.core.metrics import Interval
from strategies.data.dataset import LabelledImage, load_dataset
from strategies.models.domain_shift import mean_shift, measure_moments

CALIBRATION = Calibration(same=0.01, far=0.5, power=0.9, landmarks=(("near", 0.1), ("far", 0.4)))


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


def test_the_shipped_calibration_is_monotone() -> None:
    shipped = calibration()
    distances = [distance for _, distance in shipped.landmarks]
    assert 0 < shipped.same < min(distances)
    assert 0.5 <= shipped.power <= 1
    assert distances == sorted(distances)
    assert shipped.score(distances[0]) > 0.9
    assert shipped.score(distances[-1]) < 0.05


def images_in(paths: list[Path]) -> list[LabelledImage]:
    return [LabelledImage(path, 0, f"{path.parent.name}-{path.name}", 0, 0) for path in paths]


def test_imagenet_is_similar_to_itself_and_digits_are_not(shared: Path, tmp_path: Path) -> None:
    files = sorted((shared / "imagenet_samples").glob("*.jp*g"))
    # The reference is the first half of this order (benchmarks/shared_datasets.py).
    unseen = np.random.default_rng(0).permutation(len(files))[len(files) // 2 :][:30]
    digits = sorted((shared / "mnist5k").rglob("*.png"))[::170]
    ctx = RunContext(cache=ArrayCache(tmp_path))
    near, far = (
        measure_similarity(measure_moments(images_in(paths), ctx), 0)
        for paths in ([files[i] for i in unseen], digits)
    )
    assert near.score.mid >= 0.95
    assert near.n_images == 30
    assert far.score.high < 0.3


@pytest.mark.parametrize(
    ("convolutional", "transformer"),
    [
        (("test_resnet", 64), ("test_vit", 160)),
        pytest.param(("resnet18", 64), ("vit_tiny_patch16_224", 224), marks=pytest.mark.slow),
    ],
)
def test_every_backbone_and_input_size_gets_the_same_similarity(
    convolutional: tuple[str, int],
    transformer: tuple[str, int],
    make_folder: Callable[..., Path],
    tmp_path: Path,
) -> None:
    data = make_folder("d", 8)

    def advice(backbone: str, px: int, cache: str) -> Advice:
        options = Options(backbone=backbone, input_px=px, device="cpu")
        return advise(data, replace(options, cache_dir=tmp_path / cache))

    embedded = advice("auto", 64, "a")
    found = [
        advice("auto", 96, "b"),  # the size of the similarity itself: its features are shared
        advice(random_network(convolutional[0], tmp_path), convolutional[1], "a"),
        advice(random_network(transformer[0], tmp_path), transformer[1], "c"),
    ]
    expected = values(embedded)
    for other in found:
        assert values(other) == pytest.approx(expected, abs=1e-6)
        assert other.quadrant.domain == embedded.quadrant.domain
        assert other.profile.similarity.between == embedded.profile.similarity.between
    without_batchnorm = found[-1].profile.backbone_statistics
    assert without_batchnorm is not None
    assert without_batchnorm.per_depth == ()
    assert without_batchnorm.head is not None


def random_network(architecture: str, tmp_path: Path) -> str:
    """Return the name of a network with random weights, in timm's format."""
    folder = tmp_path / architecture
    net = timm.create_model(architecture, pretrained=False)
    timm.models.save_for_hf(net, str(folder), safe_serialization=True)
    return f"local-dir:{folder}"


def values(advice: Advice) -> list[float]:
    similarity, shift = advice.profile.similarity, advice.profile.domain_shift
    assert shift is not None
    intervals: list[Interval] = [similarity.score, similarity.shift_nats]
    return [shift, *(x for i in intervals for x in (i.low, i.mid, i.high))]


def test_similarity_and_training_defaults_use_the_same_forward_pass(
    make_folder: Callable[..., Path], ctx: RunContext
) -> None:
    dataset = load_dataset(make_folder("d", 8))
    first = measure_similarity(measure_moments(dataset.fit_split, ctx), 0)
    before = ctx.cache.info().n_rows
    assert mean_shift(measure_moments(dataset.train, ctx).moments) > 0
    assert ctx.cache.info().n_rows == before
    assert measure_similarity(measure_moments(dataset.fit_split, ctx), 0) == first
