"""Family, layers and projections of networks, read from their modules."""

from collections.abc import Callable

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from strategies.models.architectures.anatomy import (
    drop_path_slots,
    family_of,
    is_exempt_from_weight_decay,
    layers_below_head,
    n_layers,
    projections,
)
from strategies.models.architectures.efficientnet_lite import SCALES, EfficientNetLite
from strategies.models.architectures.family import Family
from strategies.models.backbone import Backbone

EXPECTED: dict[str, Family] = {
    "resnet18": "convolutional",
    "seresnet50": "convolutional",
    "mobilenetv3_small_100": "convolutional",
    "resnetv2_50x1_bit": "convolutional",
    "convnext_atto": "convnext",
    "convnextv2_atto": "convnext",
    "mixer_s16_224": "convnext",
    "deit_tiny_patch16_224": "transformer",
    "vit_small_patch14_reg4_dinov2": "transformer",
    "vit_small_patch16_dinov3": "transformer",
    "swin_tiny_patch4_window7_224": "transformer",
    "levit_128s": "transformer",
    "efficientvit_m0": "transformer",
    "maxvit_rmlp_pico_rw_256": "transformer",
    "vit_base_patch16_clip_224": "transformer",
    "vit_base_patch16_siglip_224": "transformer",
    "test_vit": "transformer",
    "test_coatnet": "transformer",
}


def made(name: str) -> nn.Module:
    """Return a network without memory for its weights, with a classifier layer."""
    with torch.device("meta"):
        net: nn.Module = timm.create_model(name, pretrained=False, num_classes=10)
    return net


@pytest.mark.parametrize(("name", "expected"), EXPECTED.items(), ids=EXPECTED)
def test_the_architecture_is_that_of_most_parameters(name: str, expected: Family) -> None:
    assert family_of(made(name)) == expected


def test_the_embedded_networks_are_convolutional() -> None:
    with torch.device("meta"):
        net = EfficientNetLite(SCALES["tf_efficientnet_lite0"], initialise=False)
    assert family_of(net) == "convolutional"


@pytest.mark.parametrize(("name", "layers"), [("test_vit", 7), ("convnext_atto", 13)])
def test_a_backbone_records_its_architecture_and_layers(
    name: str, layers: int, load_random: Callable[..., Backbone]
) -> None:
    found = load_random(name, input_px=None if name == "test_vit" else 64)
    assert found.family == EXPECTED[name]
    assert found.n_layers == layers


@pytest.mark.parametrize("name", [n for n, kind in EXPECTED.items() if kind != "convolutional"])
def test_layers_and_exemptions_are_those_of_timm_with_its_own_head(name: str) -> None:
    net = made(name)
    groups = param_groups_layer_decay(
        net,
        weight_decay=0.05,
        no_weight_decay_list=net.no_weight_decay() if hasattr(net, "no_weight_decay") else (),
        layer_decay=0.5,
    )
    expected = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    named = dict(net.named_parameters())
    net.reset_classifier(0)  # type: ignore[operator]
    below, exempt = layers_below_head(net), is_exempt_from_weight_decay(net)
    assert below is not None
    for key, parameter in net.named_parameters():
        assert parameter is named[key]
        decayed = parameter.ndim > 1 and not exempt(key)
        assert (0.5 ** below[key], 0.05 * decayed) == expected[id(parameter)], key


def test_blocks_of_a_vision_transformer_are_numbered_from_the_head() -> None:
    net = made("deit_tiny_patch16_224")
    below = layers_below_head(net)
    assert below is not None
    assert [below[f"blocks.{i}.mlp.fc1.weight"] for i in range(12)] == list(range(12, 0, -1))
    assert below["pos_embed"] == below["cls_token"] == below["patch_embed.proj.weight"] == 13
    assert below["norm.weight"] == 1
    assert n_layers(net) == 13


def test_networks_without_a_matcher_have_no_layers() -> None:
    assert layers_below_head(nn.Linear(2, 2)) is None
    assert n_layers(nn.Linear(2, 2)) == 0


def test_every_residual_branch_of_a_block_has_a_place_for_drop_path() -> None:
    slots = drop_path_slots(made("test_vit"))
    assert slots == [f"blocks.{i}.drop_path{j}" for i in range(6) for j in (1, 2)]
    assert not drop_path_slots(made("resnet18"))


def test_projections_are_those_of_attention_and_mlp_without_the_classifier_layer() -> None:
    net = timm.create_model("test_vit", pretrained=False)
    ends = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert projections(net, 160) == [f"blocks.{i}.{end}" for i in range(6) for end in ends]


def test_projections_of_convnext_are_its_pointwise_convolutions() -> None:
    found = projections(timm.create_model("convnext_atto", pretrained=False), 64)
    assert found
    assert all(name.endswith(("mlp.fc1", "mlp.fc2")) for name in found)


def test_weights_that_are_used_without_a_call_are_no_projections() -> None:
    found = projections(timm.create_model("beit_base_patch16_224", pretrained=False), 224)
    assert not [name for name in found if name.endswith("qkv")]
    assert "blocks.11.attn.proj" in found
