"""Class activation maps: exact where the head is linear in the positions, else Grad-CAM."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from strategies.core.errors import BackboneError
from strategies.models.backbone import Backbone, load_backbone
from strategies.models.body import Body, Pooling
from strategies.models.classifier import ImageClassifier, make_network
from strategies.models.explain import class_maps as module
from strategies.models.explain.class_maps import class_maps
from strategies.models.features import to_input
from tests.families import FAMILIES, write_network

N, N_CLASSES = 3, 4
Load = Callable[..., Backbone]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Return a loader of backbones by the name of their family, at their smallest size."""
    folder = tmp_path_factory.mktemp("families")

    def load_family(kind: str) -> Backbone:
        name = write_network(FAMILIES[kind], folder / kind)
        return load_backbone(name, input_px=FAMILIES[kind].sizes[0])

    return load_family


def classifier_of(
    backbone: Backbone, depths: tuple[int, ...], pooling: Pooling = "mean"
) -> ImageClassifier:
    """Return a classifier with a random head."""
    torch.manual_seed(0)
    network = make_network(backbone, depths, N_CLASSES, pooling).eval()
    names = tuple("abcd")
    return ImageClassifier(names, backbone, depths, network, "linear_probe", {}, pooling)


def noise(px: int, n: int = N) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, px, px, 3), dtype=np.uint8)


@torch.no_grad()
def scores_and_features(
    classifier: ImageClassifier, pixels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    features = classifier.network.body(to_input(pixels, classifier.backbone, torch.device("cpu")))
    return classifier.network.head(features).numpy(), features.numpy()


CLASSES = np.array([0, 2, 3])
OTHERS = np.array([1, 0, 2])


@pytest.mark.parametrize("pooling", ["mean", "grid"])
@pytest.mark.parametrize("which", ["last", "first", "all"])
def test_the_mean_of_an_exact_map_plus_the_bias_is_the_score(
    backbone: Backbone, which: str, pooling: Pooling
) -> None:
    n = backbone.n_depths
    depths = {"last": (n,), "first": (1,), "all": tuple(range(1, n + 1))}[which]
    backbone = replace(backbone, input_px=72)  # maps of odd sides: the quarters overlap
    classifier = classifier_of(backbone, depths, pooling)
    pixels = noise(72)
    scores, features = scores_and_features(classifier, pixels)
    bias = classifier.network.head.bias.detach().numpy()
    rows = np.arange(N)

    found = class_maps(classifier, pixels, CLASSES)
    assert found.method == "CAM"
    assert found.maps.shape == (N, 72, 72)
    assert found.maps.dtype == np.float32
    expected = scores[rows, CLASSES]
    np.testing.assert_allclose(found.maps.mean((1, 2)) + bias[CLASSES], expected, atol=1e-4)
    np.testing.assert_allclose(found.features, features, atol=1e-5)

    both = class_maps(classifier, pixels, CLASSES, OTHERS)
    expected = (scores - bias)[rows, CLASSES] - (scores - bias)[rows, OTHERS]
    np.testing.assert_allclose(both.maps.mean((1, 2)), expected, atol=1e-4)
    both_scores = scores[rows, CLASSES] - scores[rows, OTHERS]
    np.testing.assert_allclose(both.with_bias().mean((1, 2)), both_scores, atol=1e-4)
    minus = class_maps(classifier, pixels, OTHERS).maps
    np.testing.assert_allclose(both.maps, found.maps - minus, atol=1e-4)


def test_evidence_stands_where_the_image_has_it(backbone: Backbone) -> None:
    classifier = classifier_of(backbone, (1,))
    body, head = classifier.network.body, classifier.network.head
    with torch.no_grad():  # a head that adds up all activations: texture against a flat colour
        head.weight.fill_(1.0)
    pixels = np.full((1, 64, 64, 3), 128, np.uint8)
    flat = body(to_input(pixels, backbone, torch.device("cpu")))
    pixels[0, 32:, 32:] = noise(32, 1)[0]
    with torch.no_grad():
        head.weight[:] = (body(to_input(pixels, backbone, torch.device("cpu"))) - flat).sign()
    found = class_maps(classifier, pixels, np.array([0])).maps[0]
    quarters = [found[i : i + 32, j : j + 32].mean() for i in (0, 32) for j in (0, 32)]
    assert np.argmax(quarters) == 3


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_has_maps_and_says_how_they_were_computed(load: Load, kind: str) -> None:
    backbone = load(kind)
    classifier = classifier_of(backbone, (backbone.n_depths,))
    pixels = noise(backbone.input_px)
    scores, features = scores_and_features(classifier, pixels)
    found = class_maps(classifier, pixels, CLASSES)

    exact = {"resnet", "swin", "levit", "efficientvit"}  # the mean of the last activations
    assert found.method == ("CAM" if kind in exact else "Grad-CAM")
    assert np.isfinite(found.maps).all()
    if kind != "levit":  # its blocks add nothing before they are trained
        assert found.maps.std((1, 2)).min() > 0
    np.testing.assert_allclose(found.features, features, atol=1e-4)
    if kind in exact:
        bias = classifier.network.head.bias.detach().numpy()
        expected = scores[np.arange(N), CLASSES] - bias[CLASSES]
        np.testing.assert_allclose(found.maps.mean((1, 2)), expected, atol=1e-4)
    assert all(p.requires_grad for p in classifier.network.parameters())
    assert not any(m._forward_pre_hooks for m in classifier.network.modules())


@pytest.mark.parametrize("kind", ["deit", "vit with registers", "convnext", "mobilenetv3"])
def test_grad_cam_predicts_what_a_small_change_of_the_activations_does(
    load: Load, kind: str
) -> None:
    """The gradient is that of the score: the map is its linear part at the patches."""
    backbone = load(kind)
    classifier = classifier_of(backbone, (backbone.n_depths,))
    body, pixels = classifier.network.body, noise(backbone.input_px, 1)
    weight = classifier.network.head.weight.detach()
    images = to_input(pixels, backbone, torch.device("cpu"))
    taken: list[Tensor] = []
    block = body.read_blocks()[-1] if body.has_tokens else None
    if block is not None:
        hook = block.register_forward_pre_hook(lambda _, given: taken.append(given[0]))
        body(images)
        hook.remove()
        n_prefix = body.net.num_prefix_tokens

        def score(scale: float) -> Tensor:
            changed = taken[0].clone()
            changed[:, n_prefix:] += scale * taken[0][:, n_prefix:].mean(1, keepdim=True)
            again = block.register_forward_pre_hook(lambda _, given: (changed, *given[1:]))
            features = body(images)
            again.remove()
            return (features * weight[:1]).sum()
    else:
        last = body.unpooled(images)[1]
        assert last is not None

        def score(scale: float) -> Tensor:
            moved = last + scale * last.mean((2, 3), keepdim=True)
            return (body.pool_last(moved) * weight[:1]).sum()

    step = 1e-2
    with torch.no_grad():
        slope = float(score(step) - score(-step)) / (2 * step)
    found = class_maps(classifier, pixels, np.array([0]))
    # A change by the mean activations at every position moves the score by the mean of the map.
    assert found.maps.mean() == pytest.approx(slope, rel=0.02, abs=1e-3)


def test_the_maps_of_several_depths_of_a_transformer_add_up(load: Load) -> None:
    backbone = load("deit")
    n = backbone.n_depths
    both = classifier_of(backbone, (1, n))
    torch.manual_seed(1)
    width = both.network.head.in_features
    split = backbone.depths[0].channels
    parts = []
    for kept in (slice(0, split), slice(split, width)):
        one = classifier_of(backbone, (1, n))
        one.network.load_state_dict(both.network.state_dict())
        with torch.no_grad():
            one.network.head.weight.zero_()
            one.network.head.weight[:, kept] = both.network.head.weight[:, kept]
        parts.append(class_maps(one, noise(96), CLASSES).maps)
    found = class_maps(both, noise(96), CLASSES)
    assert found.method == "Grad-CAM"
    assert min(part.std() for part in parts) > 0
    np.testing.assert_allclose(found.maps, sum(parts), atol=1e-4)


def test_a_head_on_maps_and_on_a_pooled_depth_that_is_not_linear_names_both(load: Load) -> None:
    backbone = load("convnext")
    classifier = classifier_of(backbone, (1, backbone.n_depths))
    assert class_maps(classifier, noise(96), CLASSES).method == "CAM and Grad-CAM"


def test_maps_do_not_depend_on_the_batch_and_short_memory_is_no_error(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = classifier_of(backbone, (backbone.n_depths,))
    pixels = noise(64)
    whole = class_maps(classifier, pixels, CLASSES).maps
    single = [class_maps(classifier, pixels[i : i + 1], CLASSES[i : i + 1]).maps for i in range(N)]
    np.testing.assert_allclose(np.concatenate(single), whole, atol=1e-4)

    sizes = []
    parts = module._parts

    def short(body: nn.Module, images: Tensor, weights: Tensor) -> object:
        sizes.append(len(images))
        if len(images) > 1:
            raise RuntimeError("not enough memory")
        return parts(body, images, weights)

    monkeypatch.setattr(module, "_parts", short)
    np.testing.assert_allclose(class_maps(classifier, pixels, CLASSES).maps, whole, atol=1e-4)
    assert sizes[0] == N


def test_no_images_have_no_maps(backbone: Backbone) -> None:
    classifier = classifier_of(backbone, (1,))
    none = np.empty(0, np.int64)
    found = class_maps(classifier, noise(64)[:0], none)
    assert found.maps.shape == (0, 64, 64)
    assert found.features.shape == (0, backbone.depths[0].channels)


def test_a_network_without_positions_is_an_error_that_says_so(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = classifier_of(backbone, (backbone.n_depths,))
    body = classifier.network.body
    flat = torch.zeros(N, backbone.depths[-1].channels)
    monkeypatch.setattr(body, "pool_last", lambda last: flat)
    for last in (flat, flat[:, None], [flat]):  # pooled already, one token, several branches
        monkeypatch.setattr(body, "unpooled", lambda images, last=last: ([], last))
        with pytest.raises(BackboneError, match=r"need feature maps .* without --explain"):
            class_maps(classifier, noise(64), CLASSES)


@pytest.mark.parametrize("name", ["cait_xxs24_224", "convit_tiny"])
def test_a_class_token_that_is_added_late_is_no_patch(name: str) -> None:
    net = timm.create_model(name, pretrained=False, depth=3).eval()
    body = Body(net, (4,), 4)
    weights = torch.randn(1, 192, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        parts, features = module._parts(body, torch.randn(1, 3, 224, 224), weights)
    (part,) = parts
    assert (part.maps.shape, part.is_exact) == ((1, 14, 14), False)
    assert float(part.maps.std()) > 0
    assert features.shape == (1, 192)


def test_random_weights_in_the_head_or_the_network_change_the_map(backbone: Backbone) -> None:
    """Adebayo et al., Sanity checks for saliency maps, 2018."""
    backbone = replace(backbone, input_px=224)  # maps of 7 x 7
    classifier = classifier_of(backbone, (backbone.n_depths,))
    pixels = noise(224)
    trained = class_maps(classifier, pixels, CLASSES).maps
    other_head = classifier_of(backbone, (backbone.n_depths,))
    with torch.no_grad():
        nn.init.normal_(other_head.network.head.weight)
    other_body = classifier_of(backbone.with_random_weights(), (backbone.n_depths,))
    for other in (other_head, other_body):
        maps = class_maps(other, pixels, CLASSES).maps
        pairs = zip(trained, maps, strict=True)
        assert np.mean([abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in pairs]) < 0.6
    again = class_maps(classifier_of(backbone, (backbone.n_depths,)), pixels, CLASSES).maps
    np.testing.assert_allclose(again, trained, atol=1e-5)
