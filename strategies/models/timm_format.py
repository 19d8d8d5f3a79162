"""Classifiers as folders that ``timm.create_model("local-dir:...", pretrained=True)`` reads."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from strategies.core.errors import NotApplicable, StorageError
from strategies.models.backbone import Backbone, save_for_timm
from strategies.models.classifier import ImageClassifier

TOLERANCE = 1e-4


def write(classifier: ImageClassifier, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` with timm's own names of parameters.

    Raises
    ------
    NotApplicable
        If the classifier is no whole network of timm's with one linear head.
    StorageError
        If the folder cannot be written.
    """
    net = as_timm_model(classifier)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_for_timm(net, classifier.backbone, classifier.classes, folder)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error}") from error


def as_timm_model(classifier: ImageClassifier) -> nn.Module:
    """Return the classifier as one network of timm's: its scores are the same.

    Raises
    ------
    NotApplicable
        If its head reads more than the last activations, or the architecture's own classifier
        computes anything else.
    """
    backbone, depths = classifier.backbone, classifier.depths
    if depths != (backbone.n_depths,):
        where = ", ".join(backbone.depths[d - 1].name for d in depths)
        raise NotApplicable(
            f"This {classifier.strategy} classifier reads its images at {where}, which no "
            "network of timm's does. Export it as onnx, or choose a strategy that keeps the "
            "whole network."
        )
    with torch.random.fork_rng([]):
        net: Any = backbone.with_random_weights().build()  # timm's networks have no common type
        net.reset_classifier(len(classifier.classes))
    head = net.get_classifier()
    name = next((n for n, m in net.named_modules() if m is head), None)
    if not isinstance(head, nn.Linear) or name is None:
        raise NotApplicable(_other_head(backbone))
    state = {k: v.cpu() for k, v in classifier.network.body.net.state_dict().items()}
    state |= {f"{name}.{k}": v.cpu() for k, v in classifier.network.head.state_dict().items()}
    missing = net.load_state_dict(state, strict=False)
    if missing.missing_keys or missing.unexpected_keys or not _agree(net, classifier):
        raise NotApplicable(_other_head(backbone))
    whole: nn.Module = net.eval()
    return whole


@torch.inference_mode()
def _agree(net: nn.Module, classifier: ImageClassifier) -> bool:
    """Whether both networks give an image of noise the same probabilities."""
    px = classifier.backbone.input_px
    noise = torch.randn(2, 3, px, px, generator=torch.Generator().manual_seed(0))
    device = next(classifier.network.parameters()).device
    expected: Tensor = classifier.network.eval()(noise.to(device)).cpu()
    found: Tensor = net.eval()(noise)
    difference = found.softmax(1) - expected.softmax(1)
    return bool(difference.abs().max() <= TOLERANCE)


def _other_head(backbone: Backbone) -> str:
    return (
        f"{backbone.name} ends in something else than one linear layer on its last activations, "
        "so its classifier does not fit into timm's form. Export it as onnx."
    )
