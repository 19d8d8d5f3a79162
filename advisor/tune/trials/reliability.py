"""Calibrate the run's classifier: unknown images and prediction sets, on images it did not learn.

A head on frozen features is fitted again, with the hyperparameters of the best trial, to the train
images alone, and the validation images are predicted; the classifier of the run, which may have
learned from these too, gets the thresholds. With fewer than `SMALL_VAL` validation images of the
program's own, it is fitted to five folds of train and validation in turn instead.

A trained network has learned from the train images alone. It predicts the validation images
itself. These have chosen its hyperparameters, its best round, the soup that it may be, and its
temperature; no weight was fitted to them. The thresholds may be slightly optimistic for it.
"""

import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from advisor.tune.incumbent import Incumbent
from advisor.tune.interventions import backbone_of, hyperparameters_of
from advisor.tune.trials.executor import LocalExecutor, out_of_memory_reason
from advisor.tune.trials.validation import MAX_FOLDS, SMALL_VAL, make_validation
from advisor.types.outcome import TrialRecord
from strategies.core.allocator import inference_passes
from strategies.core.cache import Rows
from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime, StorageError, TransferError
from strategies.core.metrics import Scores
from strategies.data.dataset import Dataset, Split, labels_of
from strategies.data.decoding import Pixels
from strategies.data.sampling import stratified_rows
from strategies.models.body import Body
from strategies.models.classifier import ImageClassifier
from strategies.models.features import batches, pooled_features, to_input
from strategies.models.multi_view import features_at
from strategies.models.reliability.calibration import (
    FEWEST_HELD_OUT,
    MAX_HELD_OUT,
    Fold,
    calibrate_reliability,
    score_depths,
)
from strategies.models.reliability.reliability import Depths, HeldOut, Reliability
from strategies.registry import get_strategy

MAX_IMAGES = 1_000
"""Train images whose features give class means and covariance; of more, a stratified sample."""
MIN_PER_CLASS = 2
"""Train images of every class in that sample, at least; without time for them, there is none."""
TIME_SHARE = 0.8
"""Share of the time left that the forward passes may be expected to take."""


def add_reliability(executor: LocalExecutor, incumbent: Incumbent, deadline_s: float) -> None:
    """Calibrate the incumbent, and save it again with its reliability.

    Nothing that goes wrong here ends the run: without time or memory the classifier is left as it
    is, with a note.

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
        return
    incumbent.replace(
        replace(classifier, reliability=found),
        best,
        refitted=incumbent.is_refitted,
        averaged=incumbent.averaged_trials,
    )
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
    dataset = executor.dataset
    if best.n_train is not None:  # it learned from the measured images alone
        dataset = executor.measured_part() or dataset
    if len(dataset.fit_split) < FEWEST_HELD_OUT or not dataset.val:
        return _too_few(len(dataset.val))
    if get_strategy(best.strategy).head_loss is not None:
        return _of_head(classifier, best, dataset, executor, ctx)
    if refitted:
        return f"{best.strategy} learned from the validation images too."
    return _of_network(classifier, dataset, executor, ctx)


def _of_network(
    classifier: ImageClassifier, dataset: Dataset, executor: LocalExecutor, ctx: RunContext
) -> Reliability | str:
    """Calibrate a trained network on the validation images, with features of train images."""
    val = _sample(dataset.val, MAX_HELD_OUT, ctx)
    if len(val) < FEWEST_HELD_OUT:
        return _too_few(len(val))
    s_per_image = executor.budget.seconds_at(classifier.backbone.input_px)
    n = int(TIME_SHARE * ctx.seconds_left() / s_per_image) if ctx.deadline_s else MAX_IMAGES
    needed = MIN_PER_CLASS * dataset.n_classes
    if n - len(val) < needed:
        raise OutOfTime(f"there was no time to pass {len(val) + needed} images. Give more --time.")
    train = _sample(dataset.train, min(n - len(val), MAX_IMAGES), ctx)
    depths = score_depths(classifier.backbone, classifier.depths)
    scores, held_out = _outputs(classifier, val, depths, executor, ctx)
    _, features = _outputs(classifier, train, depths, executor, ctx)
    fold = Fold(features, labels_of(train), held_out, scores, labels_of(val))
    return calibrate_reliability([fold], features, labels_of(train), depths, "validation")


def _of_head(
    classifier: ImageClassifier,
    best: TrialRecord,
    dataset: Dataset,
    executor: LocalExecutor,
    ctx: RunContext,
) -> Reliability | str:
    """Calibrate a head on frozen features with heads that did not learn the held-out images."""
    by_folds = len(dataset.val) < SMALL_VAL and "val" not in dataset.listed
    folds = make_validation(dataset, MAX_FOLDS if by_folds else 1, ctx.seed).folds
    backbone = backbone_of(best.hyperparameters, executor.backbone)
    chosen = hyperparameters_of(best.hyperparameters)
    strategy = get_strategy(best.strategy).from_hyperparameters(chosen)
    depths = score_depths(classifier.backbone, classifier.depths)
    found = []
    for fold in folds:
        ctx.check_time()
        val = _sample(fold.val, MAX_HELD_OUT, ctx)
        train = _sample(fold.train, MAX_IMAGES, ctx)
        scores = _head_scores(strategy.fit(fold, backbone, ctx), val, ctx)
        features, held_out = (
            pooled_features(images, classifier.backbone, ctx, depths.numbers)
            for images in (train, val)
        )
        found.append(Fold(features, labels_of(train), held_out, scores, labels_of(val)))
    if sum(len(fold.held_out_labels) for fold in found) < FEWEST_HELD_OUT:
        return _too_few(len(dataset.val))
    learned = _sample(dataset.fit_split if by_folds else dataset.train, MAX_IMAGES, ctx)
    features = pooled_features(learned, classifier.backbone, ctx, depths.numbers)
    where: HeldOut = "folds" if by_folds else "validation"
    return calibrate_reliability(found, features, labels_of(learned), depths, where)


@torch.inference_mode()
def _head_scores(classifier: ImageClassifier, images: Split, ctx: RunContext) -> Scores:
    """Return the scores of a head on frozen features, which are cached if they were computed."""
    depths, pooling = classifier.depths, classifier.pooling
    x = features_at(images, classifier.backbone, ctx, depths, pooling, 1)[:, 0]
    head = classifier.network.head
    scores: Scores = head(torch.from_numpy(x).to(head.weight.device)).cpu().numpy()
    return scores


def _outputs(
    classifier: ImageClassifier,
    images: Split,
    depths: Depths,
    executor: LocalExecutor,
    ctx: RunContext,
) -> tuple[Scores, Rows]:
    """Return scores, and features of some depths, of images from one pass of a trained network.

    Its head reads the penultimate activations, the last of the depths.
    """
    network, backbone = classifier.network.eval(), classifier.backbone
    body = Body(network.body.net, depths.numbers, backbone.n_depths)
    n_head = depths.widths[-1]

    def forward(pixels: Pixels) -> Tensor:
        ctx.check_time()
        with ctx.device_settings(), ctx.autocast():
            features = body(to_input(pixels, backbone, classifier.device))
            scores = network.scores(features[:, -n_head:])
        return torch.cat([scores.float(), features.float()], dim=1).cpu()

    paths = [image.path for image in images]
    crops = executor.activation_store.eval_crops
    chunks = batches(paths, backbone, ctx.n_workers, eval_crops=crops)
    with torch.inference_mode():
        parts = [part.numpy() for part in inference_passes(forward, chunks, classifier.device)]
    rows = np.concatenate(parts)
    n_classes = len(classifier.classes)
    return rows[:, :n_classes], rows[:, n_classes:]


def _sample(images: Split, most: int, ctx: RunContext) -> Split:
    return tuple(images[i] for i in stratified_rows(images, most, MIN_PER_CLASS, ctx.seed))


def _too_few(n: int) -> str:
    return (
        f"there were {n} held-out images, and {FEWEST_HELD_OUT} are needed. Give more images, or "
        "a folder of validation images with --val."
    )
