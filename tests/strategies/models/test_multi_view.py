from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime
from strategies.data.dataset import Dataset
from strategies.models import multi_view
from strategies.models.backbone import Backbone
from strategies.models.body import Body, Level, pool
from strategies.models.classifier import ImageClassifier, make_network
from strategies.models.features import eval_pixels, extract_features
from strategies.models.multi_view import VIEWS, extract_views, features_at, view_pixels


def test_the_first_view_is_the_evaluation_crop_and_the_second_its_horizontal_flip(
    small_dataset: Dataset, backbone: Backbone
) -> None:
    path = small_dataset.train[0].path
    seen = eval_pixels(path, backbone)

    one, six = (view_pixels(path, backbone, n) for n in VIEWS)

    np.testing.assert_array_equal(one, seen[None])
    np.testing.assert_array_equal(six[0], seen)
    np.testing.assert_array_equal(six[1], seen[:, ::-1])
    assert len({v.tobytes() for v in six}) == len(six) == VIEWS[-1]


@pytest.mark.parametrize("size", [(90, 40), (40, 90)])
def test_every_corner_of_an_image_is_in_one_view(
    backbone: Backbone, tmp_path: Path, size: tuple[int, int]
) -> None:
    image = Image.new("RGB", size, "white")
    colours = {(0, 0): "red", (1, 0): "lime", (0, 1): "blue", (1, 1): "black"}
    for (right, bottom), colour in colours.items():
        end = (size[0] if right else 8, size[1] if bottom else 8)
        image.paste(colour, (right * (size[0] - 8), bottom * (size[1] - 8), *end))
    image.save(tmp_path / "corners.png")

    _, _, *corners = view_pixels(tmp_path / "corners.png", backbone, 6)

    # The right corners are flipped, so that every corner of the image is on the left.
    found = [
        tuple(int(v) for v in view[y, 0]) for view, y in zip(corners, (0, 0, -1, -1), strict=True)
    ]
    assert found == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)]


def test_one_view_with_mean_pooling_equals_the_plain_features(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    images = small_dataset.train[:5]
    plain = extract_features(images, backbone, ctx)

    seen = extract_views(images, backbone, ctx, 1)

    for depth in range(1, backbone.n_depths + 1):
        found = seen.at([depth], "mean")
        np.testing.assert_allclose(found[:, 0], plain.at([depth]), rtol=1e-3, atol=1e-4)
    depths = (2, backbone.n_depths)
    np.testing.assert_array_equal(
        features_at(images, backbone, ctx, depths, "mean", 1)[:, 0], plain.at(depths)
    )


def test_features_for_a_head_are_columns_of_all_views(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    images = small_dataset.train[:3]
    n = backbone.n_depths
    for views, pooling, depths in ((1, "grid", (1, n)), (6, "grid", (2, 3)), (6, "mean", (n, 1))):
        found = features_at(images, backbone, ctx, depths, pooling, views)
        every = extract_views(images, backbone, ctx, views)
        np.testing.assert_array_equal(found, every.at(depths, pooling))


def test_features_for_a_head_equal_the_activations_of_the_cut_network(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    images = small_dataset.train[:4]
    for depths in ((2,), (2, 4), (3, backbone.n_depths)):
        expected = features_at(images, backbone, ctx, depths, "grid", 1)[:, 0]
        network = make_network(backbone, depths, 2, "grid").eval()
        assert network.head.in_features == expected.shape[1]
        pixels = np.stack([eval_pixels(p.path, backbone) for p in images])
        with torch.inference_mode():
            found = network.body(multi_view.to_input(pixels, backbone, ctx.device)).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_views_of_an_image_are_computed_once(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = small_dataset.train[0], small_dataset.train[1]
    before = extract_views((first, second, first), backbone, ctx, 6)

    monkeypatch.setattr(Body, "levels_of", lambda *_: pytest.fail("computed again"))
    again = extract_views((second, first), backbone, ctx, 6)

    assert before.mean[0].shape[:2] == (3, 6)
    np.testing.assert_array_equal(before.mean[-1][[1, 0]], again.mean[-1])
    np.testing.assert_array_equal(before.grid[1][0], before.grid[1][2])


def test_a_passed_deadline_raises_out_of_time(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    with pytest.raises(OutOfTime):
        extract_views(small_dataset.train[:2], backbone, ctx.with_deadline(0.0), 6)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (3, 3), (1, 1), (5, 2)])
def test_grid_pooling_returns_the_means_of_the_quarters(height: int, width: int) -> None:
    maps = torch.arange(2 * 3 * height * width, dtype=torch.float32).view(2, 3, height, width)

    found = pool(Level(maps), "grid").view(2, 4, 3)

    expected = torch.nn.functional.adaptive_avg_pool2d(maps, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(pool(Level(maps), "mean"), maps.mean((2, 3)))


def test_grid_pooling_differs_for_a_horizontal_flip_and_mean_pooling_does_not() -> None:
    maps = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(pool(Level(maps), "mean"), pool(Level(maps.flip(3)), "mean"))
    assert (pool(Level(maps), "grid") - pool(Level(maps.flip(3)), "grid")).abs().max() > 0.1


def test_a_saved_classifier_keeps_its_pooling(
    load_random: Callable[..., Backbone], small_dataset: Dataset, tmp_path: Path
) -> None:
    backbone = load_random("test_resnet")
    network = make_network(backbone, (1, 2), 2, "grid").eval()
    classifier = ImageClassifier(("a", "b"), backbone, (1, 2), network, "some", {}, "grid")
    paths = [p.path for p in small_dataset.val]

    classifier.save(tmp_path / "saved")
    loaded = ImageClassifier.load(tmp_path / "saved")

    assert loaded.pooling == "grid"
    np.testing.assert_allclose(
        loaded.predict_proba(paths), classifier.predict_proba(paths), atol=1e-6
    )
