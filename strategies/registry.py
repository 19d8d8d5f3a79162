"""Registry of all strategies by name."""

from collections.abc import Mapping

from strategies.base import Strategy
from strategies.core.errors import NotApplicable, unknown_name
from strategies.from_scratch import FromScratch
from strategies.full_fine_tune import FullFineTune
from strategies.layer_svm import LayerSVM
from strategies.linear_probe import LinearProbe
from strategies.partial_fine_tune import PartialFineTune

STRATEGIES: Mapping[str, type[Strategy]] = {
    "linear_probe": LinearProbe,
    "layer_svm": LayerSVM,
    "partial_fine_tune": PartialFineTune,
    "full_fine_tune": FullFineTune,
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
