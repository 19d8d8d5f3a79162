"""Nine families of networks: sizes, features, and classifiers that outlive the weights."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from strategies.core.cache import ArrayCache
from strategies.core.context import RunContext
from strategies.core.errors import BackboneError
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone, half_size, input_sizes, load_backbone
from strategies.models.body import Body, pool
from strategies.models.classifier import ImageClassifier, make_network
from strategies.models.features import extract_features
from strategies.models.multi_view import extract_views
from tests.conftest import forget_backbones
from tests.families import FAMILIES, write_network

every_family = pytest.mark.parametrize("kind", FAMILIES)
Load = Callable[..., Backbone]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Return a loader of backbones by the name of their family."""
    folder = tmp_path_factory.mktemp("families")
    names: dict[str, str] = {}

    def load_family(kind: str, input_px: int | None = None) -> Backbone:
        if kind not in names:
            names[kind] = write_network(FAMILIES[kind], folder / kind)
        return load_backbone(names[kind], input_px=input_px)

    return load_family


@every_family
def test_capabilities_are_those_of_the_family(load: Load, kind: str) -> None:
    family, found = FAMILIES[kind], load(kind).capabilities
    assert found.norm == family.norm
    assert found.source_classes == family.source_classes


@every_family
def test_a_size_is_taken_or_refused_with_the_sizes_that_are_taken(load: Load, kind: str) -> None:
    for px in (96, 160, 224):
        if px in FAMILIES[kind].sizes:
            assert load(kind, px).input_px == px
        else:
            with pytest.raises(BackboneError, match=f"at {px} px: it takes only 224 px"):
                load(kind, px)


@every_family
def test_all_offered_sizes_are_taken(load: Load, kind: str) -> None:
    for px in input_sizes(load(kind)):
        net = load(kind, px).build()
        with torch.inference_mode():
            assert net(torch.zeros(1, 3, px, px)).isfinite().all()


def _smallest(load: Load, kind: str) -> Backbone:
    return load(kind, FAMILIES[kind].sizes[0])


@every_family
def test_features_and_views_have_the_widths_of_the_depths(
    load: Load, small_dataset: Dataset, ctx: RunContext, kind: str
) -> None:
    backbone = _smallest(load, kind)
    found = extract_features(small_dataset.train[:3], backbone, ctx)
    views = extract_views(small_dataset.train[:3], backbone, ctx, 2)

    assert [p.shape[1] for p in found.pooled] == [d.channels for d in backbone.depths]
    assert all(np.isfinite(p).all() for p in found.pooled)
    assert len(np.unique(found.pooled[-1], axis=0)) == 3
    for one, two in zip(found.pooled, views.mean, strict=True):
        np.testing.assert_allclose(one, two[:, 0], rtol=1e-3, atol=1e-4)
    classes = FAMILIES[kind].source_classes
    assert (found.source_head is not None) == (classes > 0)
    assert found.source_head is None or len(found.source_head.classes) == classes


@every_family
def test_the_random_init_control_runs_at_half_the_size_if_the_network_takes_it(
    load: Load, small_dataset: Dataset, ctx: RunContext, kind: str
) -> None:
    small = half_size(load(kind)).with_random_weights()

    found = extract_features(small_dataset.train[:2], small, ctx)

    assert np.isfinite(found.pooled[-1]).all()
    assert small.input_px == (224 if kind == "levit" else 128)


@every_family
def test_a_classifier_predicts_the_same_without_the_weights_of_its_backbone(
    small_dataset: Dataset, tmp_path: Path, kind: str
) -> None:
    family = FAMILIES[kind]
    name = write_network(family, tmp_path / "network")
    backbone = load_backbone(name, input_px=family.sizes[0])
    paths = [image.path for image in small_dataset.train[:3]]
    folders, expected = [], []
    for depths in [(backbone.n_depths,), (1, 2)]:
        with torch.random.fork_rng([]):
            torch.manual_seed(1)
            network = make_network(backbone, depths, 3).eval()
        classifier = ImageClassifier(("a", "b", "c"), backbone, depths, network, "any", {})
        folders.append(tmp_path / f"classifier{len(folders)}")
        classifier.save(folders[-1])
        expected.append(classifier.predict_proba(paths))
    shutil.rmtree(tmp_path / "network")
    forget_backbones()  # as in another process

    for folder, probabilities in zip(folders, expected, strict=True):
        loaded = ImageClassifier.load(folder)
        assert loaded.backbone == backbone
        np.testing.assert_allclose(loaded.predict_proba(paths), probabilities, atol=1e-6)


@pytest.mark.parametrize("kind", ["deit", "vit with registers", "clip", "siglip"])
def test_a_depth_of_a_transformer_is_the_class_token_beside_the_mean_of_patch_tokens(
    load: Load, kind: str
) -> None:
    backbone = load(kind, 96)
    n_prefix = FAMILIES[kind].prefix_tokens
    images = torch.randn(2, 3, 96, 96)
    net = backbone.build()
    tokens: list[torch.Tensor] = []
    net.get_submodule("blocks.1").register_forward_hook(lambda *args: tokens.append(args[2]))
    with torch.inference_mode():
        net(images)
        normed = net.get_submodule("norm")(tokens[0])
        levels, _ = Body(backbone.build(), (2,), backbone.n_depths).levels_of(images)

    patches = normed[:, n_prefix:]
    expected = [normed[:, 0]] if FAMILIES[kind].class_token else []
    found = pool(levels[0], "mean")
    torch.testing.assert_close(found, torch.cat([*expected, patches.mean(1)], dim=1))
    assert levels[0].maps.shape == (2, 192, 6, 6)
    assert backbone.depths[1].token_channels == (192 if expected else 0)


def test_grid_pooling_keeps_one_class_token(load: Load) -> None:
    backbone = load("vit with registers", 96)
    body = Body(backbone.build(), (1,), backbone.n_depths, "grid")
    with torch.inference_mode():
        assert body(torch.zeros(1, 3, 96, 96)).shape == (1, 192 + 4 * 192)


def test_batch_norm_of_windows_is_measured_for_every_image(
    load: Load, small_dataset: Dataset, ctx: RunContext, tmp_path: Path
) -> None:
    backbone, images = load("efficientvit", 224), small_dataset.train[:3]
    together = extract_features(images, backbone, ctx).moments
    assert together is not None
    for row, image in enumerate(images):
        alone_ctx = RunContext(cache=ArrayCache(tmp_path / str(row)))
        alone = extract_features([image], backbone, alone_ctx).moments
        assert alone is not None
        np.testing.assert_allclose(together.mean[row], alone.mean[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(together.square[row], alone.square[0], rtol=1e-3, atol=1e-4)
