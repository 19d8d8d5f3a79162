"""Costs are measured again in every test here: they are what is tested."""

from collections.abc import Callable
from types import ModuleType

import pytest

Replaced = tuple[tuple[ModuleType, str, Callable[..., object]], ...]


@pytest.fixture(autouse=True)
def _measured_every_time(measured_once: Replaced, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, function in measured_once:
        monkeypatch.setattr(module, name, function)
