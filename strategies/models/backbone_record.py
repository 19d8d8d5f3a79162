"""The record of a backbone in a saved classifier: read without the backbone's weights."""

from collections.abc import Mapping
from typing import Any

from strategies.core.errors import BackboneError
from strategies.data.transforms import crop_mode_of
from strategies.models.architectures import timm_zoo
from strategies.models.architectures.capabilities import Capabilities, InputSizes, has_tokens
from strategies.models.architectures.timm_zoo import Architecture
from strategies.models.backbone import Backbone
from strategies.models.body import Depth
from strategies.models.catalogue import CATALOGUE


def read_backbone(record: Mapping[str, Any], depths: tuple[int, ...]) -> Backbone:
    """Return the backbone that a saved classifier's record describes.

    Records of format 1 lack the architecture. For names of the catalogue and of timm it follows
    from the name.

    Parameters
    ----------
    record
        The fields of a `Backbone`, as JSON.
    depths
        Depths that the classifier's head reads.

    Raises
    ------
    BackboneError
        If a record of format 1 does not tell the architecture, or means activations that this
        release pools otherwise.
    """
    given = dict(record)
    if "architecture" in given:
        sizes = given["capabilities"]["sizes"]
        given["architecture"] = Architecture(**given["architecture"])
        given["capabilities"] = Capabilities(
            **(given["capabilities"] | {"sizes": InputSizes(**_tuples(sizes, "only"))})
        )
    else:
        given |= _of_format_1(given)
    given["crop_mode"] = crop_mode_of(given["crop_mode"])
    given["depths"] = tuple(Depth(**depth) for depth in given["depths"])
    backbone = Backbone(**_tuples(given, "mean", "std"))
    if "architecture" not in record and _reads_levels_of_tokens(backbone, depths):
        raise BackboneError(
            "It reads earlier depths of a transformer, which an earlier release pooled in another "
            "way. Use the release that saved it, or fit it again."
        )
    return backbone


def _of_format_1(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that records of format 1 lack."""
    name, own = str(given["name"]), (int(given["input_px"]),)
    if ":" in name:
        raise BackboneError(
            f"It was saved by an earlier release, without its architecture: that is in {name}. "
            "Use the release that saved it, or fit it again."
        )
    at_creation = name not in CATALOGUE and timm_zoo.is_created_for_a_size(name)
    return {
        "crop_mode": "center",
        "architecture": Architecture(name.split(".")[0]),
        "capabilities": Capabilities(InputSizes(only=own, at_creation=at_creation)),
    }


def _reads_levels_of_tokens(backbone: Backbone, depths: tuple[int, ...]) -> bool:
    if depths == (backbone.n_depths,) or backbone.name in CATALOGUE:
        return False
    return has_tokens(backbone.with_random_weights().build())


def _tuples(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return dict(record) | {name: tuple(record[name]) for name in names}
