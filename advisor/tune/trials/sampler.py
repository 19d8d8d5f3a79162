"""Sampler of hyperparameters: TPE whose draws do not depend on the process that makes them."""

import zlib
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

STARTUP_TRIALS = 5
"""Trials of a strategy before TPE models them; until then it samples at random."""


class SeededTPE(TPESampler):
    """TPE sampler whose draws depend only on the seed, the trial's number and earlier trials.

    A killed process loses its random state. With this sampler a resumed search draws what the
    uninterrupted one would have drawn.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(multivariate=False)  # `sample_independent` draws all parameters
        self.seed = seed

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw one parameter with TPE."""
        number = trial.user_attrs.get("number", trial.number)
        seed = zlib.crc32(f"{self.seed}/{number}/{param_name}".encode())
        sampler = TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
        return sampler.sample_independent(study, trial, param_name, param_distribution)
