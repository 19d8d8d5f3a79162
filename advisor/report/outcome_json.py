"""Conversion of the outcome of a run to JSON."""

from dataclasses import asdict
from typing import Any

from advisor.report.importance import importance
from advisor.types.advice import SCHEMA_VERSION
from advisor.types.outcome import Outcome
from strategies.core.metrics import Interval


def outcome_record(outcome: Outcome) -> dict[str, Any]:
    """Return the outcome of a run as plain JSON values; the advice has its own file."""
    best, test = outcome.best, outcome.test
    return {
        "schema_version": SCHEMA_VERSION,
        "dataset": outcome.advice.dataset,
        "best": {
            "trial": best.number,
            "strategy": best.strategy,
            "hyperparameters": dict(best.hyperparameters),
            "val_accuracy": _interval(best.val_accuracy),
        },
        "n_train": outcome.n_train,
        "refitted_on_train_and_val": outcome.refitted,
        "test_accuracy": None if test is None else _interval(test.accuracy),
        "test": None if test is None else asdict(test),
        "transfer_gain": None if outcome.transfer_gain is None else asdict(outcome.transfer_gain),
        "n_folds": outcome.n_folds,
        "soup": None if outcome.soup is None else asdict(outcome.soup),
        "ended": outcome.ended,
        "n_trials": len(outcome.trials),
        "trials": [asdict(t) for t in outcome.trials],
        "importance": importance_record(outcome),
        "seconds": outcome.seconds,
    }


def importance_record(outcome: Outcome) -> dict[str, dict[str, float]]:
    """Return the hyperparameter importance in a run, by strategy."""
    return importance(outcome.trials, outcome.advice.seed)


def _interval(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else asdict(interval)
