"""What stops a trial: asynchronous successive halving for training runs, Wilcoxon's test for folds."""

import math
from collections.abc import Container

from optuna.pruners import BasePruner, SuccessiveHalvingPruner, WilcoxonPruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from advisor.tune.distributed.database import experimental

SURELY_WORSE = 0.05
"""A trial is pruned if it would do so much worse than the best on the same images, or more, with
this probability if it were as good."""
BEHIND = 2.0
"""Standard errors of a difference of two accuracies on validation that a training must lie behind."""


class PatientHalving(BasePruner):
    """ASHA with halves, which spares a training that few validation images cannot tell from the best.

    Training runs of any length report at the same shares of theirs (`ROUNDS`), so rounds are the
    resource; rungs are rounds 1, 2 and 4, and a training that got through runs to its end. Of
    those that reached a rung the worse half is stopped, unless its best accuracy so far is within
    `BEHIND` standard errors of the best one at this round.

    Plain ASHA saves two to three times as much, but in searches of four to twelve trials on 18 to
    50 validation images it stopped the best one in a fifth to a third of them, Hyperband in a tenth to
    a fifth; this rule in at most one of forty (benchmarks/README.md). Nor are there trials enough
    for Hyperband: TPE, which models every bracket by itself, needs its start-up trials in each.

    Parameters
    ----------
    n_val
        Images that accuracies are measured on. That they are the same for all trials makes the
        true error smaller than the one assumed here.

    References
    ----------
    L. Li et al., A system for massively parallel hyperparameter tuning, MLSys 2020 (ASHA).
    """

    def __init__(self, n_val: int) -> None:
        self.n_val = n_val
        self._halving = SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial should be stopped at its last step."""
        counted = _Counted(study)
        return self._halving.prune(counted, trial) and self._is_behind(counted, trial)

    def _is_behind(self, study: Study, trial: FrozenTrial) -> bool:
        step, own = trial.last_step, max(trial.intermediate_values.values())
        others = (t.intermediate_values for t in study.get_trials(deepcopy=False))
        best = max((values[step] for values in others if step in values), default=own)
        middle = (best + own) / 2
        return best - own > BEHIND * math.sqrt(2 * middle * (1 - middle) / self.n_val)


class _Counted(Study):
    """A study without the attempts that died: what goes on under the same number counts once."""

    def __init__(self, study: Study) -> None:
        super().__init__(study.study_name, study._storage, study.sampler, study.pruner)

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        found = super().get_trials(deepcopy, states)
        return [trial for trial in found if trial.state != TrialState.FAIL]


def make_pruner(n_val: int, *, by_folds: bool) -> tuple[BasePruner, str]:
    """Return what stops a trial, and the reason that it gives.

    Parameters
    ----------
    by_folds
        Whether trials report which images they name rightly, fold by fold.
    """
    if by_folds:
        with experimental():
            pruner = WilcoxonPruner(p_threshold=SURELY_WORSE)
        return pruner, "worse than the best trial on the same images by more than chance"
    return (
        PatientHalving(n_val),
        "in the worse half of the trials that came to this point, and behind the best of them by "
        "more than chance",
    )
