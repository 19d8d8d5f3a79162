"""Linear heads on a frozen body: from features to a network."""

from dataclasses import dataclass, replace
from typing import Any

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
    Head,
    Loss,
    cross_validate,
    fit_head,
    fold_numbers,
    temperature,
)
from strategies.core.run import RunContext
from strategies.core.task import ImageTask, Split, groups_of, labels_of
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
        Views of every train picture (see `views`); prediction always sees one.
    """

    depths: tuple[int, ...]
    loss: Loss
    strength: float | None = None
    pooling: Pooling = "mean"
    views: int = 1
    class_weight: ClassWeight = "none"


def default_views(n_train: int) -> int:
    """Return how many views of every train picture are worth their cost."""
    return VIEWS[-1] if n_train <= MAX_VIEWED else 1


def fit_on_features(
    task: ImageTask, backbone: Backbone, ctx: RunContext, settings: LinearSettings
) -> tuple[Network, float]:
    """Fit a calibrated linear head on pooled activations.

    The temperature, and the strength if it is None, come from out-of-fold scores on train.

    Returns
    -------
    The network, cut at the deepest of the depths, and the strength that was used.
    """
    ctx.check_time()
    how = settings
    x = features_at(task.train, backbone, ctx, how.depths, how.pooling, how.views)
    used, head = _fit(x, task.train, task.n_classes, how, ctx)
    with ctx.seeded():
        network = make_network(backbone, how.depths, task.n_classes, how.pooling)
    set_head(network, head.weight, head.bias)
    return network.to(ctx.device).eval(), used


def _fit(
    x: Rows, split: Split, n_classes: int, how: LinearSettings, ctx: RunContext
) -> tuple[float, Head]:
    """Choose what is open by cross-validation, then fit to everything.

    Parameters
    ----------
    x
        Shape (n, views, d).
    """
    n, views, width = x.shape
    labels = labels_of(split)
    rows, row_labels = x.reshape(n * views, width), np.repeat(labels, views)
    folds = fold_numbers(labels, ctx.seed, groups=groups_of(split))
    shared: dict[str, Any] = {"loss": how.loss, "class_weight": how.class_weight}
    judged = _has_company(labels, folds)
    if judged.any():
        tried = cross_validate(
            rows,
            row_labels,
            n_classes,
            folds=np.repeat(folds, views),
            strengths=STRENGTHS if how.strength is None else [how.strength],
            device=ctx.device,
            **shared,
        )
        # A picture is judged as it will be predicted: by its first view.
        tried = _some_rows(tried, np.flatnonzero(judged) * views)
        used = tried.strengths[tried.best]
        warmth, _ = temperature(tried.scores[tried.best], tried.labels, tried.counts)
    else:
        used, warmth = how.strength or PRIOR_STRENGTH, PRIOR_TEMPERATURE
    head = fit_head(
        rows, row_labels, n_classes, used, temperature=warmth, device=ctx.device, **shared
    )
    return used, head


def _has_company(labels: Labels, folds: Labels) -> NDArray[np.bool_]:
    """Whether a picture's class has pictures in another fold, so that its head knows the class."""
    n_folds = int(folds.max()) + 1
    own = np.bincount(labels * n_folds + folds, minlength=(labels.max() + 1) * n_folds)
    found: NDArray[np.bool_] = np.bincount(labels)[labels] > own[labels * n_folds + folds]
    return found


def _some_rows(tried: CrossValidated, rows: Labels) -> CrossValidated:
    counts = None if tried.counts is None else tried.counts[rows]
    return replace(tried, scores=tried.scores[:, rows], labels=tried.labels[rows], counts=counts)
