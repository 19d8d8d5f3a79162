"""Parts of `gpu.py`: speed of training, eager and compiled, and how often the host waits.

Rates are images per second.

Run:      through gpu_parts.py, which gpu.py starts.
Cost:     up to half a minute per network on a fast GPU; compiled, a minute more.
Expected: the bars that docs/benchmarks/gpu.md states.
"""

import itertools
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from gpu_setup import (
    Part,
    Setup,
    peak_bytes,
    rate,
    rate_between,
    reset_peak,
    torch_compiler,
    wait_for,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from strategies.core.devices import device_name
from strategies.core.progress import Reporter
from strategies.kernels.compiled import TRAINING, TimedCompiler
from strategies.kernels.depthwise import training_precision
from strategies.models.classifier import make_network
from strategies.models.network import Network
from strategies.training import loop, trainer
from strategies.training.costs.memory import training_bytes
from strategies.training.loop import ROUNDS
from strategies.training.recipe import Recipe
from strategies.training.trainer import train

DENSE_16_BIT_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "V100-SXM2": 125.0,
    "T4": 65.0,
}
"""Dense bfloat16 or float16 matrix products (V100, T4: float16), by a part of the device's name;
the first that fits counts. From the vendor's data sheets, without structured sparsity."""


class RepeatedInputs:
    """Inputs of a training run that are on the device already: one batch, again and again.

    Attributes
    ----------
    on_step
        Called before every step.
    """

    kind = "repeated"

    def __init__(self, network: Network, images: Tensor, on_step: Callable[[], None]) -> None:
        self.network, self.images, self.on_step = network, images, on_step

    def batches(self, first: int) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Yield the batch forever."""
        while True:
            self.on_step()
            yield range(len(self.images)), self.images

    def val(self) -> Iterator[Tensor]:
        """Yield nothing: there are no validation images."""
        return iter(())


def measure_training(setup: Setup, folder: str) -> Part:
    """Measure training from files and from a batch on the device, and a plain loop of torch."""
    device = setup.ctx.device
    precision = training_precision(_network(setup), setup.ctx)
    recipe = _recipe(setup)
    reset_peak(device)
    found: Part = {"batch": setup.batch_size, "precision": str(precision)}
    found["from_files"] = _training_rate(setup, recipe, folder)
    found["peak_bytes"] = peak_bytes(device)
    found["predicted_bytes"] = training_bytes(
        setup.backbone, recipe, setup.ctx, setup.dataset.n_classes
    )
    images = _batch_on_device(setup)
    found["on_device"] = _training_rate(setup, recipe, folder, images)
    step = plain_step(setup, images, precision)
    found["plain_loop"] = rate(step, setup.batch_size, setup)
    with FlopCounterMode(display=False) as counter:
        step()
    flops = counter.get_total_flops() / setup.batch_size
    peak, source = peak_flops(device, precision, setup.seconds)
    found |= {"flops_per_image": flops, "peak_flops": peak, "peak_is": source}
    found["share_of_peak"] = found["on_device"] * flops / peak
    return found | count_syncs(setup, recipe, folder, images)


def _recipe(setup: Setup) -> Recipe:
    return Recipe(setup.steps, 1e-4, batch_size=setup.batch_size, batch_norm="trained")


def _batch_on_device(setup: Setup) -> Tensor:
    px = setup.backbone.input_px
    images = torch.randn((setup.batch_size, 3, px, px), device=setup.ctx.device)
    return images.to(memory_format=torch.channels_last)


def _network(setup: Setup) -> Network:
    with setup.ctx.seeded():
        backbone = setup.backbone
        return make_network(backbone, (backbone.n_depths,), setup.dataset.n_classes)


def _training_rate(
    setup: Setup,
    recipe: Recipe,
    folder: str,
    images: Tensor | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> float:
    """Return the images per second of a training run after its first round.

    Parameters
    ----------
    images
        Batch of every step, on the device; None: crops of the image files.
    """
    stamps: list[tuple[int, float]] = []
    per_round = recipe.steps // ROUNDS * recipe.batch_size

    def record(number: int, accuracy: float | None) -> None:
        wait_for(setup.ctx.device)
        stamps.append((number * per_round, time.perf_counter()))

    ctx = setup.scratch_ctx(folder, Reporter(on_epoch=record))
    network = _network(setup)
    with ExitStack() as stack:
        if images is not None:
            inputs = RepeatedInputs(network, images, on_step)
            stack.enter_context(patch.object(trainer, "make_inputs", lambda *_: inputs))
        train(network, replace(setup.dataset, val=(), test=None), setup.backbone, recipe, ctx)
    return rate_between(stamps)


def plain_step(setup: Setup, images: Tensor, precision: torch.dtype) -> Callable[[], None]:
    """Return a training step as in torch's documentation: autocast, AdamW, and nothing else."""
    device = setup.ctx.device
    network = _network(setup).to(device).to(memory_format=torch.channels_last).train()
    fused = True if device.type == "cuda" else None
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=fused)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    labels = torch.arange(len(images), device=device) % setup.dataset.n_classes

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with setup.ctx.device_settings():
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                loss = nn.functional.cross_entropy(network(images).float(), labels)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimiser)
        scaler.update()

    return step


def peak_flops(device: torch.device, precision: torch.dtype, seconds: float) -> tuple[float, str]:
    """Return the device's peak in operations per second, and where the number comes from."""
    if device.type == "cuda" and precision != torch.float32:
        name = device_name(device)
        for part, tflops in DENSE_16_BIT_TFLOPS.items():
            if part in name:
                return 1e12 * tflops, f"data sheet of {part}"
    n = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(n, n, device=device, dtype=precision) for _ in range(2))
    best_s, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < seconds:
        begun = time.perf_counter()
        torch.mm(a, b)
        wait_for(device)
        best_s = min(best_s, time.perf_counter() - begun)
    return 2 * n**3 / best_s, f"measured: product of two matrices of {n} rows"


def count_syncs(setup: Setup, recipe: Recipe, folder: str, images: Tensor) -> Part:
    """Count how often the host waits for the device in a training step; None on a CPU.

    "between_checks" is the median over the steps: seven of eight steps ask the device nothing.
    """
    if setup.ctx.device.type != "cuda":
        return {"syncs_between_checks": None, "syncs_per_step": None, "sync_places": None}
    marks: list[int] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            _training_rate(setup, recipe, folder, images, lambda: marks.append(len(caught)))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    own = [i for i, w in enumerate(caught) if "synchroniz" in str(w.message)]
    per_step = [sum(a <= i < b for i in own) for a, b in itertools.pairwise(marks)][1:]
    places = Counter(f"{Path(caught[i].filename).name}:{caught[i].lineno}" for i in own)
    return {
        "syncs_between_checks": sorted(per_step)[len(per_step) // 2],
        "syncs_per_step": sum(per_step) / len(per_step),
        "sync_places": dict(places.most_common(8)),
    }


def measure_compiled_training(setup: Setup, folder: str) -> Part:
    """Measure training with one batch on the device: as it is, and compiled.

    It is compiled at the first check of the run, whether that pays or not.
    """
    recipe = _recipe(setup)
    images = _batch_on_device(setup)
    found: Part = {"batch": setup.batch_size}
    found["eager"] = _training_rate(setup, recipe, folder, images)
    checks: list[tuple[int, float]] = []

    class AtOnce(TimedCompiler):
        """Compiles at the first check, and records when each check was."""

        def after_check(
            self, module: nn.Module, done: int, of: int, waited_s: float = 0.0
        ) -> nn.Module:
            wait_for(setup.ctx.device)
            checks.append((done, time.perf_counter()))
            if self.eager is not None:
                return module
            self.eager = module
            return TRAINING.compiled(module)

    with torch_compiler(setup, folder), patch.object(loop, "TimedCompiler", AtOnce):
        _training_rate(setup, recipe, folder, images)
    (first, start_s), (last, end_s) = checks[:2]
    compiled = rate_between([(done * setup.batch_size, at_s) for done, at_s in checks[1:]])
    seconds = end_s - start_s - (last - first) * setup.batch_size / compiled
    return found | {"compiled": {"rate": compiled, "seconds": max(0.0, seconds)}}
