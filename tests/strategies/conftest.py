"""Fixture: a network that trains in seconds on a CPU."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from strategies.models.backbone import Backbone


@pytest.fixture
def tiny(load_random: Callable[..., Backbone]) -> Backbone:
    """Return a ResNet of half a million parameters at 32 px."""
    return replace(load_random("test_resnet", input_px=64), input_px=32)
