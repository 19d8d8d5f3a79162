"""Backbones: load timm networks and describe their weights, preprocessing, depths and stages.

The embedded backbones are built and read without timm (`architectures`), all others with it.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save as safetensors_bytes
from torch import nn

from strategies.core.errors import BackboneError, unknown_name
from strategies.models.architectures import packaged, timm_zoo
from strategies.models.architectures.efficientnet_lite import EfficientNetLite, FlopCounter
from strategies.models.body import Body, depth_modules
from strategies.models.catalogue import CATALOGUE, DEFAULT_BACKBONE

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
        # The weights of the catalogue are read and hashed once per process.
        is_read_again = self.weights == "pretrained" and self.name not in CATALOGUE
        if is_read_again and weights_digest(net) != self.digest:
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
    if backbone.name not in CATALOGUE and not timm_zoo.takes_any_size(backbone.name):
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
        interpolation=entry.interpolation
        if entry
        else str(config.get("interpolation", "bicubic")),
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
    if entry:
        return packaged.create(name, entry, pretrained=weights == "pretrained")
    try:
        with torch.random.fork_rng([]):
            return timm_zoo.create(name, pretrained=weights == "pretrained", input_px=input_px)
    except _CREATE_ERRORS as error:
        raise BackboneError(_load_error(name, input_px, error)) from error


def timm_network(backbone: Backbone) -> nn.Module:
    """Create timm's network of this architecture, with random weights."""
    with torch.random.fork_rng([]):
        return timm_zoo.create(backbone.name, pretrained=False, input_px=backbone.input_px)


def _load_error(name: str, input_px: int | None, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    embedded = ", ".join(CATALOGUE)
    if Path(name).is_dir():
        return f"{name} is a folder. Pass it as --backbone local-dir:{name}"
    if ":" not in name and not timm_zoo.is_listed(name):
        return unknown_name("backbone", name, timm_zoo.listed_names())
    at = f" at {input_px} px" if input_px else ""
    return (
        f"The backbone {name}{at} could not be loaded: {reason} "
        "If the model hub cannot be reached, use weights from an installed package "
        f"(--backbone {embedded}) or a local copy (--backbone local-dir:FOLDER)."
    )


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
    timm_zoo.save_folder(net, folder, classes, preprocessing)


def weights_digest(net: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers, with their names."""
    state = {k: v.contiguous() for k, v in net.state_dict().items()}
    return hashlib.sha256(safetensors_bytes(state)).hexdigest()


def source_classes(backbone: Backbone, count: int) -> tuple[str, ...]:
    """Return the names of the `count` pretraining classes of a timm network.

    They are called "class 0", "class 1", ... for a local network, or if timm knows no ImageNet
    subset with this number of classes.
    """
    if backbone.name.startswith("local-dir:"):
        known = None
    elif backbone.name in CATALOGUE and count == len(timm_zoo.imagenet_1k_names()):
        known = timm_zoo.imagenet_1k_names()
    else:
        known = timm_zoo.class_names(count)
    return known or tuple(f"class {i}" for i in range(count))


@torch.no_grad()
def _measure_depths(name: str, net: nn.Module, px: int) -> dict[str, Any]:
    """Measure the width and the cumulative FLOPs of every depth on one image of noise."""
    modules = depth_modules(net)
    noise = torch.randn(1, 3, px, px, generator=torch.Generator().manual_seed(0))
    flops: list[int] = []
    counter = FlopCounter(net) if isinstance(net, EfficientNetLite) else timm_zoo.flop_counter()

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
