"""Training from a pretrained network whose head already knows the dataset (LP-FT)."""

from dataclasses import dataclass, replace

import numpy as np

from strategies.core.context import RunContext
from strategies.core.metrics import Scores
from strategies.data.dataset import Dataset, groups_of, labels_of
from strategies.heads.cross_validation import (
    Head,
    cross_validate,
    fit_head,
    fold_numbers,
    temperature,
)
from strategies.models.backbone import Backbone
from strategies.models.classifier import make_network, scale_scores, set_head
from strategies.models.features import extract_features
from strategies.models.network import Network
from strategies.training.flip_symmetry import UNSEEN, measure_flip_asymmetry
from strategies.training.recipe import Defaults, Recipe, fine_tune_defaults
from strategies.training.reinit import PASSES, needs_reinit, reinitialise
from strategies.training.trainer import ROUNDS, train

TEMPERATURE_SPREAD = float(np.log(2))
"""A trained network's temperature is a half to two, two times in three, before validation is seen."""
PASSES_PER_STEP = 3.0
"""A trained image costs its forward pass and a backward pass of about twice that."""


@dataclass(frozen=True)
class Start:
    """Where a fine-tune begins: the probe that becomes its head, and the defaults for it."""

    head: Head
    defaults: Defaults


def prepare(
    dataset: Dataset, backbone: Backbone, ctx: RunContext, hflip: bool | None = None
) -> Start:
    """Fit a linear probe on train by cross-validation, and see what it leaves to learn, and how.

    Parameters
    ----------
    hflip
        Whether images are mirrored, where that is settled; None: as they allow.

    Raises
    ------
    OutOfTime
        If the deadline passes first.
    """
    ctx.check_time()
    features = extract_features(dataset.train, backbone, ctx)
    head, accuracy = _probe(features.at([backbone.n_depths]), dataset, ctx)
    if hflip is None:
        flip_asymmetry = measure_flip_asymmetry(
            dataset.train, backbone, ctx, any_size=features.any_size
        )
        return Start(head, fine_tune_defaults(features, accuracy, flip_asymmetry))
    return Start(head, replace(fine_tune_defaults(features, accuracy, UNSEEN), hflip=hflip))


def _probe(penultimate: Scores, dataset: Dataset, ctx: RunContext) -> tuple[Head, float]:
    """Fit a linear probe to train, and return it with its out-of-fold accuracy."""
    labels = labels_of(dataset.train)
    tried = cross_validate(
        penultimate,
        labels,
        dataset.n_classes,
        folds=fold_numbers(labels, ctx.seed, groups=groups_of(dataset.train)),
        device=ctx.device,
    )
    strength = tried.strengths[tried.best]
    head = fit_head(penultimate, labels, dataset.n_classes, strength, device=ctx.device)
    return head, float(tried.correct[tried.best].mean())


def fine_tune(
    dataset: Dataset, backbone: Backbone, start: Start, recipe: Recipe, ctx: RunContext
) -> Network:
    """Train head and body together, beginning with the probe as the head.

    Where the recipe makes part of the network new, the probe is fitted again to what it says then.

    References
    ----------
    A. Kumar et al., Fine-tuning can distort pretrained features and underperform
    out-of-distribution, ICLR 2022.
    """
    with ctx.seeded():
        network = make_network(backbone, (backbone.n_depths,), dataset.n_classes)
        head = start.head
        if needs_reinit(recipe):
            head, _ = _probe(reinitialise(network, dataset, backbone, recipe, ctx), dataset, ctx)
        set_head(network, head.weight, head.bias)
        scores = train(network, dataset, backbone, recipe, ctx)
    calibrate(network, scores, dataset)
    return network


def calibrate(network: Network, scores: Scores | None, dataset: Dataset) -> None:
    """Scale a trained network's scores by the temperature that fits validation; none without val.

    A few validation images move it little from 1, many move it freely (`TEMPERATURE_SPREAD`).

    Parameters
    ----------
    scores
        Of the validation images, shape (n, classes), as `train` returns them.
    """
    if scores is None:
        return
    found, _ = temperature(scores, labels_of(dataset.val), spread=TEMPERATURE_SPREAD)
    scale_scores(network, 1 / found)


def training_passes(
    n_train: int,
    n_val: int,
    steps: int,
    batch: int,
    frozen: float,
    scale: float = 1.0,
    *,
    renewed: bool = False,
) -> float:
    """Return the cost of a training in forward passes of one image.

    Parameters
    ----------
    scale
        Side of the input as a share of the backbone's own.
    frozen
        Share of the forward pass that lies in frozen stages, which need no backward pass.
    renewed
        Whether statistics or stages are made new before (`renewal`).
    """
    per_image = 1 + (PASSES_PER_STEP - 1) * (1 - frozen)
    judged = (ROUNDS + 1) * n_val
    n_before = (1 + PASSES * renewed) * n_train
    return (n_before + steps * batch * per_image + judged) * scale**2
