"""Validation score of a trial: on the validation split, or cross-validated if that is small.

If the validation split is too small to select on and there is time, parts of train are held out
in turn as well, and the validation split is then trained on. All trials of a run are scored on the
same images.
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
"""With fewer validation images selection is too noisy: at 90% accuracy, 100 images give a standard
error of 3 points."""
MAX_FOLDS = 5
"""The validation split (a fifth of the images, if split off here) and four parts of train."""
MIN_TRIALS = 3
"""The time must suffice for this many cross-validated training runs: there must be a choice."""

Fit = Callable[[Dataset, int, int], ImageClassifier]
"""Fits to ``train`` of a fold, given its number and how many folds are left, this one included."""
ScoreImages = Callable[[ImageClassifier, Split], list[float]]
"""Returns for every image whether a classifier is correct (1.0) or not (0.0)."""
OnFold = Callable[[Mapping[int, float]], None]
"""Called after a fold with the results of `ScoreImages`, by image number over all folds."""


@dataclass(frozen=True)
class Validation:
    """The folds on which every trial of a run is scored.

    Attributes
    ----------
    folds
        The dataset itself first, then the same images split otherwise into train and validation.
    """

    folds: tuple[Dataset, ...]

    @property
    def n(self) -> int:
        """Number of images that every trial is scored on."""
        return sum(len(fold.val) for fold in self.folds)

    def score(
        self, fit: Fit, score_images: ScoreImages, on_fold: OnFold, known: Mapping[int, float]
    ) -> tuple[ImageClassifier, Interval]:
        """Fit and score all folds; return the classifier of the dataset itself, and the accuracy.

        The dataset itself is the last fold to be fitted.

        Parameters
        ----------
        known
            Results that an earlier attempt at the trial passed to `on_fold`. Complete folds are
            not fitted again, except the dataset itself, whose classifier is needed.

        Raises
        ------
        Exception
            What the callbacks raise; this may end a trial early.
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
            found = score_images(classifier, fold.val)
            hits += found
            on_fold(dict(zip(steps, found, strict=True)))
        return classifier, proportion(float(np.mean(hits)), len(hits))


def n_folds(dataset: Dataset, candidates: tuple[Recommendation, ...], seconds: float) -> int:
    """Return how many folds a run can afford: 1 (the validation split alone) unless it is small.

    A validation split that the user provided is always used alone.
    """
    if len(dataset.val) >= SMALL_VAL or not dataset.val or "val" in dataset.listed:
        return 1
    trained = [c.seconds.mid for c in candidates if get_strategy(c.strategy).trains_network]
    needed_s = MIN_TRIALS * max(trained, default=0.0)
    if needed_s == 0 or math.isinf(seconds):
        return MAX_FOLDS if seconds > 0 else 1
    return int(np.clip(seconds / needed_s, 1, MAX_FOLDS))


def make_validation(dataset: Dataset, n: int, seed: int) -> Validation:
    """Return the first `n` of `MAX_FOLDS` folds: the dataset itself, then parts of train."""
    if n == 1:
        return Validation((dataset,))
    labels, groups = labels_of(dataset.train), groups_of(dataset.train)
    numbers = fold_numbers(labels, seed, MAX_FOLDS - 1, groups)
    folds = [dataset]
    for number in range(n - 1):
        train = [p for p, fold in zip(dataset.train, numbers, strict=True) if fold != number]
        held_out = [p for p, fold in zip(dataset.train, numbers, strict=True) if fold == number]
        folds.append(replace(dataset, train=(*train, *dataset.val), val=tuple(held_out)))
    return Validation(tuple(f for f in folds if f.val))
