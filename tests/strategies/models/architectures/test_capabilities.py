import pytest
import timm
from torch import nn

from strategies.models.architectures import timm_zoo
from strategies.models.architectures.capabilities import (
    InputSizes,
    has_tokens,
    n_known_classes,
    norm_of,
    reduction_of,
)


def test_any_size_is_taken_by_default() -> None:
    sizes = InputSizes()
    assert all(sizes.takes(px) for px in (1, 97, 224))
    assert not sizes.takes(0)
    assert sizes.nearest(97) == 97
    assert str(sizes) == "any size"


def test_a_step_takes_its_multiples_only() -> None:
    sizes = InputSizes(step=14)
    assert [px for px in range(60) if sizes.takes(px)] == [14, 28, 42, 56]
    assert [sizes.nearest(px) for px in (1, 128, 224)] == [14, 126, 224]
    assert str(sizes) == "multiples of 14 px"


def test_a_list_of_sizes_takes_these_only() -> None:
    sizes = InputSizes(only=(224, 384))
    assert [px for px in (32, 224, 256, 384) if sizes.takes(px)] == [224, 384]
    assert [sizes.nearest(px) for px in (64, 300, 310)] == [224, 224, 384]
    assert str(sizes) == "only 224 px, 384 px"


@pytest.mark.parametrize(
    ("layers", "norm"),
    [
        ([nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.LayerNorm(2)], "batch"),
        ([nn.LayerNorm(2), nn.LayerNorm(2), nn.BatchNorm2d(2)], "layer"),
        ([nn.RMSNorm(2)], "layer"),
        ([nn.GroupNorm(1, 2)], "group"),
        ([nn.Linear(2, 2)], "none"),
    ],
)
def test_the_norm_is_the_most_frequent_kind_of_layer(layers: list[nn.Module], norm: str) -> None:
    assert norm_of(nn.Sequential(*layers)) == norm


def test_the_reduction_is_that_of_the_deepest_level() -> None:
    assert reduction_of(timm.create_model("test_resnet")) == 32
    assert reduction_of(timm.create_model("test_vit")) == 16
    assert reduction_of(nn.Identity()) == 32


def test_only_transformers_have_tokens() -> None:
    assert has_tokens(timm.create_model("test_vit"))
    assert not has_tokens(timm.create_model("test_resnet"))
    assert not has_tokens(nn.Identity())


@pytest.mark.parametrize("width", [384, 512, 640, 768, 1024, 1152, 1280])
def test_the_widths_of_projections_of_image_towers_are_no_classes(width: int) -> None:
    assert timm_zoo.class_names(width) is None
    assert n_known_classes(width, None, has_imagenet_size=False) == 0


@pytest.mark.parametrize("count", [1000, 11821, 21841])
def test_the_sizes_of_imagenet_are_classes(count: int) -> None:
    assert timm_zoo.class_names(count) is not None
    assert n_known_classes(count, None, has_imagenet_size=True) == count


def test_named_classes_are_known_if_every_output_has_a_name() -> None:
    assert n_known_classes(2, ["ant", "bee"], has_imagenet_size=False) == 2
    assert n_known_classes(2, {"0": "ant", "1": "bee"}, has_imagenet_size=False) == 2
    assert n_known_classes(3, ["ant", "bee"], has_imagenet_size=False) == 0
    assert n_known_classes(0, [], has_imagenet_size=False) == 0
