"""Hyperparameter importance in a search (fANOVA)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from advisor.types.outcome import TrialRecord
from strategies.core.progress import unlogged

FEWEST_TRIALS = 8
"""Minimum number of scored trials of a strategy for an importance estimate."""
LOG_FROM = 30.0
"""A range whose bounds differ by more than this factor is put on a logarithmic scale."""


def importance(trials: Sequence[TrialRecord], seed: int) -> dict[str, dict[str, float]]:
    """Return the share of the variance of validation accuracy that each hyperparameter explains.

    The result is grouped by strategy; the shares of a strategy sum to 1. Strategies with too few
    scored trials, or without a varied hyperparameter, are left out.

    References
    ----------
    F. Hutter et al., An efficient approach for assessing hyperparameter importance, 2014 (fANOVA).
    """
    found = {}
    for strategy in dict.fromkeys(t.strategy for t in trials):
        scored = [t for t in trials if t.strategy == strategy and t.val_accuracy is not None]
        ranges = varied(scored)
        if len(scored) < FEWEST_TRIALS or not ranges:
            continue
        if len({t.val_accuracy.mid for t in scored if t.val_accuracy is not None}) < 2:
            continue
        shares = get_param_importances(
            _study(scored, ranges), evaluator=FanovaImportanceEvaluator(seed=seed)
        )
        found[strategy] = {name: float(share) for name, share in shares.items()}
    return found


def varied(trials: Sequence[TrialRecord]) -> dict[str, BaseDistribution]:
    """Return the hyperparameters that all trials have and that vary, with their ranges."""
    if not trials:
        return {}
    shared = [
        name
        for name in trials[0].hyperparameters
        if all(name in t.hyperparameters for t in trials)
    ]
    values = {name: [t.hyperparameters[name] for t in trials] for name in shared}
    return {name: _range(v) for name, v in values.items() if len(set(map(str, v))) > 1}


def _range(values: Sequence[Any]) -> BaseDistribution:
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        low, high = min(values), max(values)
        wide = low > 0 and high / low > LOG_FROM
        if all(isinstance(v, int) for v in values):
            return IntDistribution(low, high, log=wide)
        return FloatDistribution(float(low), math.nextafter(float(high), math.inf), log=wide)
    return CategoricalDistribution(sorted({_category(v) for v in values}, key=str))


def _category(value: Any) -> str | bool:
    return value if isinstance(value, bool) else str(value)


def _study(
    trials: Sequence[TrialRecord], ranges: Mapping[str, BaseDistribution]
) -> optuna.study.Study:
    """Build an in-memory Optuna study from trial records."""
    with unlogged("optuna.storages._in_memory"):
        study = optuna.create_study(direction="maximize")
    for trial in trials:
        assert trial.val_accuracy is not None
        params = {
            name: _category(trial.hyperparameters[name])
            if isinstance(kind, CategoricalDistribution)
            else trial.hyperparameters[name]
            for name, kind in ranges.items()
        }
        study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=dict(ranges), value=trial.val_accuracy.mid
            )
        )
    return study
