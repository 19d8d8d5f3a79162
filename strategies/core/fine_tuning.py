"""Training from a pretrained network whose head already knows the task (LP-FT)."""

from strategies.core.backbone import Backbone
from strategies.core.classifier import make_network, scale_scores, set_head
from strategies.core.features import extract_features
from strategies.core.probes import cross_validate, fit_head, fold_numbers, temperature
from strategies.core.run import RunContext
from strategies.core.task import ImageTask, groups_of, labels_of
from strategies.core.training import Network, Recipe, scores_of, train

PASSES_PER_STEP = 3.0
"""A trained image costs its forward pass and a backward pass of about twice that."""


def fine_tune(task: ImageTask, backbone: Backbone, recipe: Recipe, ctx: RunContext) -> Network:
    """Fit a linear probe as the head, then train head and body together.

    References
    ----------
    A. Kumar et al., Fine-tuning can distort pretrained features and underperform
    out-of-distribution, ICLR 2022.
    """
    ctx.check_time()
    features = extract_features(task.train, backbone, ctx).at([backbone.n_depths])
    labels = labels_of(task.train)
    tried = cross_validate(
        features,
        labels,
        task.n_classes,
        folds=fold_numbers(labels, ctx.seed, groups=groups_of(task.train)),
        device=ctx.device,
    )
    head = fit_head(
        features, labels, task.n_classes, tried.strengths[tried.best], device=ctx.device
    )
    with ctx.seeded():
        network = make_network(backbone, (backbone.n_depths,), task.n_classes)
        set_head(network, head.weight, head.bias)
        train(network, task, backbone, recipe, ctx)
    calibrate(network, task, backbone, ctx)
    return network


def calibrate(network: Network, task: ImageTask, backbone: Backbone, ctx: RunContext) -> None:
    """Scale a trained network's scores by the temperature that fits val; none without val."""
    if not task.val:
        return
    found, _ = temperature(scores_of(network, task.val, backbone, ctx), labels_of(task.val))
    scale_scores(network, 1 / found)


def default_steps(n_train: int, batch_size: int) -> int:
    """Return optimiser steps for a train split: eight epochs, within 150 and 600 steps."""
    return int(min(max(8 * n_train / batch_size, 150), 600))


def training_passes(n_train: int, n_val: int, steps: int, batch: int, frozen: float) -> float:
    """Return the cost of a training in forward passes of one image.

    Parameters
    ----------
    frozen
        Share of the forward pass that lies in frozen stages, which need no backward pass.
    """
    per_image = 1 + (PASSES_PER_STEP - 1) * (1 - frozen)
    judged = 7 * n_val
    return n_train + steps * batch * per_image + judged
