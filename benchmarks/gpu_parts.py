"""Parts of `gpu.py` that run in a process of their own: speed of the feature pass and of training.

`gpu.py` starts this script once per part, so that a part can neither disturb the others nor take
longer than its limit. A part prints one JSON object. Rates are images per second.

Run:      python benchmarks/gpu_parts.py features --network cnn --device cuda --images FOLDER
Cost:     up to half a minute per part on a fast GPU.
Expected: the bars that docs/benchmarks/gpu.md states.
"""

import argparse
import itertools
import json
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from strategies.core.allocator import N_SMALL, free_bytes, inference_batch
from strategies.core.cache import ArrayCache
from strategies.core.context import RunContext, make_context
from strategies.core.devices import device_name
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset, load_dataset
from strategies.data.decoding import Pixels
from strategies.kernels.depthwise import training_precision
from strategies.models import features
from strategies.models.backbone import Backbone, load_backbone
from strategies.models.classifier import make_network
from strategies.models.features import INFERENCE_BATCH, extract_features, to_input
from strategies.models.network import Network
from strategies.training import trainer
from strategies.training.costs.memory import feature_pass_bytes, training_bytes
from strategies.training.loop import ROUNDS
from strategies.training.recipe import Recipe
from strategies.training.trainer import train

Part = dict[str, Any]

RANDOM_WEIGHTS = {"vit": "vit_small_patch16_224", "resnet": "resnet50"}
NETWORKS = ("cnn", *RANDOM_WEIGHTS)
"""The embedded CNN, and two networks of timm with random weights, for their speed only."""
SMALL = {"vit": "test_vit", "resnet": "test_resnet"}
"""In their place in a smoke run."""
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
    """

    dataset: Dataset
    backbone: Backbone
    ctx: RunContext
    batch_size: int
    seconds: float
    steps: int

    def scratch_ctx(self, folder: str, reporter: Reporter | None = None) -> RunContext:
        """Return the context with an empty cache."""
        cache = ArrayCache(Path(tempfile.mkdtemp(dir=folder)))
        return replace(self.ctx, cache=cache, reporter=reporter or Reporter())


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


def predicted_pass_bytes(setup: Setup) -> int | None:
    """Return the predicted peak of a feature pass in its largest batches; None on a CPU."""
    if setup.ctx.device.type != "cuda":
        return None
    weights, with_one = (feature_pass_bytes(setup.backbone, setup.ctx, n_images=n) for n in (0, 1))
    n = inference_batch(with_one - weights, free_bytes(setup.ctx.device))
    n = max(INFERENCE_BATCH, min(n, len(setup.dataset.fit_split) - N_SMALL * INFERENCE_BATCH))
    return feature_pass_bytes(setup.backbone, setup.ctx, n_images=n)


def measure_features(setup: Setup, folder: str) -> Part:
    """Measure the feature pass from files, without decoding, the bare network, and decoding."""
    device, backbone = setup.ctx.device, setup.backbone
    images = setup.dataset.fit_split
    extract_features(images[:INFERENCE_BATCH], backbone, setup.scratch_ctx(folder))  # warm-up
    reset_peak(device)
    found: Part = {"n": len(images), "from_files": _pass_rate(setup, folder)}
    found |= {"peak_bytes": peak_bytes(device), "batch": INFERENCE_BATCH}
    pixels = features.eval_pixels(images[0].path, backbone)
    n_read = itertools.count()

    def read(path: Path, backbone: Backbone) -> Pixels:
        next(n_read)
        return pixels

    with patch.object(features, "eval_pixels", read):
        found["without_decoding"] = _pass_rate(setup, folder)
    if next(n_read) < len(images):
        raise RuntimeError("The feature pass does not read images by features.eval_pixels.")
    ready = to_input(pixels[None].repeat(INFERENCE_BATCH, axis=0), backbone, device)
    net = backbone.build().to(device).eval()

    def forward() -> None:
        with torch.inference_mode(), setup.ctx.autocast():
            net(ready)

    found["bare_forward"] = rate(forward, INFERENCE_BATCH, setup)
    found["decoding"] = _decoding_rate(setup)
    found["predicted_bytes"] = predicted_pass_bytes(setup)
    return found


def _pass_rate(setup: Setup, folder: str) -> float:
    """Return the images per second of the feature pass, from the end of its first batch."""
    stamps: list[tuple[int, float]] = []

    def record(phase: str, done: int, of: int) -> None:
        if phase == "features":
            stamps.append((done, time.perf_counter()))

    ctx = setup.scratch_ctx(folder, Reporter(on_progress=record))
    extract_features(setup.dataset.fit_split, setup.backbone, ctx)
    return rate_between(stamps)


def _decoding_rate(setup: Setup) -> float:
    paths = [image.path for image in setup.dataset.fit_split]
    stamps: list[tuple[int, float]] = []
    n_done = 0
    for pixels in features.batches(paths, setup.backbone, setup.ctx.n_workers):
        n_done += len(pixels)
        stamps.append((n_done, time.perf_counter()))
    return rate_between(stamps)


def measure_training(setup: Setup, folder: str) -> Part:
    """Measure training from files and from a batch on the device, and a plain loop of torch."""
    device = setup.ctx.device
    precision = training_precision(_network(setup), setup.ctx)
    recipe = Recipe(setup.steps, 1e-4, batch_size=setup.batch_size, batch_norm="trained")
    reset_peak(device)
    found: Part = {"batch": setup.batch_size, "precision": str(precision)}
    found["from_files"] = _training_rate(setup, recipe, folder)
    found["peak_bytes"] = peak_bytes(device)
    found["predicted_bytes"] = training_bytes(
        setup.backbone, recipe, setup.ctx, setup.dataset.n_classes
    )
    size = (setup.batch_size, 3, setup.backbone.input_px, setup.backbone.input_px)
    images = torch.randn(size, device=device).to(memory_format=torch.channels_last)
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


MEASURES = {"features": measure_features, "training": measure_training}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure one part and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=MEASURES)
    parser.add_argument("--network", choices=NETWORKS, default="cnn")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--smoke", action="store_true", help="tiny: to test this script")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(
            load_dataset(args.images),
            load_network(args.network, Path(folder), smoke=args.smoke),
            make_context(device=args.device, cache_dir=Path(folder) / "cache"),
            batch_size=8 if args.smoke else args.batch_size,
            seconds=0.1 if args.smoke else 2.0,
            steps=ROUNDS if args.smoke else 20 * ROUNDS,
        )
        print(json.dumps(MEASURES[args.part](setup, folder)))


if __name__ == "__main__":
    main()
