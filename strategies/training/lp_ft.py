"""LP-FT: fit a linear probe, then fine-tune the network from it, then calibrate."""

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
from strategies.training.flip_symmetry import UNKNOWN, measure_flip_asymmetry
from strategies.training.recipe import Defaults, Recipe, fine_tune_defaults
from strategies.training.reinit import REINIT_PASSES, needs_reinit, reinitialise
from strategies.training.trainer import ROUNDS, train

TEMPERATURE_SPREAD = float(np.log(2))
"""Prior standard deviation of the log temperature: two in three are between a half and two."""
PASSES_PER_STEP = 3.0
"""Cost of one trained image in forward passes: the backward pass costs about two."""


@dataclass(frozen=True)
class StartingPoint:
    """Starting point of fine-tuning: the probe used as head, and default hyperparameters."""

    head: Head
    defaults: Defaults


def prepare(
    dataset: Dataset, backbone: Backbone, ctx: RunContext, hflip: bool | None = None
) -> StartingPoint:
    """Fit a cross-validated linear probe on train, and derive fine-tuning defaults from it.

    Parameters
    ----------
    hflip
        Whether images are randomly flipped horizontally. None: decided from the images.

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
        return StartingPoint(head, fine_tune_defaults(features, accuracy, flip_asymmetry))
    return StartingPoint(
        head, replace(fine_tune_defaults(features, accuracy, UNKNOWN), hflip=hflip)
    )


def _probe(penultimate: Scores, dataset: Dataset, ctx: RunContext) -> tuple[Head, float]:
    """Return a linear probe fitted to train, and its out-of-fold accuracy."""
    labels = labels_of(dataset.train)
    found = cross_validate(
        penultimate,
        labels,
        dataset.n_classes,
        folds=fold_numbers(labels, ctx.seed, groups=groups_of(dataset.train)),
        device=ctx.device,
    )
    strength = found.strengths[found.best]
    head = fit_head(penultimate, labels, dataset.n_classes, strength, device=ctx.device)
    return head, float(found.correct[found.best].mean())


def fine_tune(
    dataset: Dataset, backbone: Backbone, start: StartingPoint, recipe: Recipe, ctx: RunContext
) -> Network:
    """Train body and head together, with the probe as the initial head; calibrate the result.

    If the recipe reinitialises part of the network, the probe is refitted to the new features.

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
    """Calibrate a trained network by temperature scaling on the validation images.

    With few images the temperature is shrunk to 1 (`TEMPERATURE_SPREAD` is the prior's standard
    deviation).

    Parameters
    ----------
    scores
        Scores of the validation images, shape (n, classes), as `train` returns them. None: there
        are no validation images, and the network is left unchanged.
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
    reinit: bool = False,
) -> float:
    """Return the cost of a training run in forward passes of one image.

    Parameters
    ----------
    scale
        Side of the input, relative to the backbone's.
    frozen
        Share of the forward pass that is spent in frozen stages, which need no backward pass.
    reinit
        Whether the recipe reinitialises statistics or stages first (`strategies.training.reinit`).
    """
    per_image = 1 + (PASSES_PER_STEP - 1) * (1 - frozen)
    n_validated = (ROUNDS + 1) * n_val
    n_before = (1 + REINIT_PASSES * reinit) * n_train
    return (n_before + steps * batch * per_image + n_validated) * scale**2
