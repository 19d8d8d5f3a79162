"""What mattered: found where it is known, silent where nothing can be said."""

import numpy as np
import pytest

from advisor.report.importance import FEWEST_TRIALS, importance
from advisor.types.outcome import TrialRecord
from strategies.core.metrics import proportion


def trials(n: int, strategy: str = "full_fine_tune") -> list[TrialRecord]:
    """Only the learning rate matters; steps and a name do not."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(n):
        lr = float(10 ** rng.uniform(-5, -1))
        settings = {
            "lr": lr,
            "steps": int(rng.integers(50, 99)),
            "kind": str(rng.choice(["a", "b"])),
        }
        reached = proportion(0.9 - 0.1 * abs(np.log10(lr) + 3), 500)
        made.append(TrialRecord(i, strategy, settings | {"fixed": True}, reached, 1.0, None))
    return made


def test_what_matters_is_found_and_shares_sum_to_one() -> None:
    shares = importance(trials(40), 0)["full_fine_tune"]
    assert set(shares) == {"lr", "steps", "kind"}
    assert shares["lr"] > 0.6
    assert sum(shares.values()) == pytest.approx(1)
    assert shares == importance(trials(40), 0)["full_fine_tune"]


def test_nothing_is_said_of_few_trials_or_of_trials_that_are_all_alike() -> None:
    assert importance(trials(FEWEST_TRIALS - 1), 0) == {}
    assert importance(trials(20)[:1] * 20, 0) == {}
    assert importance([], 0) == {}
