"""Backbones: load timm networks and describe their weights, preprocessing and depths.

The embedded backbones are built and read without timm (`architectures`), all others with it.
"""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal

from safetensors import SafetensorError
from torch import nn

from strategies.core.errors import BackboneError, unknown_name
from strategies.core.progress import OnProgress, ignore
from strategies.data.transforms import CropMode, EvaluationCrop, crop_mode_of
from strategies.models.architectures import packaged, pretrained, timm_zoo
from strategies.models.architectures.capabilities import (
    Capabilities,
    InputSizes,
    describe,
    n_known_classes,
)
from strategies.models.architectures.family import Family
from strategies.models.architectures.pretrained import Pretrained, weights_digest
from strategies.models.architectures.timm_zoo import Architecture, timm_module
from strategies.models.body import Depth, source_head
from strategies.models.catalogue import CATALOGUE, DEFAULT_BACKBONE, Embedded
from strategies.models.depths import measure_depths

Weights = Literal["pretrained", "random"]
SIZE_STEP, SMALLEST_PX = 32, 64
SMALLER_SHARES = 5 / 7, 3 / 7
"""Step between input sizes (the stride of most networks), and the smallest size of a search."""
NOT_STATED = "not stated"
"""Licence of weights whose configuration states none."""


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
    crop_mode
        How images are cropped for evaluation, see `transforms.EvaluationCrop`.
    architecture
        What is needed to create the network without its weights.
    capabilities
        What the network can do, whatever its weights.
    """

    name: str
    licence: str
    weights: Weights
    digest: str
    input_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: CropMode
    depths: tuple[Depth, ...]
    params_m: float
    gmacs: float
    architecture: Architecture
    capabilities: Capabilities

    @property
    def family(self) -> Family:
        """Family of the architecture, as far as fine-tuning recipes differ."""
        return self.capabilities.family

    @property
    def n_layers(self) -> int:
        """Number of layers below the head; 0 for a convolutional network."""
        return self.capabilities.n_layers

    @property
    def n_depths(self) -> int:
        """Number of depths, the penultimate one included."""
        return len(self.depths)

    def with_random_weights(self) -> "Backbone":
        """Return the same architecture with random instead of pretrained weights."""
        return replace(self, weights="random", digest="random")

    def build(self) -> nn.Module:
        """Create the network in eval mode, with the recorded weights and its original head.

        Random weights are drawn from torch's global generator.

        Raises
        ------
        BackboneError
            If the digest of the weights differs from the recorded one.
        """
        if self.name in CATALOGUE:
            is_pretrained = self.weights == "pretrained"
            return packaged.create(
                self.name, CATALOGUE[self.name], pretrained=is_pretrained
            ).eval()
        if self.weights == "random":
            return timm_network(self).eval()
        net = _create(self.name, self.input_px)
        if pretrained.digest(self.name) != self.digest:
            raise BackboneError(f"The weights of {self.name} have changed since they were loaded.")
        return net.eval()

    @property
    def evaluation_crop(self) -> EvaluationCrop:
        """Crop of an image for evaluation."""
        return EvaluationCrop(
            self.input_px, self.crop_pct, self.interpolation, self.crop_mode, self.mean
        )

    @property
    def preprocessing(self) -> tuple[object, ...]:
        """What decides how an image becomes an input and activations; part of cache keys."""
        given = (self.input_px, self.interpolation, self.crop_pct, self.mean, self.std)
        crop = () if self.crop_mode == "center" else (self.crop_mode,)
        return (*given, *crop, *(("normed tokens",) if self.capabilities.has_tokens else ()))


def load_backbone(
    name: str = DEFAULT_BACKBONE,
    *,
    input_px: int | None = None,
    on_progress: OnProgress = ignore,
) -> Backbone:
    """Load a pretrained network by its timm name and describe it.

    Parameters
    ----------
    name
        A name of the `CATALOGUE` (weights from an installed package), any timm name,
        ``hf-hub:owner/name`` or ``local-dir:folder``.
    input_px
        Side of the square input in pixels. Default: the size that it was pretrained with.
    on_progress
        Told when the weights have been read, and when they have been hashed. Both is done once
        per process.

    Raises
    ------
    BackboneError
        If the name is unknown, the weights cannot be loaded, or the network does not take this
        input size.
    """
    if input_px is not None and input_px < 1:
        raise BackboneError(f"The input size must be at least 1 px, got {input_px} px.")
    if name not in CATALOGUE:
        _read(name)
        on_progress("weights", 1, 1)
        pretrained.digest(name)
        on_progress("hashing", 1, 1)
    return _inspect(name, input_px)


def sizes_of(name: str) -> InputSizes:
    """Return the input sizes that a backbone takes.

    Raises
    ------
    BackboneError
        If the name is unknown or the weights cannot be loaded.
    """
    return InputSizes() if name in CATALOGUE else _read(name).sizes


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

    The smaller ones are about `SMALLER_SHARES` of it (160 and 96 of 224), in steps of `SIZE_STEP`
    or the nearest that the network takes. A network with a fixed input size has only its own.
    """
    sizes = backbone.capabilities.sizes
    smaller = [
        sizes.nearest(SIZE_STEP * round(share * backbone.input_px / SIZE_STEP))
        for share in SMALLER_SHARES
    ]
    fitting = [px for px in smaller if SMALLEST_PX <= px < backbone.input_px]
    return tuple(dict.fromkeys([backbone.input_px, *fitting]))


def half_size(backbone: Backbone, at_least_px: int = 32) -> Backbone:
    """Return the network at half the input size, rounded up to a multiple of 32 pixels.

    If the network does not take this size, it is the nearest one that it takes, and at most the
    current one.
    """
    half_px = backbone.capabilities.sizes.nearest(
        max(at_least_px, -(-backbone.input_px // 64) * 32)
    )
    return replace(backbone, input_px=min(half_px, backbone.input_px))


@cache
def _inspect(name: str, input_px: int | None) -> Backbone:
    if name in CATALOGUE:
        return _inspect_embedded(name, CATALOGUE[name], input_px)
    return _inspect_timm(name, input_px)


def _inspect_embedded(name: str, entry: Embedded, input_px: int | None) -> Backbone:
    net = packaged.create(name, entry, pretrained=True).eval().requires_grad_(False)
    px = input_px or entry.input_px
    depths, gmacs = _depths(name, net, px)
    n_source_classes = len(timm_zoo.imagenet_1k_names()) if entry.has_head else 0
    return Backbone(
        name=name,
        licence=entry.licence,
        weights="pretrained",
        digest=weights_digest(net.state_dict()),
        input_px=px,
        mean=entry.mean,
        std=entry.std,
        interpolation=entry.interpolation,
        crop_pct=entry.crop_pct,
        crop_mode="center",
        depths=depths,
        params_m=_params_m(net),
        gmacs=gmacs,
        architecture=Architecture(name),
        capabilities=describe(net, InputSizes(), n_source_classes),
    )


def _inspect_timm(name: str, input_px: int | None) -> Backbone:
    found = _read(name)
    px, sizes, config = input_px or found.px, found.sizes, found.config
    if not sizes.takes(px):
        raise BackboneError(
            f"{name} cannot be used at {px} px: it takes {sizes}. The nearest is --input-px "
            f"{sizes.nearest(px)}; its own size is {found.px} px."
        )
    net = _create(name, px).eval().requires_grad_(False)
    depths, gmacs = _depths(name, net, px)
    return Backbone(
        name=name,
        licence=str(config.get("license") or NOT_STATED),
        weights="pretrained",
        digest=pretrained.digest(name),
        input_px=px,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=str(config.get("interpolation", "bicubic")),
        crop_pct=float(config.get("crop_pct") or 0.875),
        crop_mode=crop_mode_of(str(config.get("crop_mode") or "center")),
        depths=depths,
        params_m=_params_m(net),
        gmacs=gmacs,
        architecture=found.architecture,
        capabilities=describe(net, sizes, _n_source_classes(name, net, depths[-1].channels)),
    )


def _n_source_classes(name: str, net: nn.Module, width: int) -> int:
    head = source_head(net, width)
    if head is None:
        return 0
    names = pretrained.read(name).config.get("label_names")
    has_imagenet_size = timm_zoo.class_names(head.out_features) is not None
    return n_known_classes(head.out_features, names, has_imagenet_size)


def _params_m(net: nn.Module) -> float:
    return sum(p.numel() for p in net.parameters()) / 1e6


def _depths(name: str, net: nn.Module, px: int) -> tuple[tuple[Depth, ...], float]:
    try:
        return measure_depths(net, px)
    except (RuntimeError, AssertionError) as error:
        raise BackboneError(_load_error(name, px, error)) from error


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


def _read(name: str) -> Pretrained:
    try:
        return pretrained.read(name)
    except _CREATE_ERRORS as error:
        raise BackboneError(_load_error(name, None, error)) from error


def _create(name: str, px: int) -> nn.Module:
    """Create a network of timm with its pretrained weights."""
    try:
        return _read(name).network(px)
    except _CREATE_ERRORS as error:
        raise BackboneError(_load_error(name, px, error)) from error


def timm_network(backbone: Backbone) -> nn.Module:
    """Create timm's network of this architecture, with random weights."""
    return pretrained.create(backbone.architecture, backbone.capabilities.sizes, backbone.input_px)


def _load_error(name: str, input_px: int | None, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    embedded = ", ".join(CATALOGUE)
    if Path(name).is_dir():
        return f"{name} is a folder. Pass it as --backbone local-dir:{name}"
    if ":" not in name and not timm_module().is_model(name.split(".")[0]):
        return unknown_name("backbone", name, timm_module().list_models())
    at = f" at {input_px} px" if input_px else ""
    return (
        f"The backbone {name}{at} could not be loaded: {reason} "
        "If the model hub cannot be reached, use weights from an installed package "
        f"(--backbone {embedded}) or a local copy (--backbone local-dir:FOLDER)."
    )


def source_classes(backbone: Backbone, count: int) -> tuple[str, ...]:
    """Return the names of the `count` pretraining classes of a network.

    They are called "class 0", "class 1", ... if they are not known.
    """
    if backbone.name in CATALOGUE:
        return timm_zoo.imagenet_1k_names()
    known = pretrained.class_names(backbone.name, count)
    return known or tuple(f"class {i}" for i in range(count))
