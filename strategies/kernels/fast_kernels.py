"""The faster kernels of this package together, for a training step."""

import contextlib
from collections.abc import Iterator

import torch

from strategies.kernels.bn_folding import FoldedNorms, NormByConv
from strategies.kernels.depthwise import FastDepthwiseGradient


@contextlib.contextmanager
def fast_kernels(device: torch.device, norms: NormByConv) -> Iterator[None]:
    """Context in which a network computes with the faster kernels for CPUs.

    Any other device has fast ones of its own. There it changes nothing, because Python code around
    every call of torch would only delay it.

    Parameters
    ----------
    norms
        The BatchNorm layers to fold (`norms_to_fold`).
    """
    if device.type != "cpu":
        yield
        return
    with FastDepthwiseGradient(), FoldedNorms(norms):
        yield
