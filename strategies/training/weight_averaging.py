"""Several classifiers of one architecture made one: the average of their weights."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.models.classifier import ImageClassifier
from strategies.training.reinit import recompute_bn_statistics

_STATISTICS = ("running_mean", "running_var")


def can_be_averaged(one: ImageClassifier, other: ImageClassifier) -> bool:
    """Whether two classifiers have the same weights in the same places, and the same input.

    That they also began at the same point, without which an average is worth nothing, is for the
    caller to know.
    """
    return all(
        getattr(one, name) == getattr(other, name)
        for name in ("classes", "backbone", "depths", "pooling")
    )


def averaged(
    members: Sequence[ImageClassifier], dataset: Dataset, ctx: RunContext
) -> ImageClassifier:
    """Average the weights of training runs that began at the same point: a soup.

    It predicts, is saved and exported as any one of them, at the cost of one. Heads are averaged
    as they are, temperature included, so that one which is too sure of itself outweighs nobody.
    BatchNorm statistics that all members share (frozen ones) stay. Where members have their own
    (trained ones), those of the average are neither of theirs nor their mean: activations at
    averaged weights vary less than at either. They are taken again from the train images.

    Parameters
    ----------
    members
        At least one, all of which `can_be_averaged`; strategy and hyperparameters of the first
        are recorded.
    dataset
        Whose train images they learnt from.

    Raises
    ------
    OutOfTime
        If the deadline has passed.
    ValueError
        If they do not fit together.

    References
    ----------
    M. Wortsman et al., Model soups: averaging weights of multiple fine-tuned models improves
    accuracy without increasing inference time, ICML 2022. P. Izmailov et al., Averaging weights
    leads to wider optima and better generalization, UAI 2018 (a pass over train for BatchNorm's
    statistics after averaging). K. Jordan et al., REPAIR: renormalizing permuted activations for
    interpolation repair, ICLR 2023 (why: the variance collapses).
    """
    first = members[0]
    if not all(can_be_averaged(first, other) for other in members[1:]):
        raise ValueError("only classifiers of one architecture and input can be averaged")
    ctx.check_time()
    states = [member.network.state_dict() for member in members]
    network = copy.deepcopy(first.network)
    network.load_state_dict({name: _mean([s[name] for s in states]) for name in states[0]})
    network.eval()
    names = _own_statistics(members)
    if names:
        norms = [m for m in map(network.get_submodule, names) if isinstance(m, nn.BatchNorm2d)]
        recompute_bn_statistics(network, norms, dataset, first.backbone, ctx)
    return replace(first, network=network)


def _own_statistics(members: Sequence[ImageClassifier]) -> list[str]:
    """Name the BatchNorm layers whose statistics differ between classifiers."""
    states = [member.network.state_dict() for member in members]
    return [
        name
        for name, module in members[0].network.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        and any(_differs([s[f"{name}.{key}"] for s in states]) for key in _STATISTICS)
    ]


def _mean(values: Sequence[Tensor]) -> Tensor:
    """Average tensors in double precision; of counts, which are no weights, take the first."""
    if not values[0].is_floating_point():
        return values[0]
    return torch.stack([v.double() for v in values]).mean(dim=0).to(values[0].dtype)


def _differs(values: Sequence[Tensor]) -> bool:
    return any(not torch.equal(values[0], other) for other in values[1:])
