"""What all parts of `gpu.py` measure with: a network, images, a context, and rates.

Rates are images per second.

Run:      imported by gpu_parts.py, gpu_features.py and gpu_training.py.
Cost:     none of its own.
Expected: nothing is measured here.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm
import torch

from strategies.core.cache import ArrayCache
from strategies.core.context import RunContext
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone, load_backbone

Part = dict[str, Any]

RANDOM_WEIGHTS = {"vit": "vit_small_patch16_224", "resnet": "resnet50"}
NETWORKS = ("cnn", *RANDOM_WEIGHTS)
"""The embedded CNN, and two networks of timm with random weights, for their speed only."""
SMALL = {"vit": "test_vit", "resnet": "test_resnet"}
"""In their place in a smoke run."""


@dataclass(frozen=True)
class Setup:
    """What a part measures with: images, network and context, and how long.

    Attributes
    ----------
    batch_size
        Images of a training step.
    seconds
        Duration of every timed loop.
    steps
        Steps of a training run. Its first round is warm-up.
    compiler
        Backend of torch's compiler; "eager" traces the network and compiles no code.
    """

    dataset: Dataset
    backbone: Backbone
    ctx: RunContext
    batch_size: int
    seconds: float
    steps: int
    compiler: str = "inductor"

    def scratch_ctx(self, folder: str, reporter: Reporter | None = None) -> RunContext:
        """Return the context with an empty cache."""
        cache = ArrayCache(Path(tempfile.mkdtemp(dir=folder)))
        return replace(self.ctx, cache=cache, reporter=reporter or Reporter())


@contextlib.contextmanager
def torch_compiler(setup: Setup, folder: str) -> Iterator[None]:
    """Context in which torch compiles from scratch, with the compiler of the setup."""
    empty = {"TORCHINDUCTOR_CACHE_DIR": tempfile.mkdtemp(dir=folder)}
    chosen = partial(torch.compile, backend=setup.compiler)
    torch.compiler.reset()
    with patch.dict(os.environ, empty), patch.object(torch, "compile", chosen):
        yield
    torch.compiler.reset()


def load_network(name: str, folder: Path, *, smoke: bool) -> Backbone:
    """Return a backbone by its name in `NETWORKS`."""
    px = 64 if smoke else 224
    if name == "cnn":
        return load_backbone(input_px=px)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = timm.create_model((SMALL if smoke else RANDOM_WEIGHTS)[name], pretrained=False)
    timm.models.save_for_hf(net, str(folder / name), safe_serialization=True)
    return load_backbone(f"local-dir:{folder / name}", input_px=px)


def wait_for(device: torch.device) -> None:
    """Wait until everything is computed that was started on a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rate(work: Callable[[], object], n_images: int, setup: Setup, warm_up: int = 3) -> float:
    """Return the images per second of some work that is repeated for the time of the setup."""
    for _ in range(warm_up):
        work()
    wait_for(setup.ctx.device)
    start, n_done = time.perf_counter(), 0
    while time.perf_counter() - start < setup.seconds:
        work()
        n_done += n_images
        if n_done % (8 * n_images) == 0:  # otherwise the host runs ahead of the device
            wait_for(setup.ctx.device)
    wait_for(setup.ctx.device)
    return n_done / (time.perf_counter() - start)


def rate_between(stamps: Sequence[tuple[int, float]]) -> float:
    """Return the images per second from the first to the last of (images done, seconds)."""
    (first, start_s), (last, end_s) = stamps[0], stamps[-1]
    return (last - first) / (end_s - start_s)


def reset_peak(device: torch.device) -> None:
    """Forget the peak memory so far."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int | None:
    """Return the peak memory that torch has taken of a GPU; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
