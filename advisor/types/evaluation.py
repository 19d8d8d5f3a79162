"""Dataclasses of the evaluation of a saved classifier on labelled images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from strategies.core.metrics import Evaluation, Interval
from strategies.data.image import Skipped


@dataclass(frozen=True)
class ClassScores:
    """Precision, recall and F1 score of one class, in [0, 1]; None where it is undefined.

    Attributes
    ----------
    n, n_predicted
        Number of images of the class, and of images predicted as it.
    """

    name: str
    n: int
    n_predicted: int
    precision: Interval | None
    recall: Interval | None
    f1: Interval | None


@dataclass(frozen=True)
class SeenImages:
    """Evaluated images that are byte-identical to images that the classifier was made from.

    Attributes
    ----------
    n_train, n_val
        How many are train, and how many validation images of the run.
    examples
        Paths of some of them.
    """

    n_train: int
    n_val: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class DatasetEvaluation:
    """Evaluation of a saved classifier on the images of a dataset.

    Attributes
    ----------
    split
        The split that was evaluated: train, val, test or all.
    split_source
        Why it was that one, as text.
    log_loss
        Mean cross-entropy in nats, at least 0; 0 is best.
    missing
        Classes of the classifier that the dataset has no image of.
    renamed
        Pairs of class names (dataset, classifier) that differ in case or Unicode form.
    ignored
        Number of images by class that the classifier does not know, left out on demand.
    seen
        None if the run does not say what it was made from.
    run_accuracy
        Accuracy on the test images of the run; None if it has none.
    quarantine
        Files that were left out, with reasons.
    """

    run: Path
    data: Path
    split: str
    split_source: str
    scores: Evaluation
    balanced_accuracy: Interval
    log_loss: Interval
    calibration_error: Interval
    per_class: tuple[ClassScores, ...]
    missing: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]
    ignored: Mapping[str, int]
    seen: SeenImages | None
    run_accuracy: Interval | None
    quarantine: tuple[Skipped, ...]
