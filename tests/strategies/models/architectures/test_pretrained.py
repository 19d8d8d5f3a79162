import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch

from strategies.models.architectures import pretrained, timm_zoo
from strategies.models.architectures.timm_zoo import Architecture
from tests.conftest import forget_backbones
from tests.families import FAMILIES, Family, write_network


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    forget_backbones()
    yield
    forget_backbones()


@pytest.mark.parametrize("kind", ["deit", "swin", "efficientvit", "siglip"])
@pytest.mark.parametrize("px", [96, 224])
def test_a_network_of_another_size_has_the_weights_that_timm_loads_for_it(
    tmp_path: Path, kind: str, px: int
) -> None:
    name = write_network(FAMILIES[kind], tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of timm's own resampling
        theirs = timm.create_model(name, pretrained=True, img_size=px).state_dict()

    ours = pretrained.read(name).network(px).state_dict()

    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_network_of_another_size_does_not_keep_a_copy_of_the_weights(tmp_path: Path) -> None:
    found = pretrained.read(write_network(FAMILIES["deit"], tmp_path))

    assert "state_dict" not in found.network(96).pretrained_cfg


def test_networks_share_no_memory_with_the_weights_that_were_read(tmp_path: Path) -> None:
    name = write_network(Family("test_resnet", "batch"), tmp_path)
    with torch.no_grad():
        for parameter in pretrained.read(name).network(160).parameters():
            parameter.zero_()

    assert pretrained.digest(name) == pretrained.weights_digest(
        pretrained.read(name).network(160).state_dict()
    )


def test_an_architecture_is_created_again_from_its_record() -> None:
    net = timm.create_model("vit_tiny_patch16_224", depth=2, reg_tokens=3, num_classes=7)
    found = timm_zoo.architecture_of(net)

    again = timm_zoo.create(Architecture(found.name, found.arguments), 224)

    own = {key: value.shape for key, value in net.state_dict().items()}
    assert {key: value.shape for key, value in again.state_dict().items()} == own


@pytest.mark.parametrize("foreign", ["checkpoint_path", "pretrained", "pretrained_cfg"])
def test_arguments_that_make_timm_read_files_are_refused(foreign: str) -> None:
    with pytest.raises(ValueError, match=foreign):
        timm_zoo.create(Architecture("test_resnet", json.dumps({foreign: "x"})))


@pytest.mark.parametrize(
    ("px", "step", "expected"),
    [(224, 32, 96), (256, 32, 160), (160, 16, 80), (518, 14, 266), (32, 32, 96), (64, 32, 32)],
)
def test_the_size_that_is_tried_is_an_odd_multiple_near_half(
    px: int, step: int, expected: int
) -> None:
    tried = pretrained._odd_multiple(px, step)
    assert (tried // step) % 2 == 1
    assert tried % step == 0
    assert tried == expected


def test_named_classes_of_a_configuration_are_the_classes_of_the_head(tmp_path: Path) -> None:
    net = timm.create_model("test_resnet", num_classes=2)
    names = {"label_names": ["ant", "bee"]}
    timm.models.save_for_hf(net, str(tmp_path), model_config=names, safe_serialization=True)

    assert pretrained.class_names(f"local-dir:{tmp_path}", 2) == ("ant", "bee")


def test_the_classes_of_a_local_folder_without_names_are_not_known(tmp_path: Path) -> None:
    name = write_network(Family("test_resnet", "batch"), tmp_path)
    assert pretrained.class_names(name, 1000) is None
