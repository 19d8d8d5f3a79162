"""Hyperparameters that are fixed for a run: their check, and what they change in the search."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from advisor.tune.scheduler import Scheduler
from advisor.types.advice import Recommendation
from advisor.types.options import AUTO, Options, RunOptions
from strategies.base import check_names
from strategies.core.errors import TransferError
from strategies.core.metrics import Interval
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.registry import get_strategy

Fixed = Mapping[str, Mapping[str, Any]]
"""Fixed hyperparameters by strategy."""


def check_fixed_names(options: Options, run: RunOptions) -> None:
    """Check the names of fixed hyperparameters, before the images are read.

    Raises
    ------
    TransferError
        If no strategy is forced, or the strategy does not have them.
    """
    if not run.fixed_hyperparameters:
        return
    if options.strategy == AUTO:
        raise TransferError(
            "--set fixes hyperparameters of one strategy, and no strategy was given. Add "
            "--strategy NAME, for example --strategy full_fine_tune."
        )
    types = get_strategy(options.strategy).hyperparameter_types()
    check_names(options.strategy, run.fixed_hyperparameters, types)


def checked_fixed(
    options: Options, run: RunOptions, dataset: Dataset, backbone: Backbone
) -> Fixed:
    """Return the fixed hyperparameters by strategy, after a check of their values.

    Raises
    ------
    NotApplicable
        If the search of the strategy could not sample a value, or the strategy cannot take it.
    """
    if not run.fixed_hyperparameters:
        return {}
    strategy = get_strategy(options.strategy)
    return {strategy.name: strategy.checked(run.fixed_hyperparameters, dataset, backbone)}


def with_fixed(
    scheduler: Scheduler, fixed: Fixed, dataset: Dataset, backbone: Backbone
) -> Scheduler:
    """Return a scheduler whose trials start with the fixed hyperparameters.

    Expected times follow the cost with them. Interventions that would change one are left out, and
    so are other input sizes if the size is fixed.
    """

    def changed(r: Recommendation) -> Recommendation:
        own = fixed.get(r.strategy)
        if own is None:
            return r
        strategy = get_strategy(r.strategy)
        settings = {**r.hyperparameters, **own}
        before = strategy.from_hyperparameters(r.hyperparameters).image_passes(dataset, backbone)
        passes = strategy.from_hyperparameters(settings).image_passes(dataset, backbone)
        ratio, s = passes / before, r.seconds
        return replace(
            r,
            hyperparameters=settings,
            image_passes=ratio * r.image_passes,
            seconds=Interval(ratio * s.low, ratio * s.mid, ratio * s.high),
            input_px=own.get("input_px") or r.input_px,
        )

    def has_size(r: Recommendation) -> bool:
        px = fixed.get(r.strategy, {}).get("input_px")
        return px is None or px == r.input_px

    interventions = {
        name: [c for c in changes if not c.keys() & fixed.get(name, {}).keys()]
        for name, changes in scheduler.interventions.items()
    }
    return replace(
        scheduler,
        candidates=tuple(map(changed, scheduler.candidates)),
        options=tuple(changed(r) for r in scheduler.options if has_size(r)),
        interventions=interventions,
    )
