"""The record of a backbone in a saved classifier: read without the backbone's weights."""

from collections.abc import Mapping
from typing import Any

from cattrs import Converter

from strategies.core.errors import BackboneError
from strategies.models.architectures.capabilities import has_tokens
from strategies.models.architectures.timm_zoo import timm_module
from strategies.models.backbone import Backbone
from strategies.models.catalogue import CATALOGUE

_CONVERTER = Converter(detailed_validation=False)


def read_backbone(record: Mapping[str, Any], depths: tuple[int, ...]) -> Backbone:
    """Return the backbone that a saved classifier's record describes.

    Parameters
    ----------
    record
        The fields of a `Backbone`, as JSON. Those of format 1 lack the architecture: for names of
        the catalogue and of timm it follows from the name.
    depths
        Depths that the classifier's head reads.

    Raises
    ------
    BackboneError
        If a record of format 1 does not tell the architecture, or means activations that this
        release pools otherwise.
    """
    if "architecture" in record:
        return _CONVERTER.structure(record, Backbone)
    name = str(record["name"])
    if ":" in name:
        raise BackboneError(
            f"It was saved by an earlier release, without its architecture: that is in {name}. "
            "Use the release that saved it, or fit it again."
        )
    embedded = name in CATALOGUE
    config = None if embedded else timm_module().get_pretrained_cfg(name)
    sizes = {
        "only": [record["input_px"]],
        "at_creation": config is not None and bool(config.fixed_input_size),
    }
    backbone = _CONVERTER.structure(
        {
            **record,
            "crop_mode": "center",
            "architecture": {"name": name.split(".")[0]},
            "capabilities": {"sizes": sizes},
        },
        Backbone,
    )
    reads_levels = depths != (backbone.n_depths,) and not embedded
    if reads_levels and has_tokens(backbone.with_random_weights().build()):
        raise BackboneError(
            "It reads earlier depths of a transformer, which an earlier release pooled in another "
            "way. Use the release that saved it, or fit it again."
        )
    return backbone
