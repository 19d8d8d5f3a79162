"""Calibrate the run's classifier: unknown images and prediction sets, on images it did not learn.

A head on frozen features is cross-validated on the images that it was fitted to: every image is
scored by a head, and by class means and a covariance, that were fitted without its fold. Strength
and temperature, two numbers, were chosen on the same images. The classifier itself learned from
all folds, so its sets rather cover more than stated (cross-conformal prediction; V. Vovk, 2015).

A trained network has learned from the train images alone, and predicts the validation images
itself. These have chosen its hyperparameters, its best round, the soup that it may be, and its
temperature; no weight was fitted to them. Its thresholds may be slightly optimistic.
"""

import time
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from advisor.tune.incumbent import Incumbent
from advisor.tune.trials.executor import LocalExecutor, out_of_memory_reason
from advisor.types.outcome import TrialRecord
from strategies.core.activation_store import EvalCrops
from strategies.core.cache import Rows
from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime, StorageError, TransferError
from strategies.core.metrics import Labels, Scores
from strategies.data.dataset import Dataset, Split, labels_of
from strategies.data.sampling import stratified_rows
from strategies.heads.linear_head import out_of_fold_scores
from strategies.models.body import Body
from strategies.models.classifier import ImageClassifier
from strategies.models.features import pooled_features
from strategies.models.network import outputs_of
from strategies.models.reliability.calibration import (
    FEWEST_HELD_OUT,
    MAX_HELD_OUT,
    Fold,
    calibrate_reliability,
    score_depths,
)
from strategies.models.reliability.reliability import Depths, Reliability
from strategies.registry import get_strategy

MAX_IMAGES = 1_000
"""Train images whose features give class means and covariance; of more, a stratified sample."""
MIN_PER_CLASS = 2
"""Train images of every class in that sample, at least; without time for them, there is none."""
TIME_SHARE = 0.8
"""Share of the time left that the forward passes may be expected to take."""


def add_reliability(executor: LocalExecutor, incumbent: Incumbent, deadline_s: float) -> None:
    """Calibrate the incumbent, and save it again with its reliability.

    Nothing that goes wrong here ends the run: without time, memory or enough images there is a
    note, and the classifier records the reason, which ``tl-auto predict`` prints.

    Parameters
    ----------
    deadline_s
        ``time.monotonic()`` by which it must be over.

    Raises
    ------
    StorageError
        If the run directory cannot be written.
    """
    best = incumbent.trial
    if best is None:
        return
    classifier = incumbent.classifier(executor.ctx.device)
    if classifier.reliability is not None:
        return  # an earlier session calibrated it
    begun = time.monotonic()
    found: Reliability | str
    try:
        ctx = executor.ctx.with_deadline(deadline_s)
        found = _calibrated(classifier, best, executor, ctx, refitted=incumbent.is_refitted)
    except StorageError:
        raise
    except TransferError as error:
        found = str(error)
    except (MemoryError, RuntimeError) as error:
        found = out_of_memory_reason(error)
    if isinstance(found, str):
        executor.ctx.reporter.on_note(
            f"The classifier cannot tell unknown images, and has no prediction sets: {found}"
        )
        classifier = replace(classifier, not_calibrated=found)
    else:
        classifier = replace(classifier, reliability=found, not_calibrated=None)
    incumbent.replace(
        classifier,
        best,
        refitted=incumbent.is_refitted,
        averaged=incumbent.averaged_trials,
    )
    if isinstance(found, str):
        return
    seconds = round(time.monotonic() - begun, 3)
    executor.folder.log_event("reliability", seconds=seconds, n_held_out=found.n)


def _calibrated(
    classifier: ImageClassifier,
    best: TrialRecord,
    executor: LocalExecutor,
    ctx: RunContext,
    *,
    refitted: bool,
) -> Reliability | str:
    """Return the reliability of the run's classifier, or why there is none."""
    dataset, strategy = executor.dataset, get_strategy(best.strategy)
    if best.n_train is not None:  # it learned from the measured images alone
        dataset = executor.measured_part() or dataset
    if strategy.head_loss is not None:
        learned = dataset.with_val_in_train() if refitted else dataset
        return calibrate_head(classifier, learned, ctx)
    if refitted:
        return (
            f"{best.strategy} learned from the validation images too, so no image is left that it "
            "could be calibrated on."
        )
    s_per_image = executor.budget.seconds_at(classifier.backbone.input_px)
    n = min(TIME_SHARE * ctx.seconds_left() / s_per_image, MAX_HELD_OUT + MAX_IMAGES)
    crops = executor.activation_store.eval_crops
    return calibrate_network(classifier, dataset, ctx, int(n), crops)


def calibrate_network(
    classifier: ImageClassifier,
    dataset: Dataset,
    ctx: RunContext,
    most: int = MAX_HELD_OUT + MAX_IMAGES,
    eval_crops: EvalCrops | None = None,
) -> Reliability | str:
    """Calibrate a network that was trained on the train images, or say why it cannot be.

    Parameters
    ----------
    most
        Images that may pass the network: first the validation images, then train images.
    eval_crops
        Crops in memory, which are not read again.

    Raises
    ------
    OutOfTime
        If `most` is too few, or the deadline passes first.
    """
    val = _sample(dataset.val, MAX_HELD_OUT, ctx)
    if len(val) < FEWEST_HELD_OUT:
        return _too_few(len(val), "validation images that it was not trained on")
    fewest = MIN_PER_CLASS * dataset.n_classes
    if most - len(val) < fewest:
        raise OutOfTime(f"there was no time to pass {len(val) + fewest} images. Give more --time.")
    train = _sample(dataset.train, min(most - len(val), MAX_IMAGES), ctx)
    depths = score_depths(classifier.backbone, classifier.depths)
    scores, held_out = _outputs(classifier, val, depths, ctx, eval_crops)
    _, features = _outputs(classifier, train, depths, ctx, eval_crops)
    fold = Fold(features, labels_of(train), held_out, scores, labels_of(val))
    return calibrate_reliability([fold], features, labels_of(train), depths, "validation")


def calibrate_head(
    classifier: ImageClassifier, dataset: Dataset, ctx: RunContext
) -> Reliability | str:
    """Calibrate a head on frozen features, or say why it cannot be.

    Parameters
    ----------
    classifier
        Fitted to ``dataset.train``.

    Raises
    ------
    OutOfTime
        If the deadline passes first.
    """
    ctx.check_time()
    loss, n = get_strategy(classifier.strategy).head_loss, len(dataset.train)
    assert loss is not None
    scored = out_of_fold_scores(classifier, loss, dataset, ctx)
    if scored is None or len(scored.rows) < FEWEST_HELD_OUT:
        return _too_few(n if scored is None else len(scored.rows), "images")
    depths, labels = score_depths(classifier.backbone, classifier.depths), labels_of(dataset.train)
    x = pooled_features(dataset.train, classifier.backbone, ctx, depths.numbers)
    folds = []
    for number in np.unique(scored.folds[scored.rows]):
        ctx.check_time()
        fitted = _drawn(labels, np.flatnonzero(scored.folds != number), MAX_IMAGES, ctx)
        is_out = scored.folds[scored.rows] == number
        out = scored.rows[is_out]
        folds.append(Fold(x[fitted], labels[fitted], x[out], scored.scores[is_out], labels[out]))
    # From as many images as in a fold: from more, new images would be nearer than held-out ones.
    fitted = _drawn(labels, np.arange(n), max(len(fold.labels) for fold in folds), ctx)
    return calibrate_reliability(folds, x[fitted], labels[fitted], depths, "folds")


def _drawn(
    labels: Labels, rows: NDArray[np.int64], most: int, ctx: RunContext
) -> NDArray[np.int64]:
    """Draw at most `most` of some rows, but at least one of every class."""
    if len(rows) <= most:
        return rows
    shuffled = np.random.default_rng(ctx.seed).permutation(rows)
    _, firsts = np.unique(labels[shuffled], return_index=True)
    first = np.zeros(len(rows), dtype=bool)
    first[firsts] = True
    return np.concatenate([shuffled[first], shuffled[~first]])[: max(most, len(firsts))]


def _outputs(
    classifier: ImageClassifier,
    images: Split,
    depths: Depths,
    ctx: RunContext,
    eval_crops: EvalCrops | None,
) -> tuple[Scores, Rows]:
    """Return scores, and features of some depths, of images from one pass of a trained network.

    Its head reads the penultimate activations, the last of the depths.
    """
    network, backbone = classifier.network.eval(), classifier.backbone
    body = Body(network.body.net, depths.numbers, backbone.n_depths)
    n_head = depths.widths[-1]

    def both(pixels: Tensor) -> Tensor:
        ctx.check_time()
        features = body(pixels)
        return torch.cat([network.scores(features[:, -n_head:]), features.float()], dim=1)

    rows = outputs_of(both, [image.path for image in images], backbone, ctx, eval_crops)
    n_classes = len(classifier.classes)
    return rows[:, :n_classes], rows[:, n_classes:]


def _sample(images: Split, most: int, ctx: RunContext) -> Split:
    return tuple(images[i] for i in stratified_rows(images, most, MIN_PER_CLASS, ctx.seed))


def _too_few(n: int, kind: str) -> str:
    return (
        f"there were {n} {kind}, and {FEWEST_HELD_OUT} are needed. Give more images, or a folder "
        "of validation images with --val, and run again."
    )
