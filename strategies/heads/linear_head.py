"""Fit a calibrated linear head on frozen features; choose strength and views on train images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from strategies.core.cache import Rows
from strategies.core.context import RunContext
from strategies.core.folds import fold_numbers
from strategies.core.metrics import Labels
from strategies.data.dataset import Dataset, LabelledImage, groups_of, labels_of
from strategies.heads.batches import Loss
from strategies.heads.compute_budget import affordable_subset
from strategies.heads.cross_validation import (
    STRENGTHS,
    ClassWeight,
    CrossValidated,
    RegularisationPath,
    best_of,
    fit_head,
    out_of_fold,
    sample_weights,
    temperature,
)
from strategies.heads.feature_selection import select_strongest, strongest_out_of_fold
from strategies.models.backbone import Backbone
from strategies.models.body import Pooling
from strategies.models.classifier import ImageClassifier, make_network, set_head
from strategies.models.features import pooled_features
from strategies.models.multi_view import VIEWS, features_at
from strategies.models.network import Network

MAX_MULTI_VIEW_IMAGES = 1000
"""Up to this many train images, several views are worth their forward passes by default."""
MAX_CROSS_VALIDATED = 50_000
"""Of more rows, only one fold is held out: its 10,000 and more images choose strength and
temperature precisely enough."""
PRIOR_STRENGTH, PRIOR_TEMPERATURE = 1e-2, 20.0
"""Used if no class has two images, so that cross-validation is impossible. They were best
calibrated on eleven real datasets with one image per class, evaluated on left-out train images."""


def unusable_setting(strength: float | None, views: int | None) -> str | None:
    """Return why a head cannot be fitted with a strength and a number of views, or None."""
    if strength is not None and not 0 < strength < np.inf:
        return f"strength must be above 0, got {strength}"
    if views is not None and views not in (1, 2, 6):
        return f"views must be one of 1, 2, 6, got {views}"
    return None


@dataclass(frozen=True)
class LinearSettings:
    """Settings for fitting a linear head to frozen features.

    Attributes
    ----------
    depths, pooling
        Depths whose activations the head reads, and their pooling.
    strength
        L2 strength for features scaled to unit mean squared length. None: chosen by
        cross-validation.
    views
        Number of views of every train image (see `multi_view`). Prediction always uses one. None:
        chosen by cross-validation, because flips and corner crops mislead the head if position or
        direction distinguishes the classes.
    share
        Share of the activations that are used: the strongest (see `feature_selection`).
    """

    depths: tuple[int, ...]
    loss: Loss
    strength: float | None = None
    pooling: Pooling = "mean"
    views: int | None = 1
    class_weight: ClassWeight = "none"
    share: float = 1.0


@dataclass(frozen=True)
class _Choice:
    """Settings chosen by cross-validation for one number of views, and their log-loss."""

    views: int
    ranking_strength: float
    """L2 strength of the head that ranks the activations."""
    strength: float
    temperature: float
    log_loss: float


def view_counts(n_train: int) -> tuple[int, ...]:
    """Return the numbers of views that are worth trying, largest first."""
    return tuple(sorted(VIEWS, reverse=True)) if n_train <= MAX_MULTI_VIEW_IMAGES else (1,)


def fit_on_features(
    dataset: Dataset, backbone: Backbone, ctx: RunContext, settings: LinearSettings
) -> tuple[Network, LinearSettings]:
    """Fit a calibrated linear head to pooled activations of the train images.

    The temperature is chosen by out-of-fold scores on train. So are strength and views if they are
    None.

    Returns
    -------
    The network, cut at the deepest of the depths, and the settings that were used.
    """
    ctx.check_time()
    candidates = view_counts(len(dataset.train)) if settings.views is None else (settings.views,)
    if settings.views is None:
        dataset, candidates = affordable_subset(dataset, backbone, ctx, candidates)
    depths, pooling = settings.depths, settings.pooling

    def features(views: int) -> Rows:
        return features_at(dataset.train, backbone, ctx, depths, pooling, views)

    choices = [_choose(features(views), dataset, settings, ctx) for views in candidates]
    best = min(choices, key=lambda choice: choice.log_loss)
    weight, bias = _fit(features(best.views), dataset, settings, best, ctx)
    with ctx.seeded():
        network = make_network(backbone, depths, dataset.n_classes, pooling)
    set_head(network, weight, bias)
    used = replace(settings, strength=best.strength, views=best.views)
    return network.to(ctx.device).eval(), used


@torch.inference_mode()
def scores_on_features(
    classifier: ImageClassifier, images: Sequence[LabelledImage], ctx: RunContext
) -> NDArray[np.float32]:
    """Return the scores of a head on mean-pooled features, (n, classes), float32.

    Unlike `ImageClassifier.predict_proba`, this takes features from the cache.
    """
    x = pooled_features(images, classifier.backbone, ctx, classifier.depths)
    scores: NDArray[np.float32] = (
        classifier.network.head(torch.from_numpy(x).to(classifier.device)).cpu().numpy()
    )
    return scores


@dataclass(frozen=True)
class OutOfFold:
    """Scores of train images by heads that were fitted without their fold.

    Attributes
    ----------
    rows
        Positions of the images in ``dataset.train``, (n,).
    folds
        Fold of every train image, (n_train,).
    scores
        Of the images at `rows`, (n, classes), divided by the temperature of the head that is
        fitted to all of them.
    """

    rows: NDArray[np.int64]
    folds: NDArray[np.int64]
    scores: NDArray[np.float32]


def out_of_fold_scores(
    classifier: ImageClassifier, loss: Loss, dataset: Dataset, ctx: RunContext
) -> OutOfFold | None:
    """Return out-of-fold scores of the images that a linear head was fitted to.

    As when it was fitted: with the same folds, strength, views, feature selection and temperature.
    These were chosen on the same images. None if no class has images in two folds.
    """
    given = classifier.hyperparameters
    settings = LinearSettings(
        classifier.depths,
        loss,
        given["strength"],
        classifier.pooling,
        given["views"],
        given["class_weight"],
        given.get("share") or 1.0,
    )
    depths, pooling, views = settings.depths, settings.pooling, given["views"]
    x = features_at(dataset.train, classifier.backbone, ctx, depths, pooling, views)
    result = cross_validate_head(x, dataset, settings, ctx)
    if result is None:
        return None
    scored, labels = result[0], labels_of(dataset.train)
    folds = fold_numbers(labels, ctx.seed, groups=groups_of(dataset.train))
    t, _ = temperature(scored.scores, scored.labels, scored.sample_weight)
    return OutOfFold(_scored(labels, folds, len(labels) * views)[0], folds, scored.scores / t)


def _choose(x: Rows, dataset: Dataset, settings: LinearSettings, ctx: RunContext) -> _Choice:
    """Choose temperature, and strength if it is None, by cross-validation.

    Parameters
    ----------
    x
        Shape (n, views, d).
    """
    views = x.shape[1]
    result = cross_validate_head(x, dataset, settings, ctx)
    if result is None:
        strength = settings.strength or PRIOR_STRENGTH
        return _Choice(views, strength, strength, PRIOR_TEMPERATURE, np.inf)
    scored, ranking_strength = result
    t, _ = temperature(scored.scores, scored.labels, scored.sample_weight)
    return _Choice(views, ranking_strength, scored.strengths[scored.best], t, scored.log_loss)


def cross_validate_head(
    x: Rows, dataset: Dataset, settings: LinearSettings, ctx: RunContext
) -> tuple[CrossValidated, float] | None:
    """Cross-validate a head on the train images. None if no class has images in two folds.

    Parameters
    ----------
    x
        Shape (n, views, d).

    Returns
    -------
    Out-of-fold scores of the images whose class also has images in other folds, and the L2
    strength of the head that ranks the activations. As in prediction, only the first view of an
    image is scored. Of more than `MAX_CROSS_VALIDATED` rows, the images of one fold are scored.
    """
    _, views, width = x.shape
    labels = labels_of(dataset.train)
    folds = fold_numbers(labels, ctx.seed, groups=groups_of(dataset.train))
    scorable, n_folds = _scored(labels, folds, len(labels) * views)
    if not len(scorable):
        return None
    rows, targets, fold = x.reshape(-1, width), np.repeat(labels, views), np.repeat(folds, views)
    strengths = STRENGTHS if settings.strength is None else (settings.strength,)
    kept = scorable * views
    weights = sample_weights(targets, settings.class_weight)[kept]
    path = RegularisationPath(settings.loss, strengths, settings.class_weight, ctx.head_device)
    whole_path = path if settings.share == 1 else replace(path, strengths=STRENGTHS)
    scores: Iterable[Rows] = out_of_fold(
        rows, targets, dataset.n_classes, whole_path, folds=fold, held_out=range(n_folds)
    )
    scored = best_of((s[kept] for s in scores), targets[kept], whole_path.strengths, weights)
    ranking_strength = scored.strengths[scored.best]
    if settings.share < 1:
        scores = strongest_out_of_fold(
            rows, targets, dataset.n_classes, settings.share, ranking_strength, path, folds=fold
        )
        scored = best_of((s[kept] for s in scores), targets[kept], strengths, weights)
    return scored, ranking_strength


def _fit(
    x: Rows, dataset: Dataset, settings: LinearSettings, chosen: _Choice, ctx: RunContext
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Fit a head to all train images. Return weights (0 for unused activations) and biases."""
    _, views, width = x.shape
    rows, labels = x.reshape(-1, width), np.repeat(labels_of(dataset.train), views)
    columns = np.arange(width)
    if settings.share < 1:
        columns = select_strongest(
            rows,
            labels,
            dataset.n_classes,
            settings.share,
            chosen.ranking_strength,
            loss=settings.loss,
            class_weight=settings.class_weight,
            device=ctx.head_device,
        )
    head = fit_head(
        rows[:, columns],
        labels,
        dataset.n_classes,
        chosen.strength,
        temperature=chosen.temperature,
        loss=settings.loss,
        class_weight=settings.class_weight,
        device=ctx.head_device,
    )
    weight = np.zeros((dataset.n_classes, width), dtype=np.float32)
    weight[:, columns] = head.weight
    return weight, head.bias


def _scored(
    labels: Labels, folds: NDArray[np.int64], n_rows: int
) -> tuple[NDArray[np.int64], int]:
    """Return which images are scored in cross-validation, and how many folds are held out."""
    scorable = np.flatnonzero(_class_in_other_folds(labels, folds))
    if n_rows > MAX_CROSS_VALIDATED:
        return scorable[folds[scorable] == 0], 1
    return scorable, int(folds.max()) + 1


def _class_in_other_folds(labels: Labels, folds: Labels) -> NDArray[np.bool_]:
    """Whether the class of every image also has images in another fold, (n,)."""
    n_folds = int(folds.max()) + 1
    in_fold = np.bincount(labels * n_folds + folds, minlength=(labels.max() + 1) * n_folds)
    others: NDArray[np.bool_] = np.bincount(labels)[labels] > in_fold[labels * n_folds + folds]
    return others
