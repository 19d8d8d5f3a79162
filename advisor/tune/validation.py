"""How a trial is scored: the one place that decides it.

On validation; where that is too small to choose by, and there is time, also on other parts of train by
classifiers that learnt from validation in their place. All trials of a run are scored on the same
images.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from advisor.types.advice import Recommendation
from strategies.core.folds import fold_numbers
from strategies.core.metrics import Interval, proportion
from strategies.data.dataset import Dataset, Split, groups_of, labels_of
from strategies.models.classifier import ImageClassifier
from strategies.registry import get_strategy

SMALL_VAL = 100
"""Validation images below which chance chooses: at 90% their accuracy has a standard error of 3 points.
"""
MAX_FOLDS = 5
"""Validation, which is a fifth where it was cut here, and four such parts of train."""
TRIALS_WORTH = 3
"""So many training runs must fit into the time, or the choice would be exact but of nothing."""

Fit = Callable[[Dataset, int, int], ImageClassifier]
"""Fits to ``train`` of a fold, given its number and how many folds are left, itself included."""
Judge = Callable[[ImageClassifier, Split], list[float]]
"""Says which images a classifier names rightly (1) or not (0)."""
Hear = Callable[[Mapping[int, float]], None]
"""Hears of a fold's images, numbered over all folds, what `Judge` said of them."""


@dataclass(frozen=True)
class Validation:
    """Who is judged by whom.

    Attributes
    ----------
    folds
        The dataset itself, and the same images otherwise divided into train and val.
    """

    folds: tuple[Dataset, ...]

    @property
    def n(self) -> int:
        """Number of images that every trial is judged on."""
        return sum(len(fold.val) for fold in self.folds)

    def score(
        self, fit: Fit, judge: Judge, hear: Hear, known: Mapping[int, float]
    ) -> tuple[ImageClassifier, Interval]:
        """Fit and judge; the classifier is the one of the dataset itself, whose turn comes last.

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


def n_folds(dataset: Dataset, candidates: tuple[Recommendation, ...], seconds: float) -> int:
    """Decide how many folds a run can afford: 1, validation alone, unless it is small.

    A validation split that the data brought is what its owner wants to select on, and stays alone.
    """
    if len(dataset.val) >= SMALL_VAL or not dataset.val or "val" in dataset.listed:
        return 1
    trained = [c.seconds.mid for c in candidates if get_strategy(c.strategy).selects_on_val]
    needed_s = TRIALS_WORTH * max(trained, default=0.0)
    if needed_s == 0 or math.isinf(seconds):
        return MAX_FOLDS if seconds > 0 else 1
    return int(np.clip(seconds / needed_s, 1, MAX_FOLDS))


def make_validation(dataset: Dataset, n: int, seed: int) -> Validation:
    """Deal train to folds as large as validation, and take the first `n` of all."""
    if n == 1:
        return Validation((dataset,))
    dealt = fold_numbers(labels_of(dataset.train), seed, MAX_FOLDS - 1, groups_of(dataset.train))
    folds = [dataset]
    for number in range(n - 1):
        kept = [p for p, fold in zip(dataset.train, dealt, strict=True) if fold != number]
        judged = [p for p, fold in zip(dataset.train, dealt, strict=True) if fold == number]
        folds.append(replace(dataset, train=(*kept, *dataset.val), val=tuple(judged)))
    return Validation(tuple(f for f in folds if f.val))
