"""Fixture: timm architectures with random weights in place of downloaded ones."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from strategies.models import backbone
from strategies.models.architectures import pretrained, timm_zoo
from strategies.models.backbone import Backbone, load_backbone


def forget_backbones() -> None:
    """Forget all weights that were read, as a new process does."""
    backbone._inspect.cache_clear()
    pretrained.read.cache_clear()
    pretrained.digest.cache_clear()


@pytest.fixture
def load_random(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Backbone]]:
    """Load any timm architecture with the same random "pretrained" weights at every build."""

    def load(name: str) -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model(name, pretrained=False)

    monkeypatch.setattr(timm_zoo, "load", load)
    forget_backbones()
    yield load_backbone
    forget_backbones()


@pytest.fixture
def tiny(load_random: Callable[..., Backbone]) -> Backbone:
    """Return a ResNet of half a million parameters at 32 px."""
    return replace(load_random("test_resnet", input_px=64), input_px=32)
