"""timm: its networks, their configurations, ImageNet's class names, and its model folders.

The only module of `models` and `training` that imports timm, and it does so at the first call.
Importing timm takes longer than importing torch (it imports torchvision, torch's compiler and all
its networks), and the embedded backbones need none of it.
"""

import contextlib
import importlib
import json
import socket
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from torch import nn

LOCAL = "local-dir:"


def timm_module(name: str = "timm") -> Any:
    """Import a module of timm, or one that is needed with it. Its calls are untyped."""
    return importlib.import_module(name)


def create(name: str, *, pretrained: bool, input_px: int | None) -> nn.Module:
    """Create a network of timm, a hub or a local folder.

    Weights are downloaded unless they are in the hub's cache. `input_px` is passed on only to
    networks that need it.
    """
    size: dict[str, Any] = {"img_size": input_px} if input_px and _is_listed_fixed(name) else {}
    with _offline_when_unreachable() if pretrained else contextlib.nullcontext():
        net: nn.Module = timm_module().create_model(name, pretrained=pretrained, **size)
    return net


def remove_head(net: nn.Module) -> None:
    """Remove the classifier of pretraining classes from a network of timm."""
    untyped: Any = net
    untyped.reset_classifier(0)


def _is_listed_fixed(name: str) -> bool:
    if name.startswith(("hf-hub:", LOCAL)):
        return False
    config = timm_module().get_pretrained_cfg(name)
    return config is not None and bool(config.fixed_input_size)


def takes_any_size(name: str) -> bool:
    """Whether timm lists the network as one that takes any input size."""
    config = None if ":" in name else timm_module().get_pretrained_cfg(name)
    return config is not None and not config.fixed_input_size


def weights_tag(name: str) -> str:
    """Return timm's tag of pretrained weights, e.g. "laion2b_ft_in1k"; empty if there is none.

    The tag of a hub's model is read from its name, that of a local folder from its configuration.
    """
    if name.startswith(LOCAL):
        file = Path(name.removeprefix(LOCAL)) / "config.json"
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


def flop_counter() -> Any:
    """Return a context that counts the FLOPs of any network.

    Its import takes a fifth of that of torch: it imports Triton, as timm does too.
    """
    return timm_module("torch.utils.flop_counter").FlopCounterMode(display=False)


def is_listed(name: str) -> bool:
    """Whether timm has a network of this name, given with or without a tag of weights."""
    return bool(timm_module().is_model(name.split(".")[0]))


def listed_names() -> list[str]:
    """Return the names of all networks of timm."""
    names: list[str] = timm_module().list_models()
    return names


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


def save_folder(
    net: nn.Module, folder: Path, classes: Sequence[str], preprocessing: dict[str, Any]
) -> None:
    """Write a network of timm so that ``create_model("local-dir:...")`` reads it."""
    timm_module("timm.models").save_for_hf(
        net,
        str(folder),
        model_config={"label_names": list(classes)},
        safe_serialization=True,
        data_config=preprocessing,
    )
