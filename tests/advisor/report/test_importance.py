"""Hyperparameter importance on synthetic trials with a known influence."""

import numpy as np
import pytest

from advisor.report.importance import FEWEST_TRIALS, importance
from advisor.types.outcome import TrialRecord
from strategies.core.metrics import proportion


def trials(n: int, strategy: str = "full_fine_tune") -> list[TrialRecord]:
    """Return trials whose accuracy depends on the learning rate alone."""
    rng = np.random.default_rng(0)
    records = []
    for i in range(n):
        lr = float(10 ** rng.uniform(-5, -1))
        settings = {
            "lr": lr,
            "steps": int(rng.integers(50, 99)),
            "kind": str(rng.choice(["a", "b"])),
        }
        accuracy = proportion(0.9 - 0.1 * abs(np.log10(lr) + 3), 500)
        records.append(TrialRecord(i, strategy, settings | {"fixed": True}, accuracy, 1.0, None))
    return records


def test_the_influential_hyperparameter_is_found_and_shares_sum_to_one() -> None:
    shares = importance(trials(40), 0)["full_fine_tune"]
    assert set(shares) == {"lr", "steps", "kind"}
    assert shares["lr"] > 0.6
    assert sum(shares.values()) == pytest.approx(1)
    assert shares == importance(trials(40), 0)["full_fine_tune"]


def test_few_or_identical_trials_give_no_importance() -> None:
    assert importance(trials(FEWEST_TRIALS - 1), 0) == {}
    assert importance(trials(20)[:1] * 20, 0) == {}
    assert importance([], 0) == {}
