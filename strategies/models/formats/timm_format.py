"""Export to model folders that ``timm.create_model("local-dir:...", pretrained=True)`` reads."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from strategies.core.atomic_files import write_json
from strategies.core.errors import NotApplicable, StorageError
from strategies.data.decoding import Pixels
from strategies.models.architectures.timm_zoo import timm_module
from strategies.models.backbone import NOT_STATED, Backbone, timm_network
from strategies.models.classifier import ImageClassifier
from strategies.models.reliability.outputs import Outputs, Predictor

CONFIG, METADATA = "config.json", "tl_advisor"
"""timm's configuration file, and its entry with the metadata, which timm ignores."""
TOLERANCE = 1e-4
"""Largest difference of probabilities between the classifier and its timm network."""


def write(classifier: ImageClassifier, folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write ``config.json`` and ``model.safetensors`` with timm's parameter names.

    The preprocessing is timm's own: it resizes, rounds and then crops, where this program does
    both in one step. So the probabilities differ by some thousandths.

    Raises
    ------
    NotApplicable
        If the classifier is not a whole timm network with one linear head.
    StorageError
        If the folder cannot be written.
    """
    net = as_timm_model(classifier)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_for_timm(net, classifier.backbone, classifier.classes, folder)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error}") from error
    add_metadata(folder, metadata)


def add_metadata(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Add metadata to the configuration; entries of the same name are replaced.

    Raises
    ------
    StorageError
        If the file cannot be read or written.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    write_json(path, {**config, METADATA: {**config.get(METADATA, {}), **metadata}})


def predictor(folder: Path) -> Predictor:
    """Return what computes the outputs of an image with timm, as its users do.

    timm's format has no unknown score.
    """
    net = timm_module().create_model(f"local-dir:{folder}", pretrained=True).eval()
    data = timm_module("timm.data")
    transform = data.create_transform(**data.resolve_model_data_config(net))

    @torch.inference_mode()
    def predict(image: Pixels) -> Outputs:
        scores: Tensor = net(transform(Image.fromarray(image)).unsqueeze(0))
        return Outputs(scores.softmax(dim=1).numpy(), None)

    return predict


def save_for_timm(
    net: nn.Module, backbone: Backbone, classes: Sequence[str], folder: Path
) -> None:
    """Write a timm network with a new head, so that ``create_model("local-dir:...")`` reads it.

    The configuration file holds the preprocessing and the class names.
    """
    px = backbone.input_px
    preprocessing = {
        "input_size": (3, px, px),
        "mean": backbone.mean,
        "std": backbone.std,
        "crop_pct": backbone.crop_pct,
        "crop_mode": backbone.crop_mode,
        "interpolation": backbone.interpolation,
    }
    licence = None if backbone.licence == NOT_STATED else backbone.licence
    timm_module("timm.models").save_for_hf(
        net,
        str(folder),
        model_config={"label_names": list(classes), "pretrained_cfg": {"license": licence}},
        safe_serialization=True,
        data_config=preprocessing,
    )


def as_timm_model(classifier: ImageClassifier) -> nn.Module:
    """Return the classifier as one timm network with the same scores.

    Raises
    ------
    NotApplicable
        If its head reads other activations than the penultimate ones, or if the classifier layer
        of the architecture is not one linear layer on them.
    """
    backbone, depths = classifier.backbone, classifier.depths
    if depths != (backbone.n_depths,):
        where = ", ".join(backbone.depths[d - 1].name for d in depths)
        raise NotApplicable(
            f"The head of this {classifier.strategy} classifier reads the activations of {where}. "
            "A timm network reads only the penultimate ones. Export it as onnx, or choose a "
            "strategy that keeps the whole network."
        )
    net: Any = timm_network(backbone).eval()  # timm's networks share no type
    with torch.random.fork_rng([]):
        net.reset_classifier(len(classifier.classes))
    head = net.get_classifier()
    name = next((n for n, m in net.named_modules() if m is head), None)
    if not isinstance(head, nn.Linear) or name is None:
        raise NotApplicable(_unsupported_head(backbone))
    state = {k: v.cpu() for k, v in classifier.network.body.net.state_dict().items()}
    state |= {f"{name}.{k}": v.cpu() for k, v in classifier.network.head.state_dict().items()}
    keys = net.load_state_dict(state, strict=False)
    if keys.missing_keys or keys.unexpected_keys or not _agree(net, classifier):
        raise NotApplicable(_unsupported_head(backbone))
    model: nn.Module = net.eval()
    return model


@torch.inference_mode()
def _agree(net: nn.Module, classifier: ImageClassifier) -> bool:
    """Whether both networks predict the same probabilities for images of noise."""
    px = classifier.backbone.input_px
    noise = torch.randn(2, 3, px, px, generator=torch.Generator().manual_seed(0))
    device = next(classifier.network.parameters()).device
    expected: Tensor = classifier.network.eval()(noise.to(device)).cpu()
    found: Tensor = net.eval()(noise)
    difference = found.softmax(1) - expected.softmax(1)
    return bool(difference.abs().max() <= TOLERANCE)


def _unsupported_head(backbone: Backbone) -> str:
    return (
        f"The classifier layer of {backbone.name} in timm is not one linear layer on the "
        "penultimate activations, so timm's format cannot hold this classifier. Export it as onnx."
    )
