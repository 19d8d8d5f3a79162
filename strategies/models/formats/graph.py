"""The graph of an exported classifier: images of any size to probabilities, and its metadata."""

import contextlib
import copy
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch
from safetensors.torch import save as bytes_of
from torch import Tensor, nn

from strategies.models.classifier import ImageClassifier
from strategies.models.formats.preprocessing import Preprocessing

INPUT = "images"
PROBABILITIES, UNKNOWN_SCORE = "probabilities", "unknown_score"
FEATURES = ("features", "unknown_features")
"""Names of what the body returns: what the head reads, and what the unknown score reads."""
Outputs = Tensor | tuple[Tensor, Tensor]
EXAMPLE_SIZE = (90, 70)
"""Height and width of the image that the graph is traced with; any will do."""


class ExportedHead(nn.Module):
    """The last part: features (n, d) to probabilities, and to unknown scores."""

    def __init__(self, classifier: ImageClassifier) -> None:
        super().__init__()
        self.linear = classifier.network.head
        reliability = classifier.reliability
        self.unknown = None if reliability is None else reliability.module()

    def forward(self, features: Tensor, own: Tensor | None = None) -> Outputs:
        """Return the probabilities, (n, classes), and the unknown scores, (n,), if any.

        Parameters
        ----------
        own
            What the unknown score reads; None: there is none.
        """
        scores: Tensor = self.linear(features)
        probabilities = scores.softmax(dim=1)
        if self.unknown is None or own is None:
            return probabilities
        return probabilities, self.unknown(own)


class ExportedClassifier(nn.Module):
    """A classifier with its preprocessing: ``images``, uint8 (n, h, w, 3), to ``probabilities``.

    Images are upright RGB of any size; those of one batch have the same. Resizing, cropping and
    normalisation give the pixels that the program itself uses. The probabilities, (n, classes)
    float32, are calibrated: a temperature is part of the head's weights. A classifier that
    recognises unknown images has a second output, ``unknown_score``, (n,) float32.

    It is a copy on the CPU: a graph that is traced on a GPU needs one.
    """

    def __init__(self, classifier: ImageClassifier) -> None:
        super().__init__()
        self.preprocessing = Preprocessing(classifier.backbone)
        judged = classifier.judged_network()
        body = classifier.network.body if judged is None else judged.body
        self.body: nn.Module = copy.deepcopy(body).cpu()
        self.head = copy.deepcopy(ExportedHead(classifier)).cpu()
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Outputs:
        """Return the probabilities, and the unknown scores if there are any."""
        found: Outputs = self.head(*in_order(self.body(self.preprocessing(images))))
        return found


def in_order(outputs: Outputs) -> tuple[Tensor, ...]:
    """Return one or two outputs as a tuple."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def output_names(classifier: ImageClassifier) -> list[str]:
    """Return the names of the outputs of an exported classifier, in their order."""
    return [PROBABILITIES] if classifier.reliability is None else [PROBABILITIES, UNKNOWN_SCORE]


def example_images() -> tuple[Tensor, dict[int, Any]]:
    """Return images that a graph is traced with, and which of their sizes may differ."""
    images = torch.zeros(2, *EXAMPLE_SIZE, 3, dtype=torch.uint8)
    names = ("n", "height", "width")
    return images, {axis: torch.export.Dim(name) for axis, name in enumerate(names)}


def metadata_of(classifier: ImageClassifier) -> dict[str, Any]:
    """Return what a user of an exported classifier must know about it, as plain JSON values.

    ``classifier_sha256`` is the ``weights_sha256`` of the saved classifier's record.
    """
    backbone = classifier.backbone
    state = {k: v.cpu().contiguous() for k, v in classifier.network.state_dict().items()}
    reliability = classifier.reliability
    return {
        "classes": list(classifier.classes),
        "input": "uint8 (n, height, width, 3): upright RGB images of any size, those of a batch "
        "of one size; resizing, cropping and normalisation are part of the model",
        "output": f"{PROBABILITIES}: float32 (n, classes), calibrated",
        "input_px": backbone.input_px,
        "backbone": backbone.name,
        "strategy": classifier.strategy,
        "licence": backbone.licence,
        "program": f"tl-advisor {version('tl-advisor')}",
        "classifier_sha256": hashlib.sha256(bytes_of(state)).hexdigest(),
        "reliability": None if reliability is None else reliability.record(),
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress what exporters warn, log and print: a user can do nothing about it.

    stdout is the answer's.
    """
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
