"""Evaluation of a saved classifier on the labelled images of a dataset."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from advisor.deploy.labelled import ALL, Files, LabelledFile, list_labelled
from advisor.deploy.predict import CHUNK, load_classifier
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.run_dir.images import IMAGES_FILE, image_rows
from advisor.types.evaluation import ClassScores, DatasetEvaluation, SeenImages
from strategies.core.context import RunContext
from strategies.core.devices import predict_precision
from strategies.core.errors import DataError, unknown_names
from strategies.core.metrics import (
    Evaluation,
    Interval,
    calibration_error_interval,
    f1_interval,
    log_loss_interval,
    mean_interval,
    proportion,
)
from strategies.core.prefetch import chunks
from strategies.data.image import Split, labels_of, shown
from strategies.data.inspection import read_images
from strategies.data.layouts import same_spelling
from strategies.models.classifier import ImageClassifier, evaluate_probabilities

AUTO_SPLIT = "auto"
MAX_SEEN_EXAMPLES = 5


def evaluate_dataset(
    run: Path,
    data: Path,
    ctx: RunContext,
    *,
    split: str = AUTO_SPLIT,
    root: Path | None = None,
    ignore_unknown: bool = False,
) -> DatasetEvaluation:
    """Evaluate the classifier of a run on a dataset: all its images, or those of a split.

    Parameters
    ----------
    run
        A run folder, or the classifier folder in it.
    split
        train, val, test, all, or auto: test if the dataset has such a split, else all.
    ignore_unknown
        Whether images of classes that the classifier does not know are left out.

    Raises
    ------
    TransferError
        If there is no readable classifier, the dataset cannot be used, or it has unknown classes.
    """
    classifier = load_classifier(run, ctx.device)
    listed = list_labelled(data, root)
    chosen, source = _chosen_split(split, listed)
    files = listed.of(chosen)
    classes, ignored = match_classes(files, classifier.classes, ignore_unknown=ignore_unknown)
    index = {name: i for i, name in enumerate(classifier.classes)}
    known = [(f.path, index[classes[f.label]]) for f in files if f.label in classes]
    images, bad = read_images(known, ctx.n_workers, ctx.cache, ctx.reporter.on_progress)
    if not images:
        raise DataError(f"{shown(data)} has no readable image to evaluate.")
    images = tuple(replace(image, stats=None) for image in images)
    probabilities = _predict_proba(classifier, images, ctx)
    scores = evaluate_probabilities(probabilities, images, classifier.classes)
    labels = labels_of(images)
    per_class = class_scores(scores)
    return DatasetEvaluation(
        run=run,
        data=data,
        split=chosen,
        split_source=source,
        scores=scores,
        balanced_accuracy=mean_interval([r for r in scores.per_class if r is not None]),
        log_loss=log_loss_interval(probabilities, labels),
        calibration_error=calibration_error_interval(probabilities, labels),
        per_class=per_class,
        missing=tuple(c.name for c in per_class if not c.n),
        renamed=tuple((given, name) for given, name in classes.items() if given != name),
        ignored=ignored,
        seen=_seen(RunDir(run), images),
        run_accuracy=_run_accuracy(RunDir(run)),
        quarantine=(*listed.skipped, *bad),
    )


def _chosen_split(split: str, listed: Files) -> tuple[str, str]:
    """Return the split to evaluate, and why it is that one."""
    if split != AUTO_SPLIT:
        return split, "chosen with --split"
    if "test" in listed.splits:
        return "test", "the default where there is a test split"
    return ALL, "the dataset has no test split"


def match_classes(
    files: Sequence[LabelledFile], known: Sequence[str], *, ignore_unknown: bool
) -> tuple[dict[str, str], dict[str, int]]:
    """Match the classes of a dataset to those of a classifier, by name.

    A name that differs from exactly one class only in case or Unicode form is that class, as
    between the splits of a dataset.

    Returns
    -------
    matched, ignored
        The classifier's class by the dataset's; and the number of images by unknown class.

    Raises
    ------
    DataError
        If there are unknown classes and they are not to be ignored, or no class is known.
    """
    counts = Counter(file.label for file in files)
    by_spelling: dict[str, list[str]] = {}
    for name in known:
        by_spelling.setdefault(same_spelling(name), []).append(name)
    matched: dict[str, str] = {}
    for name in counts:
        alike = by_spelling.get(same_spelling(name), [])
        if name in known or len(alike) == 1:
            matched[name] = name if name in known else alike[0]
    unknown = {name: n for name, n in counts.items() if name not in matched}
    if unknown and (not ignore_unknown or not matched):
        also = "" if not matched else " Or leave them out with --ignore-unknown-classes."
        message = unknown_names("classes of the dataset", unknown, known)
        raise DataError(f"{message} Rename the folders or labels of the dataset.{also}")
    return matched, unknown


def class_scores(scores: Evaluation) -> tuple[ClassScores, ...]:
    """Return precision, recall and F1 score of every class, from the confusion matrix."""
    table = np.array(scores.confusion)
    found = []
    for c, name in enumerate(scores.classes):
        correct, n, n_predicted = int(table[c, c]), int(table[c].sum()), int(table[:, c].sum())
        precision = proportion(correct / n_predicted, n_predicted) if n_predicted else None
        f1 = f1_interval(correct, n, n_predicted) if n else None
        found.append(ClassScores(name, n, n_predicted, precision, scores.per_class[c], f1))
    return tuple(found)


def evaluation_record(found: DatasetEvaluation) -> dict[str, Any]:
    """Return an evaluation as plain JSON values."""
    scores = asdict(found.scores)
    names = ("mean_per_class", "calibration_error", "per_class")  # with intervals below
    return {
        "run": shown(found.run),
        "data": shown(found.data),
        "split": found.split,
        **{name: value for name, value in scores.items() if name not in names},
        "balanced_accuracy": asdict(found.balanced_accuracy),
        "log_loss": asdict(found.log_loss),
        "calibration_error": asdict(found.calibration_error),
        "per_class": [asdict(c) for c in found.per_class],
        "missing_classes": found.missing,
        "renamed_classes": [{"given": a, "class": b} for a, b in found.renamed],
        "ignored_classes": dict(found.ignored),
        "seen_in_training": None if found.seen is None else asdict(found.seen),
        "run_test_accuracy": None if found.run_accuracy is None else asdict(found.run_accuracy),
        "quarantine": [{"path": shown(s.path), "reason": s.reason} for s in found.quarantine],
    }


def _predict_proba(
    classifier: ImageClassifier, images: Split, ctx: RunContext
) -> NDArray[np.float32]:
    found: list[NDArray[np.float32]] = []
    precision = predict_precision(classifier.device)
    for chunk in chunks(images, CHUNK):
        paths = [image.path for image in chunk]
        found.append(classifier.predict_proba(paths, n_workers=ctx.n_workers, precision=precision))
        ctx.reporter.on_progress("predictions", sum(map(len, found)), len(images))
    return np.concatenate(found)


def _seen(run: RunDir, images: Split) -> SeenImages | None:
    """Return which images are byte-identical to images of the run; None if it lists none."""
    if not (run.path / IMAGES_FILE).is_file():
        return None
    digests = {image.digest for image in images}
    made_from: Mapping[str, set[str]] = {"train": set(), "val": set()}
    for row in image_rows(run):
        if row.split in made_from and row.digest in digests:
            made_from[row.split].add(row.digest)
    train, val = made_from["train"], made_from["val"] - made_from["train"]
    same = [image for image in images if image.digest in train | val]
    n_train = sum(image.digest in train for image in same)
    examples = tuple(shown(image.path) for image in same[:MAX_SEEN_EXAMPLES])
    return SeenImages(n_train, len(same) - n_train, examples)


def _run_accuracy(run: RunDir) -> Interval | None:
    if not (run.path / "outcome.json").is_file():
        return None
    found = run.read("outcome.json").get("test_accuracy")
    return None if found is None else Interval(**found)
