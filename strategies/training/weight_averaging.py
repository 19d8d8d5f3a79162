"""Weight averaging (model soups): average classifiers fine-tuned from the same starting point."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.models.classifier import ImageClassifier
from strategies.training.reinit import recompute_bn_statistics

_BN_STATISTICS = ("running_mean", "running_var")


def can_be_averaged(one: ImageClassifier, other: ImageClassifier) -> bool:
    """Return whether two classifiers have the same architecture, classes and input.

    An average is useful only if both were also trained from the same starting point. This is not
    checked here: the caller must know it.
    """
    return all(
        getattr(one, name) == getattr(other, name)
        for name in ("classes", "backbone", "depths", "pooling")
    )


def average_weights(
    members: Sequence[ImageClassifier], dataset: Dataset, ctx: RunContext
) -> ImageClassifier:
    """Average the weights of classifiers trained from the same starting point: a model soup.

    The average predicts, is saved and is exported like one classifier, at the cost of one. Heads
    are averaged with their temperature scaling, so that an overconfident member does not outweigh
    the others. BatchNorm statistics that all members share (frozen ones) are kept. Where members
    differ (trained ones), neither a member's statistics nor their mean suit the average, because
    activations at averaged weights have a smaller variance. They are recomputed from the train
    images.

    Parameters
    ----------
    members
        At least one classifier; each pair must pass `can_be_averaged`. Strategy and
        hyperparameters of the first are recorded.
    dataset
        The dataset that they were trained on.

    Raises
    ------
    OutOfTime
        If the deadline has passed.

    References
    ----------
    M. Wortsman et al., Model soups: averaging weights of multiple fine-tuned models improves
    accuracy without increasing inference time, ICML 2022. P. Izmailov et al., Averaging weights
    leads to wider optima and better generalization, UAI 2018 (BatchNorm statistics
    recomputed on train). K. Jordan et al., REPAIR: renormalizing permuted activations for
    interpolation repair, ICLR 2023 (variance collapse).
    """
    first = members[0]
    ctx.check_time()
    states = [member.network.state_dict() for member in members]
    network = copy.deepcopy(first.network)
    network.load_state_dict({name: _mean([s[name] for s in states]) for name in states[0]})
    network.eval()
    norms = [
        module
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        and any(_differs([s[f"{name}.{key}"] for s in states]) for key in _BN_STATISTICS)
    ]
    if norms:
        recompute_bn_statistics(network, norms, dataset, first.backbone, ctx)
    return replace(first, network=network)


def _mean(values: Sequence[Tensor]) -> Tensor:
    """Average tensors in double precision; for integer tensors (counters) return the first.

    This runs on the CPU, because not every device has double precision.
    """
    if not values[0].is_floating_point():
        return values[0]
    return torch.stack([v.cpu().double() for v in values]).mean(dim=0).to(values[0])


def _differs(values: Sequence[Tensor]) -> bool:
    return any(not torch.equal(values[0], other) for other in values[1:])
