"""Shared fixtures: no network, private cache, small synthetic images, shared real datasets."""

import hashlib
import importlib
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from strategies.core.cache import ArrayCache
from strategies.core.context import RunContext
from strategies.data.dataset import Dataset, load_dataset
from strategies.models import backbone as backbones
from strategies.models import features
from strategies.models.architectures import pretrained, timm_zoo
from strategies.models.backbone import Backbone, load_backbone
from strategies.registry import STRATEGIES
from strategies.training.costs import memory, throughput

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _offline(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block DNS look-ups, so that tests cannot use the network."""
    if "network" in request.keywords:
        return

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("tests have no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session", autouse=True)
def measured_once() -> Iterator[tuple[tuple[ModuleType, str, Callable[..., object]], ...]]:
    """Measure what training a network costs once per session: it was half the time of an advice.

    A user's cache holds these costs after the first advice, but every test has a cache of its own.

    Returns
    -------
    The functions that are replaced: module, name, and function.
    """
    measure, cached = throughput._measure, memory._cached
    costs: dict[object, tuple[float, float]] = {}
    passes: dict[object, memory.PassMemory] = {}

    def measure_once(data: Dataset, backbone: Backbone, ctx: RunContext) -> tuple[float, float]:
        key = (backbone, ctx.precision, ctx.device)
        if key not in costs:
            costs[key] = measure(data, backbone, ctx)
        return costs[key]

    def try_once(
        key: tuple[object, ...],
        backbone: Backbone,
        ctx: RunContext,
        try_it: Callable[[], memory.PassMemory],
    ) -> memory.PassMemory:
        def known() -> memory.PassMemory:
            name = (key, backbone, ctx.precision, ctx.device)
            if name not in passes:
                passes[name] = try_it()
            return passes[name]

        return cached(key, backbone, ctx, known)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput, "_measure", measure_once)
        patch.setattr(memory, "_cached", try_once)
        yield (throughput, "_measure", measure), (memory, "_cached", cached)


@pytest.fixture(scope="session")
def exported_once() -> Iterator[None]:
    """Trace equal modules for ONNX once per session: it is nearly all of the time of an export.

    Classifiers of one network share its graph in all precisions, and most share the
    preprocessing. Modules are equal if their types, attributes and weights are.
    """
    try:
        formats = importlib.import_module("strategies.models.formats.onnx_format")
    except ModuleNotFoundError:  # without the extra onnx no test exports
        yield
        return
    trace, graphs = formats._exported, dict[object, bytes]()

    def trace_once(module: nn.Module, *given: object) -> object:
        key = (_content(module), repr(given))
        if key not in graphs:
            graphs[key] = trace(module, *given).SerializeToString()
        return formats.onnx.ModelProto.FromString(graphs[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "_exported", trace_once)
        yield


def _content(module: nn.Module) -> str:
    """Return a digest of all that the graph of a module depends on."""
    digest = hashlib.sha256(repr(module).encode())
    for name, part in module.named_modules():
        own = {k: v for k, v in vars(part).items() if not k.startswith("_")}
        digest.update(f"{name} {type(part)} {own}".encode())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape} {tensor.stride()}".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real datasets next to the checkout."""
    if not SHARED.is_dir():
        pytest.skip(
            "the real datasets are missing: there is no ../shared/data next to this checkout"
        )
    return SHARED


@pytest.fixture
def cuda() -> torch.device:
    """Return the CUDA device; a test that asks for it needs the marker `gpu`."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device on this machine")
    return torch.device("cuda")


@pytest.fixture
def n_read(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """Count how often each image file is read for its evaluation crop, from now on."""
    counts, read = Counter[Path](), features.read_image

    def count(path: Path) -> Image.Image:
        counts[path] += 1
        return read(path)

    monkeypatch.setattr(features, "read_image", count)
    return counts


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """Return the benchmark scripts that work on the suite's rows, by module name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = (
        "rows",
        "run_suite",
        "gain_regression",
        "fit_priors",
        "leave_one_dataset_out",
        "regret",
    )
    names += ("transfer_risk", "negative", "claim_results", "frozen_stages", "claims")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return {name: importlib.import_module(name) for name in names}


@pytest.fixture
def ctx(tmp_path: Path) -> RunContext:
    """Return a context on the CPU in full precision, with its own cache."""
    return RunContext(cache=ArrayCache(tmp_path / "cache"))


@pytest.fixture(scope="session")
def warm_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache folder that is shared by tests whose subject is not the measuring.

    Many write the same images: those of one size and number are measured once per session.
    """
    return tmp_path_factory.mktemp("warm-cache")


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    """Return the embedded backbone at a small input size."""
    return load_backbone(input_px=64)


def forget_backbones() -> None:
    """Forget all weights that were read, as a new process does."""
    backbones._inspect.cache_clear()
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


@pytest.fixture(scope="session")
def convnext(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """Return a small ConvNeXt with random weights, for strategies that are not for every CNN."""
    folder = tmp_path_factory.mktemp("convnext")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = timm.create_model("test_convnext", pretrained=False)
    timm.models.save_for_hf(net, str(folder), safe_serialization=True)
    return load_backbone(f"local-dir:{folder}", input_px=64)


def suitable(name: str, dataset: Dataset, *backbones: Backbone) -> Backbone:
    """Return the first backbone that a strategy is applicable to."""
    reasons = [STRATEGIES[name]().inapplicable(dataset, backbone) for backbone in backbones]
    if None not in reasons:
        pytest.skip(f"{name}: {reasons[-1]}")
    return backbones[reasons.index(None)]


def stripes(label: int, rng: np.random.Generator, px: int = 48) -> Image.Image:
    """Return an image whose class is the direction of its stripes; colours are random."""
    y, x = np.mgrid[0:px, 0:px] / px
    angle = np.pi * label / 3 + rng.normal(0, 0.05)
    wave = np.sin(2 * np.pi * (4 * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform()))
    colours = rng.uniform(60, 195, 3) + np.multiply.outer(wave, rng.uniform(-55, 55, 3))
    noisy = colours + rng.normal(0, 12, (px, px, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write_folder(root: Path, n_per_class: int, n_classes: int = 3, seed: int = 0) -> Path:
    """Write class folders of striped images."""
    rng = np.random.default_rng(seed)
    for label in range(n_classes):
        folder = root / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(n_per_class):
            stripes(label, rng).save(folder / f"{i:03d}.png")
    return root


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a writer of class folders: ``make_folder(name, n_per_class)``."""

    def make(name: str, n_per_class: int, n_classes: int = 3, seed: int = 0) -> Path:
        return write_folder(tmp_path / name, n_per_class, n_classes, seed)

    return make


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return a dataset of three classes with 16 striped images each."""
    return load_dataset(write_folder(tmp_path_factory.mktemp("striped"), 16))
