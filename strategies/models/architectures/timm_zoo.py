"""timm: its networks, their configurations, ImageNet's class names, and its model folders.

The only module of `models` and `training` that imports timm, and it does so at the first call.
Importing timm takes longer than importing torch (it imports torchvision, torch's compiler and all
its networks), and the embedded backbones need none of it.
"""

import contextlib
import importlib
import json
import socket
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from torch import Tensor, nn


def timm_module(name: str = "timm") -> Any:
    """Import a module of timm, or one that is needed with it. Its calls are untyped."""
    return importlib.import_module(name)


@dataclass(frozen=True)
class Architecture:
    """A network of timm without its weights: what is needed to create it again, and no code.

    Attributes
    ----------
    name
        Name of the architecture in timm, without a tag of weights.
    arguments
        Arguments of timm's ``create_model`` as JSON (as in timm's ``config.json``), without the
        size of the input.
    """

    name: str
    arguments: str = "{}"


def load(name: str) -> nn.Module:
    """Create a network of timm, a hub or a local folder with its weights, at its own input size.

    Weights are downloaded unless they are in the hub's cache.
    """
    with _offline_when_unreachable():
        net: nn.Module = timm_module().create_model(name, pretrained=True)
    return net


def create(architecture: Architecture, img_size: int | None = None) -> nn.Module:
    """Create a network with random weights, without network access.

    Parameters
    ----------
    img_size
        Side of the input in pixels, for networks whose weights depend on it. None: timm's own.

    Raises
    ------
    ValueError
        If the arguments are not those of an architecture.
    """
    net: nn.Module = timm_module().create_model(
        architecture.name, pretrained=False, **_arguments(architecture, img_size)
    )
    return net


def create_with_weights(
    architecture: Architecture,
    img_size: int,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
) -> nn.Module:
    """Create a network for another input size; timm resamples what depends on it.

    Parameters
    ----------
    config
        timm's configuration of the pretrained weights (``pretrained_cfg``).
    state
        The weights at the size of the configuration.
    """
    given = {k: v for k, v in config.items() if k not in _WEIGHT_SOURCES}
    given |= {"state_dict": dict(state), "custom_load": False, "label_offset": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about deprecated or slow calls inside timm
        net: Any = timm_module().create_model(
            architecture.name,
            pretrained=True,
            pretrained_cfg=given,
            **_arguments(architecture, img_size),
        )
    net.pretrained_cfg.pop("state_dict")  # timm copied it
    created: nn.Module = net
    return created


_WEIGHT_SOURCES = ("url", "file", "hf_hub_id", "hf_hub_filename", "source")
# Options of timm's create_model that are not arguments of an architecture: they read files.
_NOT_OF_AN_ARCHITECTURE = {
    "model_name",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_model_args",
    "checkpoint_path",
    "cache_dir",
    "features_only",
    "pruned",
}


def _arguments(architecture: Architecture, img_size: int | None) -> dict[str, Any]:
    arguments: dict[str, Any] = json.loads(architecture.arguments)
    foreign = sorted(arguments.keys() & _NOT_OF_AN_ARCHITECTURE)
    if foreign:
        raise ValueError(f"{', '.join(foreign)} cannot be an argument of {architecture.name}")
    return arguments if img_size is None else arguments | {"img_size": img_size}


def architecture_of(net: nn.Module) -> Architecture:
    """Return the architecture of a network that timm created."""
    untyped: Any = net
    arguments = timm_module("timm.models").get_model_args(net)
    arguments.pop("img_size", None)
    return Architecture(untyped.pretrained_cfg["architecture"], json.dumps(arguments))


def image_size_at_creation(net: nn.Module) -> int | None:
    """Return the input size that a network was created for; None if it was told none."""
    size = timm_module("timm.models").get_model_traits(net).get("img_size")
    return None if size is None else int(size[0])


def weights_tag(name: str) -> str:
    """Return timm's tag of pretrained weights, e.g. "laion2b_ft_in1k"; empty if there is none.

    The tag of a hub's model is read from its name, that of a local folder from its configuration.
    """
    if name.startswith("local-dir:"):
        file = Path(name.removeprefix("local-dir:")) / "config.json"
        config = json.loads(file.read_text(encoding="utf-8")).get("pretrained_cfg") or {}
        return str(config.get("tag") or "")
    tag = name.rpartition("/")[2].partition(".")[2]
    if tag or ":" in name:
        return tag
    listed = timm_module().get_pretrained_cfg(name)
    return "" if listed is None else str(listed.tag or "")


@contextlib.contextmanager
def _offline_when_unreachable() -> Iterator[None]:
    """Work offline if the hub's host name does not resolve, to fail without a minute of retries.

    Weights in the hub's local cache still load.
    """
    hub: Any = importlib.import_module("huggingface_hub.constants")
    before = hub.HF_HUB_OFFLINE
    try:
        socket.getaddrinfo(urlparse(hub.ENDPOINT).hostname, 443)
    except OSError:
        hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before


def class_names(count: int) -> tuple[str, ...] | None:
    """Return the names of the classes of timm's ImageNet subset of this size, or None."""
    info = timm_module("timm.data.imagenet_info")
    subset = info.infer_imagenet_subset({"num_classes": count})
    if subset is None:
        return None
    names = info.ImageNetInfo(subset)
    return tuple(names.index_to_description(i).split(",")[0] for i in range(count))


@cache
def imagenet_1k_names() -> tuple[str, ...]:
    """Return what `class_names` returns for ImageNet's 1,000 classes, without timm."""
    file = Path(__file__).with_name("imagenet_1k.json")
    return tuple(json.loads(file.read_text(encoding="utf-8")))
