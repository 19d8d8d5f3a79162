"""How a trial is scored: the one place that decides it.

On val; where that is too small to choose by, and there is time, also on other parts of train by
classifiers that learnt from val in their place. All trials of a run are scored on the same
pictures.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from advisor.types.advice import Recommendation
from strategies.core.folds import fold_numbers
from strategies.core.metrics import Interval, proportion
from strategies.data.dataset import ImageTask, Split, groups_of, labels_of
from strategies.models.classifier import ImageClassifier
from strategies.registry import get_strategy

SMALL_VAL = 100
"""Val pictures below which chance chooses: at 90% their accuracy has a standard error of 3 points.
"""
MAX_FOLDS = 5
"""Val, which is a fifth where it was cut here, and four such parts of train."""
TRIALS_WORTH = 3
"""So many trainings must fit into the time, or the choice would be exact but of nothing."""

Fit = Callable[[ImageTask, int, int], ImageClassifier]
"""Fits to ``train`` of a fold, given its number and how many folds are left, itself included."""
Judge = Callable[[ImageClassifier, Split], list[float]]
"""Says which pictures a classifier names rightly (1) or not (0)."""
Hear = Callable[[Mapping[int, float]], None]
"""Hears of a fold's pictures, numbered over all folds, what `Judge` said of them."""


@dataclass(frozen=True)
class Scoring:
    """Who is judged by whom.

    Attributes
    ----------
    folds
        The task itself, and the same pictures otherwise divided into train and val.
    """

    folds: tuple[ImageTask, ...]

    @property
    def n(self) -> int:
        """Number of pictures that every trial is judged on."""
        return sum(len(fold.val) for fold in self.folds)

    def score(
        self, fit: Fit, judge: Judge, hear: Hear, known: Mapping[int, float]
    ) -> tuple[ImageClassifier, Interval]:
        """Fit and judge; the classifier is the one of the task itself, whose turn comes last.

        Parameters
        ----------
        known
            What was heard before a trial was cut short: its folds are not fitted again.

        Raises
        ------
        Exception
            What its arguments raise, which may end a trial early.
        """
        starts = np.cumsum([0, *(len(fold.val) for fold in self.folds)]).tolist()
        hits: list[float] = []
        for number in reversed(range(len(self.folds))):
            steps = range(starts[number], starts[number + 1])
            if number and all(step in known for step in steps):
                hits += [known[step] for step in steps]
                continue
            fold = self.folds[number]
            classifier = fit(fold, number, number + 1)
            found = judge(classifier, fold.val)
            hits += found
            hear(dict(zip(steps, found, strict=True)))
        return classifier, proportion(float(np.mean(hits)), len(hits))


def n_folds(task: ImageTask, contenders: tuple[Recommendation, ...], seconds: float) -> int:
    """Decide how many folds a run can afford: 1, val alone, unless it is small.

    A val split that the data brought is what its owner wants to select on, and stays alone.
    """
    if len(task.val) >= SMALL_VAL or not task.val or "val" in task.listed:
        return 1
    trained = [c.seconds.mid for c in contenders if get_strategy(c.strategy).selects_on_val]
    needed_s = TRIALS_WORTH * max(trained, default=0.0)
    if needed_s == 0 or math.isinf(seconds):
        return MAX_FOLDS if seconds > 0 else 1
    return int(np.clip(seconds / needed_s, 1, MAX_FOLDS))


def make_scoring(task: ImageTask, n: int, seed: int) -> Scoring:
    """Deal train to folds as large as val, and take the first `n` of all."""
    if n == 1:
        return Scoring((task,))
    dealt = fold_numbers(labels_of(task.train), seed, MAX_FOLDS - 1, groups_of(task.train))
    folds = [task]
    for number in range(n - 1):
        kept = [p for p, fold in zip(task.train, dealt, strict=True) if fold != number]
        judged = [p for p, fold in zip(task.train, dealt, strict=True) if fold == number]
        folds.append(replace(task, train=(*kept, *task.val), val=tuple(judged)))
    return Scoring(tuple(f for f in folds if f.val))
