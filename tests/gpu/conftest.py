"""Fixtures of the tests on a GPU: contexts on CUDA and on the CPU, and three kinds of networks."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from strategies.core.cache import ArrayCache
from strategies.core.context import RunContext
from strategies.core.devices import choose_precision
from strategies.models.backbone import Backbone

NETWORKS = ("cnn", "vit", "convnext")


@dataclass(frozen=True)
class Devices:
    """Contexts on the CPU and on a GPU, each with its own cache.

    Attributes
    ----------
    cpu, gpu
        Both in float32.
    own
        On the GPU, in the precision that the program chooses there.
    """

    cpu: RunContext
    gpu: RunContext
    own: RunContext

    def with_precision(self, precision: str) -> RunContext:
        """Return the context on the GPU in a precision: "float32", "float16" or "own"."""
        if precision == "own":
            return self.own
        return replace(self.gpu, precision=getattr(torch, precision))


@pytest.fixture
def device(cuda: torch.device) -> torch.device:
    """The GPU; without one, all tests that ask for it are skipped."""
    # cuBLAS reads this once, so it is set before anything is computed on the GPU.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return cuda


@pytest.fixture
def devices(device: torch.device, tmp_path: Path) -> Devices:
    """Return contexts on the GPU and on the CPU."""
    cpu = RunContext(cache=ArrayCache(tmp_path / "cpu"))
    gpu = replace(cpu, cache=ArrayCache(tmp_path / "gpu"), device=device)
    own = replace(gpu, cache=ArrayCache(tmp_path / "own"), precision=choose_precision(device))
    return Devices(cpu, gpu, own)


@pytest.fixture
def network_named(
    backbone: Backbone, load_random: Callable[..., Backbone]
) -> Callable[[str], Backbone]:
    """Return a loader: the embedded CNN, or a small ViT or ConvNeXt with random weights."""

    def load(name: str) -> Backbone:
        return backbone if name == "cnn" else load_random(f"test_{name}", input_px=64)

    return load


@pytest.fixture(params=NETWORKS)
def any_backbone(
    request: pytest.FixtureRequest, network_named: Callable[[str], Backbone]
) -> Backbone:
    """Return each of the three networks in turn."""
    return network_named(request.param)
