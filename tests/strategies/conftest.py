"""Fixture: timm architectures with random weights in place of downloaded ones."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from strategies.models import backbone
from strategies.models.architectures import timm_zoo
from strategies.models.backbone import Backbone, load_backbone


@pytest.fixture
def load_random(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Backbone]:
    """Load any timm architecture with the same random "pretrained" weights at every build."""
    create = timm_zoo.create

    def create_random(name: str, *, pretrained: bool, input_px: int | None) -> nn.Module:
        if pretrained:
            torch.manual_seed(0)
        return create(name, pretrained=False, input_px=input_px)

    monkeypatch.setattr(timm_zoo, "create", create_random)
    backbone._inspect.cache_clear()
    yield load_backbone
    backbone._inspect.cache_clear()
