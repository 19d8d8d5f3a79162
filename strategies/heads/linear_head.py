"""Linear heads on a frozen body: from features to a network."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from strategies.core.cache import Rows
from strategies.core.context import RunContext
from strategies.core.metrics import Labels
from strategies.data.dataset import Dataset, groups_of, labels_of
from strategies.heads.compute_budget import affordable
from strategies.heads.cross_validation import (
    STRENGTHS,
    ClassWeight,
    CrossValidated,
    Loss,
    cross_validate,
    fit_head,
    fold_numbers,
    temperature,
)
from strategies.heads.feature_selection import cross_validate_strongest, select_strongest
from strategies.models.backbone import Backbone
from strategies.models.body import Pooling
from strategies.models.classifier import make_network, set_head
from strategies.models.multi_view import VIEWS, features_at
from strategies.models.network import Network

MAX_VIEWED = 1000
"""Up to this many train images several views of each are worth their passes by default."""
PRIOR_STRENGTH, PRIOR_TEMPERATURE = 1e-2, 20.0
"""Where no class has two images nothing can be chosen by: what was best calibrated on eleven
real sets with one image per class, judged by train images that were left out."""


@dataclass(frozen=True)
class LinearSettings:
    """How a linear head is fitted to frozen features.

    Attributes
    ----------
    depths, pooling
        Which activations it reads.
    strength
        L2 strength, for features scaled to unit mean squared length; None: by cross-validation.
    views
        Views of every train image (see `views`); prediction always sees one. None: by
        cross-validation, since mirror images and corners teach what is wrong where place or
        direction tells the classes.
    share
        Of these activations, how many are used: the strongest (see `selection`).
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
    """What cross-validation chose for one number of views, and how well that did there."""

    views: int
    ranked_by: float
    """L2 strength of the head that activations are ranked by."""
    strength: float
    temperature: float
    log_loss: float


def view_counts(n_train: int) -> tuple[int, ...]:
    """Return the numbers of views that are worth trying, most first."""
    return tuple(sorted(VIEWS, reverse=True)) if n_train <= MAX_VIEWED else (1,)


def fit_on_features(
    dataset: Dataset, backbone: Backbone, ctx: RunContext, settings: LinearSettings
) -> tuple[Network, LinearSettings]:
    """Fit a calibrated linear head on pooled activations.

    The temperature, and strength and views if they are None, come from out-of-fold scores on
    train.

    Returns
    -------
    The network, cut at the deepest of the depths, and the settings that were used.
    """
    ctx.check_time()
    how = settings
    tried = view_counts(len(dataset.train)) if how.views is None else (how.views,)
    if how.views is None:
        dataset, tried = affordable(dataset, backbone, ctx, tried)

    def features(views: int) -> Rows:
        return features_at(dataset.train, backbone, ctx, how.depths, how.pooling, views)

    choices = [_choose(features(views), dataset, how, ctx) for views in tried]
    best = min(choices, key=lambda choice: choice.log_loss)
    weight, bias = _fit(features(best.views), dataset, how, best, ctx)
    with ctx.seeded():
        network = make_network(backbone, how.depths, dataset.n_classes, how.pooling)
    set_head(network, weight, bias)
    used = replace(how, strength=best.strength, views=best.views)
    return network.to(ctx.device).eval(), used


def _choose(x: Rows, dataset: Dataset, how: LinearSettings, ctx: RunContext) -> _Choice:
    """Choose what is open by cross-validation.

    Parameters
    ----------
    x
        Shape (n, views, d).
    """
    views = x.shape[1]
    found = cross_validate_head(x, dataset, how, ctx)
    if found is None:
        strength = how.strength or PRIOR_STRENGTH
        return _Choice(views, strength, strength, PRIOR_TEMPERATURE, np.inf)
    tried, ranked_by = found
    warmth, _ = temperature(tried.scores[tried.best], tried.labels, tried.counts)
    return _Choice(views, ranked_by, tried.strengths[tried.best], warmth, tried.log_loss)


def cross_validate_head(
    x: Rows, dataset: Dataset, how: LinearSettings, ctx: RunContext
) -> tuple[CrossValidated, float] | None:
    """Cross-validate a head on train; None if no class has images in two folds.

    Parameters
    ----------
    x
        Shape (n, views, d).

    Returns
    -------
    Out-of-fold scores of those images whose class is known to other folds, as they will be
    predicted: by their first view. And the L2 strength of the head that activations are ranked by.
    """
    _, views, width = x.shape
    labels = labels_of(dataset.train)
    folds = fold_numbers(labels, ctx.seed, groups=groups_of(dataset.train))
    judged = np.flatnonzero(_has_company(labels, folds))
    if not len(judged):
        return None
    rows, targets, fold = x.reshape(-1, width), np.repeat(labels, views), np.repeat(folds, views)
    strengths = STRENGTHS if how.strength is None else (how.strength,)
    tried = cross_validate(
        rows,
        targets,
        dataset.n_classes,
        folds=fold,
        strengths=strengths if how.share == 1 else STRENGTHS,
        loss=how.loss,
        class_weight=how.class_weight,
        device=ctx.device,
    )
    ranked_by = tried.strengths[tried.best]
    if how.share < 1:
        tried = cross_validate_strongest(
            rows,
            targets,
            dataset.n_classes,
            how.share,
            ranked_by,
            folds=fold,
            strengths=strengths,
            loss=how.loss,
            class_weight=how.class_weight,
            device=ctx.device,
        )
    return _some_rows(tried, judged * views), ranked_by


def _fit(
    x: Rows, dataset: Dataset, how: LinearSettings, chosen: _Choice, ctx: RunContext
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Fit a head to all train images: weights, 0 for what is not used, and biases."""
    _, views, width = x.shape
    rows, labels = x.reshape(-1, width), np.repeat(labels_of(dataset.train), views)
    kept = np.arange(width)
    if how.share < 1:
        kept = select_strongest(
            rows,
            labels,
            dataset.n_classes,
            how.share,
            chosen.ranked_by,
            loss=how.loss,
            class_weight=how.class_weight,
            device=ctx.device,
        )
    head = fit_head(
        rows[:, kept],
        labels,
        dataset.n_classes,
        chosen.strength,
        temperature=chosen.temperature,
        loss=how.loss,
        class_weight=how.class_weight,
        device=ctx.device,
    )
    weight = np.zeros((dataset.n_classes, width), dtype=np.float32)
    weight[:, kept] = head.weight
    return weight, head.bias


def _has_company(labels: Labels, folds: Labels) -> NDArray[np.bool_]:
    """Whether an image's class has images in another fold, so that its head knows the class."""
    n_folds = int(folds.max()) + 1
    own = np.bincount(labels * n_folds + folds, minlength=(labels.max() + 1) * n_folds)
    found: NDArray[np.bool_] = np.bincount(labels)[labels] > own[labels * n_folds + folds]
    return found


def _some_rows(tried: CrossValidated, rows: Labels) -> CrossValidated:
    counts = None if tried.counts is None else tried.counts[rows]
    return replace(tried, scores=tried.scores[:, rows], labels=tried.labels[rows], counts=counts)
