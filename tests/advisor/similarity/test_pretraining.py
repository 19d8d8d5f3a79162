"""Pretraining domains, as stated by the user, the catalogue or timm's tags."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from advisor.similarity.pretraining import datasets_of, pretraining_domain
from strategies.models.backbone import Backbone


@pytest.mark.parametrize(
    ("tag", "datasets"),
    [
        ("a1_in1k", "in1k"),
        ("laion2b_ft_in12k_in1k", "laion2b, in12k, in1k"),
        ("augreg_in21k", "in21k"),
        ("lvd142m", "lvd142m"),
        ("openai", "openai"),
        ("webli_i18n", "webli"),
        ("swsl_ig1b_ft_in1k", "ig1b, in1k"),
        ("ra2", None),
        ("", None),
    ],
)
def test_the_datasets_of_a_tag_are_listed_in_their_order(tag: str, datasets: str | None) -> None:
    assert datasets_of(tag) == datasets


def test_embedded_backbones_are_pretrained_on_imagenet(backbone: Backbone) -> None:
    assert pretraining_domain(backbone) == "in1k"


def test_the_tag_is_read_from_a_name_or_a_local_configuration(
    backbone: Backbone, tmp_path: Path
) -> None:
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"tag": "augreg_in21k"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    names = {
        f"local-dir:{tmp_path}": "in21k",
        "vit_base_patch16_clip_224.laion2b": "laion2b",
        "hf-hub:timm/vit_small_patch14_dinov2.lvd142m": "lvd142m",
        "hf-hub:somebody/something": None,
        "resnet18": "in1k",  # timm's default tag
    }
    for name, domain in names.items():
        assert pretraining_domain(replace(backbone, name=name)) == domain


def test_what_the_user_states_takes_precedence(backbone: Backbone) -> None:
    assert pretraining_domain(backbone, "PlantCLEF") == "PlantCLEF"
    assert pretraining_domain(backbone, "ImageNet") == "in1k"
