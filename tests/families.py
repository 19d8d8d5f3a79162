"""Folders of small networks of nine families, with random weights, in timm's format."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch


@dataclass(frozen=True)
class Family:
    """An architecture of timm, what makes it small, and what it can do.

    Attributes
    ----------
    sizes
        Which of 96, 160 and 224 px it takes.
    source_classes
        Number of known classes of its head.
    """

    architecture: str
    norm: str
    sizes: tuple[int, ...] = (96, 160, 224)
    source_classes: int = 1000
    class_token: bool = False
    prefix_tokens: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)


VIT = "vit_tiny_patch16_224"
SHALLOW = {"depth": 3}
FAMILIES = {
    "resnet": Family("resnet18", "batch"),
    "mobilenetv3": Family("mobilenetv3_small_050", "batch"),
    "convnext": Family("convnext_atto", "layer"),
    "deit": Family(
        "deit_tiny_patch16_224", "layer", class_token=True, prefix_tokens=1, arguments=SHALLOW
    ),
    "vit with registers": Family(
        VIT,
        "layer",
        source_classes=0,
        class_token=True,
        prefix_tokens=5,
        arguments=SHALLOW | {"reg_tokens": 4, "num_classes": 0, "init_values": 1e-5},
    ),
    "swin": Family(
        "swin_tiny_patch4_window7_224",
        "layer",
        arguments={"embed_dim": 24, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)},
    ),
    "levit": Family("levit_128s", "batch", sizes=(224,), source_classes=0),
    "efficientvit": Family("efficientvit_m0", "batch"),
    "siglip": Family(
        VIT,
        "layer",
        source_classes=0,
        arguments=SHALLOW | {"global_pool": "map", "class_token": False, "num_classes": 0},
    ),
    "clip": Family(
        VIT,
        "layer",
        source_classes=0,
        class_token=True,
        prefix_tokens=1,
        arguments=SHALLOW | {"pre_norm": True, "num_classes": 512},
    ),
}


def write_network(family: Family, folder: Path) -> str:
    """Write the network with random weights, and return its name for ``--backbone``."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = timm.create_model(family.architecture, pretrained=False, **family.arguments)
    timm.models.save_for_hf(net, str(folder), safe_serialization=True)
    return f"local-dir:{folder}"
