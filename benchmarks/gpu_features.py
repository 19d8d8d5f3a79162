"""Parts of `gpu.py`: speed of the feature pass, eager and compiled, and of decoding on the device.

Rates are images per second.

Run:      through gpu_parts.py, which gpu.py starts.
Cost:     up to half a minute per network on a fast GPU; compiled, a minute more.
Expected: the bars that docs/benchmarks/gpu.md states.
"""

import io
import itertools
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import numpy as np
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
from PIL import Image
from torch import Tensor, nn
from torchvision.io import decode_jpeg

from strategies.core.allocator import MAX_INFERENCE_BATCH, N_SMALL, free_bytes, inference_batch
from strategies.core.progress import Reporter
from strategies.data.decoding import Pixels
from strategies.kernels.compiled import PASS_OPTIONS, OneSize
from strategies.models import features
from strategies.models.backbone import Backbone
from strategies.models.body import Body
from strategies.models.features import INFERENCE_BATCH, extract_features, to_input
from strategies.models.moments import FeatureNetwork, layout_of, watch
from strategies.training.costs.memory import feature_pass_bytes

N_WARM_UP = 3
"""Batches in which torch compiles the network, records its CUDA graph, and replays it."""
N_DECODED, DECODED_TOGETHER = 512, 32
"""JPEG files that are decoded, and how many of them together on the device."""


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


def measure_compiled_features(setup: Setup, folder: str) -> Part:
    """Measure a batch from the input to its rows on the host: as it is, and compiled.

    The batch is the largest that the program uses. Nothing is decoded and nothing is stored.
    """
    backbone, ctx = setup.backbone, setup.ctx
    net = backbone.build().to(ctx.device)
    body = Body(net, tuple(range(1, backbone.n_depths + 1)), backbone.n_depths)
    layout = layout_of(net, backbone)
    n = MAX_INFERENCE_BATCH if ctx.device.type == "cuda" else setup.batch_size
    size = (n, 3, backbone.input_px, backbone.input_px)
    images = torch.randn(size, device=ctx.device).to(memory_format=torch.channels_last)
    with torch.no_grad(), watch(net, layout) as moments:
        network: nn.Module = FeatureNetwork(body, layout, moments)

        def rows_by(network: Callable[[Tensor], Tensor]) -> Tensor:
            with ctx.autocast():
                return network(images).cpu()

        found: Part = {"batch": n, "eager": rate(lambda: rows_by(network), n, setup)}
        expected = rows_by(network)
        with torch_compiler(setup, folder):
            cuda_graphs = OneSize(network)  # as the program compiles it
            found["cuda_graphs"] = _compiled(lambda: rows_by(cuda_graphs), n, setup)
            error = torch.linalg.norm(rows_by(cuda_graphs) - expected)
            found["rows_differ"] = float(error / torch.linalg.norm(expected))
        with torch_compiler(setup, folder):
            options = {k: v for k, v in PASS_OPTIONS.items() if "cudagraphs" not in k}
            compiled = torch.compile(network, dynamic=False, options=options)
            found["compiled"] = _compiled(lambda: rows_by(compiled), n, setup)
    return found


def _compiled(work: Callable[[], object], n_images: int, setup: Setup) -> dict[str, float]:
    """Return the seconds of compiling, and the rate after it."""
    start = time.perf_counter()
    for _ in range(N_WARM_UP):
        work()
    wait_for(setup.ctx.device)
    seconds = time.perf_counter() - start
    found = rate(work, n_images, setup, warm_up=0)
    return {"rate": found, "seconds": max(0.0, seconds - N_WARM_UP * n_images / found)}


def measure_decoding(setup: Setup, folder: str) -> Part:
    """Measure decoding of JPEG files in memory: with Pillow, and by torchvision on the device.

    Whole images are decoded, in the threads of the program with Pillow, and in batches on the
    device. Their pixels are compared.
    """
    files = _jpeg_files(setup)
    device = setup.ctx.device

    def on_device(part: Sequence[bytes]) -> list[Tensor]:
        given = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in part]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torchvision's, since 0.29
            decoded: list[Tensor] = decode_jpeg(given, mode="RGB", device=device)
        return decoded

    batches = [files[i : i + DECODED_TOGETHER] for i in range(0, len(files), DECODED_TOGETHER)]
    with ThreadPoolExecutor(setup.ctx.n_workers) as pool:
        pillow = rate(lambda: list(pool.map(_by_pillow, files)), len(files), setup, warm_up=1)
    there = rate(lambda: [on_device(part) for part in batches], len(files), setup, warm_up=1)
    errors = [
        np.abs(_by_pillow(data).astype(int) - image.permute(1, 2, 0).cpu().numpy())
        for data, image in zip(batches[0], on_device(batches[0]), strict=True)
    ]
    return {
        "n": len(files),
        "workers": setup.ctx.n_workers,
        "pillow": pillow,
        "on_device": there,
        "largest_difference": max(int(error.max()) for error in errors),
        "mean_difference": float(np.mean([error.mean() for error in errors])),
    }


def _by_pillow(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _jpeg_files(setup: Setup) -> list[bytes]:
    """Return JPEG files of the dataset; images of other formats are written as JPEG."""

    def jpeg(path: Path) -> bytes:
        with Image.open(path) as image:
            if image.format == "JPEG" and image.mode == "RGB":
                return path.read_bytes()
            written = io.BytesIO()
            image.convert("RGB").save(written, "JPEG", quality=90)
            return written.getvalue()

    return [jpeg(image.path) for image in setup.dataset.fit_split[:N_DECODED]]
