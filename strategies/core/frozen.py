"""Linear heads on a frozen body: from features to a network."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from strategies.core.backbone import Backbone
from strategies.core.body import Pooling
from strategies.core.cache import Rows
from strategies.core.classifier import make_network, set_head
from strategies.core.metrics import Labels
from strategies.core.network import Network
from strategies.core.probes import (
    STRENGTHS,
    ClassWeight,
    CrossValidated,
    Loss,
    cross_validate,
    fit_head,
    fold_numbers,
    temperature,
)
from strategies.core.run import RunContext
from strategies.core.task import ImageTask, groups_of, labels_of
from strategies.core.views import VIEWS, features_at

MAX_VIEWED = 1000
"""Up to this many train pictures several views of each are worth their passes by default."""
PRIOR_STRENGTH, PRIOR_TEMPERATURE = 1e-2, 20.0
"""Where no class has two pictures nothing can be chosen by: what was best calibrated on eleven
real sets with one picture a class, judged by train pictures that were left out."""


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
        Views of every train picture (see `views`); prediction always sees one. None: by
        cross-validation, since mirror images and corners teach what is wrong where place or
        direction tells the classes.
    """

    depths: tuple[int, ...]
    loss: Loss
    strength: float | None = None
    pooling: Pooling = "mean"
    views: int | None = 1
    class_weight: ClassWeight = "none"


@dataclass(frozen=True)
class _Choice:
    """What cross-validation chose for one number of views, and how well that did there."""

    views: int
    strength: float
    temperature: float
    log_loss: float


def open_views(n_train: int) -> tuple[int, ...]:
    """Return the numbers of views that are worth trying, most first."""
    return tuple(sorted(VIEWS, reverse=True)) if n_train <= MAX_VIEWED else (1,)


def fit_on_features(
    task: ImageTask, backbone: Backbone, ctx: RunContext, settings: LinearSettings
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

    def features(views: int) -> Rows:
        return features_at(task.train, backbone, ctx, how.depths, how.pooling, views)

    tried = open_views(len(task.train)) if how.views is None else (how.views,)
    choices = [_choose(features(views), task, how, ctx) for views in tried]
    best = min(choices, key=lambda choice: choice.log_loss)
    x = features(best.views)
    head = fit_head(
        x.reshape(-1, x.shape[2]),
        np.repeat(labels_of(task.train), best.views),
        task.n_classes,
        best.strength,
        temperature=best.temperature,
        loss=how.loss,
        class_weight=how.class_weight,
        device=ctx.device,
    )
    with ctx.seeded():
        network = make_network(backbone, how.depths, task.n_classes, how.pooling)
    set_head(network, head.weight, head.bias)
    used = replace(how, strength=best.strength, views=best.views)
    return network.to(ctx.device).eval(), used


def _choose(x: Rows, task: ImageTask, how: LinearSettings, ctx: RunContext) -> _Choice:
    """Choose what is open by cross-validation.

    Parameters
    ----------
    x
        Shape (n, views, d).
    """
    n, views, width = x.shape
    labels = labels_of(task.train)
    folds = fold_numbers(labels, ctx.seed, groups=groups_of(task.train))
    judged = _has_company(labels, folds)
    if not judged.any():
        return _Choice(views, how.strength or PRIOR_STRENGTH, PRIOR_TEMPERATURE, np.inf)
    tried = cross_validate(
        x.reshape(n * views, width),
        np.repeat(labels, views),
        task.n_classes,
        folds=np.repeat(folds, views),
        strengths=STRENGTHS if how.strength is None else [how.strength],
        loss=how.loss,
        class_weight=how.class_weight,
        device=ctx.device,
    )
    # A picture is judged as it will be predicted: by its first view.
    tried = _some_rows(tried, np.flatnonzero(judged) * views)
    warmth, _ = temperature(tried.scores[tried.best], tried.labels, tried.counts)
    return _Choice(views, tried.strengths[tried.best], warmth, tried.log_loss)


def _has_company(labels: Labels, folds: Labels) -> NDArray[np.bool_]:
    """Whether a picture's class has pictures in another fold, so that its head knows the class."""
    n_folds = int(folds.max()) + 1
    own = np.bincount(labels * n_folds + folds, minlength=(labels.max() + 1) * n_folds)
    found: NDArray[np.bool_] = np.bincount(labels)[labels] > own[labels * n_folds + folds]
    return found


def _some_rows(tried: CrossValidated, rows: Labels) -> CrossValidated:
    counts = None if tried.counts is None else tried.counts[rows]
    return replace(tried, scores=tried.scores[:, rows], labels=tried.labels[rows], counts=counts)
