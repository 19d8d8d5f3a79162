"""Registry of all strategies by name."""

from collections.abc import Mapping

from strategies.autoencoder_probe import AutoencoderProbe
from strategies.base import Strategy
from strategies.core.errors import NotApplicable, unknown_name
from strategies.first_stages import FirstStages
from strategies.from_scratch import FromScratch
from strategies.full_fine_tune import FullFineTune
from strategies.heads.batches import Loss
from strategies.layer_svm import LayerSVM
from strategies.linear_probe import LinearProbe
from strategies.lora import Lora
from strategies.norm_tune import NormTune
from strategies.partial_fine_tune import PartialFineTune

STRATEGIES: Mapping[str, type[Strategy]] = {
    "linear_probe": LinearProbe,
    "layer_svm": LayerSVM,
    "norm_tune": NormTune,
    "lora": Lora,
    "partial_fine_tune": PartialFineTune,
    "first_stages": FirstStages,
    "full_fine_tune": FullFineTune,
    "autoencoder_probe": AutoencoderProbe,
    "from_scratch": FromScratch,
}
"""Ordered from cheap to expensive."""


def get_strategy(name: str) -> type[Strategy]:
    """Return a strategy by name.

    Raises
    ------
    NotApplicable
        If the name is unknown. The message suggests the closest known names.
    """
    if name not in STRATEGIES:
        raise NotApplicable(unknown_name("strategy", name, STRATEGIES))
    return STRATEGIES[name]


def baseline() -> type[Strategy]:
    """Return the strategy that the gains of the others are measured against."""
    return next(s for s in STRATEGIES.values() if s.role == "baseline")


def fits_head(loss: Loss) -> type[Strategy]:
    """Return the strategy that fits a linear head with a loss to frozen features."""
    return next(s for s in STRATEGIES.values() if s.head_loss == loss)


def reference_control() -> type[Strategy]:
    """Return the control of training runs: the whole network without pretrained weights."""
    return next(s for s in STRATEGIES.values() if s.role == "control" and s.trains_network)
