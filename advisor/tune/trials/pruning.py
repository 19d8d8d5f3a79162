"""Pruners: successive halving (ASHA) for training runs, Wilcoxon's test for folds."""

import math
import warnings
from collections.abc import Container
from dataclasses import dataclass

from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, SuccessiveHalvingPruner, WilcoxonPruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

WILCOXON_P = 0.05
"""A trial is pruned if the p-value of a Wilcoxon test against the best trial is below this. One
as good as the best would do this much worse, or more, with that probability at most."""
MIN_GAP_SE = 2.0
"""A training run is pruned only if it is worse than the best by more than this many standard
errors of the difference of two validation accuracies."""


class PatientHalving(BasePruner):
    """ASHA with factor 2, which spares a training run unless it is clearly worse than the best.

    Training runs of any length report at the same fractions of their steps (`ROUNDS` times), so
    the resource is the number of rounds. Rungs are rounds 1, 2 and 4; a training run that passes
    all of them runs to its end. Of those that reached a rung the worse half is stopped, unless
    its best accuracy so far is within `MIN_GAP_SE` standard errors of the best accuracy at this
    round.

    Plain ASHA saves two to three times as much, but in searches of four to twelve trials on 18 to
    50 validation images it stopped the best trial in a fifth to a third of them, and Hyperband in
    a tenth to a fifth. This rule did so in at most one of forty (docs/benchmarks/runs.md). Also,
    there are too few trials for Hyperband: TPE models every bracket separately and needs its
    start-up trials in each.

    Parameters
    ----------
    n_val
        Number of images that accuracies are measured on. They are the same for all trials, so
        the true standard error is smaller than the one assumed here.

    References
    ----------
    L. Li et al., A system for massively parallel hyperparameter tuning, MLSys 2020 (ASHA).
    """

    def __init__(self, n_val: int) -> None:
        self.n_val = n_val
        self._halving = SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether the trial should be stopped at its last step."""
        counted = _WithoutFailed(study)
        return self._halving.prune(counted, trial) and self._is_clearly_behind(counted, trial)

    def _is_clearly_behind(self, study: Study, trial: FrozenTrial) -> bool:
        step, own = trial.last_step, max(trial.intermediate_values.values())
        others = (t.intermediate_values for t in study.get_trials(deepcopy=False))
        best = max((values[step] for values in others if step in values), default=own)
        middle = (best + own) / 2
        return best - own > MIN_GAP_SE * math.sqrt(2 * middle * (1 - middle) / self.n_val)


class _WithoutFailed(Study):
    """A study without failed attempts, so that a trial that was retried counts once."""

    def __init__(self, study: Study) -> None:
        super().__init__(study.study_name, study._storage, study.sampler, study.pruner)

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        found = super().get_trials(deepcopy, states)
        return [trial for trial in found if trial.state != TrialState.FAIL]


@dataclass(frozen=True)
class Pruning:
    """When trials of a run are stopped early.

    Attributes
    ----------
    pruner
        Pruner of every study.
    reason
        The reason to record for pruned trials.
    """

    pruner: BasePruner
    reason: str


def make_pruning(n_val: int, *, by_folds: bool) -> Pruning:
    """Return the pruning of a run.

    Parameters
    ----------
    n_val
        Number of images that accuracies are reported on.
    by_folds
        Whether trials report for every image of a fold whether it was classified correctly,
        rather than an accuracy at every round.
    """
    if by_folds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            pruner = WilcoxonPruner(p_threshold=WILCOXON_P)
        reason = "worse than the best trial on the same images by more than chance"
        return Pruning(pruner, reason)
    return Pruning(
        PatientHalving(n_val),
        "in the worse half of the trials that reached this round, and behind the best of them by "
        "more than chance",
    )
