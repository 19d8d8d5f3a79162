"""Pretraining domain of a backbone, as far as the names of its weights state it."""

import re
from collections.abc import Mapping

from advisor.types.similarity import IMAGENET
from strategies.models.architectures.timm_zoo import weights_tag
from strategies.models.backbone import Backbone
from strategies.models.catalogue import CATALOGUE

_DATASETS = re.compile(
    r"inw?\d+k|ig\d*b?|laion\w+|datacomp\w*|dfn\w+|metaclip\d?|openai|webli|lvd\d+m|sat\d+m|jft|"
    r"yfcc\w+|cc\d+m|merged\w+|m\d+m|sa1b|inat\d*"
)
"""Datasets among the parts of timm's tags, such as "laion2b" in "laion2b_ft_in1k"."""
_SAME: Mapping[str, str] = dict.fromkeys(("imagenet", "imagenet1k", "imagenet-1k"), IMAGENET)


def pretraining_domain(backbone: Backbone, stated: str | None = None) -> str | None:
    """Return the datasets that a backbone was pretrained on, in timm's names, in their order.

    "in1k" is ImageNet-1k. None if neither the user nor timm's tag of the weights states them.

    Parameters
    ----------
    stated
        What the user states; it takes precedence.
    """
    if stated is not None:
        return _SAME.get(stated.strip().lower(), stated.strip())
    if backbone.name in CATALOGUE:
        return IMAGENET
    return datasets_of(weights_tag(backbone.name))


def datasets_of(tag: str) -> str | None:
    """Return the datasets that a tag of timm names: "laion2b, in1k"; None if it names none."""
    found = [part for part in re.split(r"[_-]", tag) if _DATASETS.fullmatch(part)]
    return ", ".join(dict.fromkeys(found)) or None
