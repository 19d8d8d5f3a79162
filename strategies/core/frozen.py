"""Linear heads on a frozen body: from features to a network."""

from strategies.core.backbone import Backbone
from strategies.core.classifier import make_network, set_head
from strategies.core.features import extract_features
from strategies.core.probes import (
    STRENGTHS,
    Loss,
    cross_validate,
    fit_head,
    fold_numbers,
    temperature,
)
from strategies.core.run import RunContext
from strategies.core.task import ImageTask, groups_of, labels_of
from strategies.core.training import Network


def fit_on_features(
    task: ImageTask,
    backbone: Backbone,
    ctx: RunContext,
    depths: tuple[int, ...],
    strength: float | None,
    loss: Loss,
) -> tuple[Network, float]:
    """Fit a calibrated linear head on the pooled activations of `depths`.

    The temperature, and the strength if it is None, come from out-of-fold scores on train.

    Returns
    -------
    The network, cut at the deepest of `depths`, and the strength that was used.
    """
    ctx.check_time()
    features = extract_features(task.train, backbone, ctx).at(depths)
    labels = labels_of(task.train)
    tried = cross_validate(
        features,
        labels,
        task.n_classes,
        folds=fold_numbers(labels, ctx.seed, groups=groups_of(task.train)),
        loss=loss,
        strengths=STRENGTHS if strength is None else [strength],
        device=ctx.device,
    )
    used = tried.strengths[tried.best]
    head = fit_head(
        features,
        labels,
        task.n_classes,
        used,
        loss=loss,
        temperature=temperature(tried.scores[tried.best], labels)[0],
        device=ctx.device,
    )
    with ctx.seeded():
        network = make_network(backbone, depths, task.n_classes)
    set_head(network, head.weight, head.bias)
    return network.to(ctx.device).eval(), used
