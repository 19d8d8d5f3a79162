"""Image classifiers: predict, save, load and evaluate a fitted network with its class names."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cattrs.errors import CattrsError
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as weights_of
from safetensors.torch import save as bytes_of
from torch import Tensor, nn

from strategies.core.activation_store import EvalCrops
from strategies.core.allocator import inference_passes
from strategies.core.atomic_files import atomic_file, write_json
from strategies.core.devices import cuda_settings
from strategies.core.errors import BackboneError, DataError, StorageError
from strategies.core.metrics import (
    Evaluation,
    Labels,
    Mistake,
    Scores,
    accuracy,
    calibration_bins,
    calibration_error,
    mean_per_class,
    proportion,
    top_k,
)
from strategies.data.decoding import ImageSource, Pixels
from strategies.data.image import Split, labels_of, shown
from strategies.models.backbone import Backbone
from strategies.models.backbone_record import read_backbone
from strategies.models.body import Body, Pooling, widths
from strategies.models.features import batches, to_input
from strategies.models.network import Network
from strategies.models.reliability.graph import JudgedBody, JudgedNetwork
from strategies.models.reliability.outputs import Outputs
from strategies.models.reliability.reliability import RELIABILITY, Reliability

FORMAT_VERSION = 2
"""2: a record holds the architecture of its network. 1 is read, see `backbone_record`."""
WEIGHTS_FILE, RECORD_FILE = "classifier.safetensors", "classifier.json"
# Exceptions that missing, truncated or modified files lead to.
_DAMAGE = (
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    RuntimeError,
    SafetensorError,
    BackboneError,
    CattrsError,
)


@dataclass(frozen=True)
class ImageClassifier:
    """A body, perhaps cut at a depth, and a linear head, fitted to a dataset.

    Attributes
    ----------
    backbone
        Architecture of the body and preprocessing of its input images.
    depths, pooling
        Depths whose activations the head reads, and how these are pooled.
    strategy, hyperparameters
        Name and hyperparameters of the strategy that fitted it.
    reliability
        How unlike the training images an image is, and prediction sets; None: not calibrated.
    not_calibrated
        Why it has no reliability, as a sentence; None: it has, or that was not recorded.
    """

    classes: tuple[str, ...]
    backbone: Backbone
    depths: tuple[int, ...]
    network: Network
    strategy: str
    hyperparameters: Mapping[str, Any]
    pooling: Pooling = "mean"
    reliability: Reliability | None = None
    not_calibrated: str | None = None

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.network.parameters()).device

    def predict_proba(
        self,
        images: Sequence[ImageSource] | Pixels,
        *,
        n_workers: int = 2,
        precision: torch.dtype = torch.float32,
        eval_crops: EvalCrops | None = None,
    ) -> NDArray[np.float32]:
        """Return the class probabilities of images, (n, classes), float32, rows in their order.

        Columns are in the order of `classes`. An image in memory is preprocessed like a file.

        Parameters
        ----------
        images
            Paths, PIL images, and arrays of uint8 with shape (h, w, 3) or (h, w), of any sizes;
            or one array of images, (n, h, w, 3) or (n, h, w).
        precision
            As in `classify`.
        eval_crops
            Crops of files in memory, which are not read again; None keeps none.

        Raises
        ------
        UnreadableImage
            If one of the files is not a readable image.
        DataError
            If an array is no image, or a single image was given.
        """
        chunks = self._chunks(images, n_workers, eval_crops)
        found = list(self._rows(chunks, precision, with_unknown=False))
        empty = np.empty((0, len(self.classes)), dtype=np.float32)
        return np.concatenate(found) if found else empty

    def predict_outputs(
        self,
        images: Sequence[ImageSource] | Pixels,
        *,
        n_workers: int = 2,
        precision: torch.dtype = torch.float32,
    ) -> Outputs:
        """Return probabilities and unknown scores of images from one pass, as `predict_proba`."""
        chunks = self._chunks(images, n_workers, None)
        found = list(self._rows(chunks, precision, with_unknown=True))
        width = len(self.classes) + (self.reliability is not None)
        rows = np.concatenate(found) if found else np.empty((0, width), dtype=np.float32)
        return Outputs.of(rows, len(self.classes))

    def _chunks(
        self, images: Sequence[ImageSource] | Pixels, n_workers: int, crops: EvalCrops | None
    ) -> Iterator[Pixels]:
        if _is_one_image(images):
            raise DataError("A single image was given. Give a list of images: [image].")
        return batches(list(images), self.backbone, n_workers, eval_crops=crops)

    def output_batches(
        self, chunks: Iterable[Pixels], precision: torch.dtype = torch.float32
    ) -> Iterator[Outputs]:
        """Yield probabilities and unknown scores of preprocessed images, in order.

        A batch that does not fit into memory is passed in parts. On an accelerator, several chunks
        may make one batch. Parameters and errors are those of `classify`.
        """
        for rows in self._rows(chunks, precision, with_unknown=True):
            yield Outputs.of(rows, len(self.classes))

    def _rows(
        self, chunks: Iterable[Pixels], precision: torch.dtype, *, with_unknown: bool
    ) -> Iterator[NDArray[np.float32]]:
        """Yield the probabilities of images, and their unknown scores in a last column."""
        judged = self.judged_network() if with_unknown else None

        def forward(pixels: Pixels) -> Tensor:
            return self._forward(pixels, precision, judged)

        for found in inference_passes(forward, chunks, self.device):
            yield found.numpy()

    def classify(
        self, pixels: Pixels, precision: torch.dtype = torch.float32
    ) -> NDArray[np.float32]:
        """Return the class probabilities of preprocessed images, (n, classes), float32.

        Parameters
        ----------
        pixels
            Outputs of `features.eval_pixels`, uint8 (n, px, px, 3).
        precision
            Autocast type of the forward pass. bfloat16 is faster where the hardware supports it.

        Raises
        ------
        TransferError
            If a single image does not fit into memory.
        """
        return np.concatenate(list(self._rows([pixels], precision, with_unknown=False)))

    def judged_network(self) -> JudgedNetwork | None:
        """Return the network with the unknown score, for one pass; None without reliability.

        Its weights are those of `network`.
        """
        if self.reliability is None:
            return None
        score = self.reliability.module().to(self.device)
        numbers, n_depths = self.reliability.depths.numbers, self.backbone.n_depths
        body = JudgedBody(self.network.body, numbers, n_depths)
        return JudgedNetwork(self.network, body, score).eval()

    @torch.inference_mode()
    def _forward(
        self, pixels: Pixels, precision: torch.dtype, judged: JudgedNetwork | None
    ) -> Tensor:
        """Return a row of every image, on the CPU; the images must fit into memory."""
        self.network.eval()
        autocast = torch.autocast(self.device.type, precision, enabled=precision != torch.float32)
        with cuda_settings(self.device), autocast:
            images = to_input(pixels, self.backbone, self.device)
            if judged is None:
                scores: Tensor = self.network(images)
                return scores.float().softmax(dim=1).cpu()
            scores, unknown = judged(images)
            return torch.cat([scores.softmax(dim=1), unknown[:, None]], dim=1).cpu()

    def save(self, folder: Path) -> None:
        """Write the weights (safetensors) and a record (JSON) to a folder.

        The record holds the architecture and its arguments, so that `load` needs neither the
        folder, hub or package of the backbone's weights nor a network connection.

        Raises
        ------
        StorageError
            If the folder cannot be written.
        """
        weights = bytes_of({k: v.cpu().contiguous() for k, v in self.network.state_dict().items()})
        record = {
            "format_version": FORMAT_VERSION,
            "classes": self.classes,
            "strategy": self.strategy,
            "hyperparameters": dict(self.hyperparameters),
            "depths": self.depths,
            "pooling": self.pooling,
            "not_calibrated": self.not_calibrated,
            "backbone": asdict(self.backbone),
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
            "versions": {name: version(name) for name in ("tl-advisor", "torch", "timm")},
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self.reliability is not None:
                record[RELIABILITY] = self.reliability.save(folder)
            with atomic_file(folder / WEIGHTS_FILE) as file:
                file.write(weights)
            write_json(folder / RECORD_FILE, record)
        except OSError as error:
            raise StorageError(f"The classifier cannot be saved to {folder}: {error}") from error

    @staticmethod
    def load(folder: Path, device: torch.device | None = None) -> "ImageClassifier":
        """Load a classifier from a folder written by `save`. No code in the files is executed.

        Raises
        ------
        StorageError
            If files are missing or damaged, or have another format version.
        """
        try:
            record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
            if record["format_version"] not in (1, FORMAT_VERSION):
                raise StorageError(
                    f"{folder} has classifier format {record['format_version']}; this release "
                    f"reads 1 and {FORMAT_VERSION}. Use the release that saved it."
                )
            depths = tuple(record["depths"])
            backbone = read_backbone(record["backbone"], depths)
            pooling = record.get("pooling", "mean")  # older records pool by the mean
            with torch.random.fork_rng([]):
                network = make_network(
                    backbone.with_random_weights(), depths, len(record["classes"]), pooling
                )
            weights = (folder / WEIGHTS_FILE).read_bytes()
            if hashlib.sha256(weights).hexdigest() != record["weights_sha256"]:
                raise StorageError(
                    f"The SHA-256 of {folder / WEIGHTS_FILE} differs from the one in "
                    f"{RECORD_FILE}. Save the classifier again."
                )
            network.load_state_dict(weights_of(weights), strict=True)
            return ImageClassifier(
                tuple(record["classes"]),
                backbone,
                depths,
                network.to(device or torch.device("cpu")).eval(),
                record["strategy"],
                record["hyperparameters"],
                pooling,
                Reliability.load(folder, record[RELIABILITY]) if RELIABILITY in record else None,
                record.get("not_calibrated"),
            )
        except _DAMAGE as error:
            raise StorageError(f"{folder} contains no readable classifier: {error!r}") from error


def _is_one_image(images: Sequence[ImageSource] | Pixels) -> bool:
    if isinstance(images, np.ndarray):
        return images.ndim == 2 or (images.ndim == 3 and images.shape[2] == 3)
    return isinstance(images, str | Path | Image.Image)


def make_network(
    backbone: Backbone, depths: tuple[int, ...], n_classes: int, pooling: Pooling = "mean"
) -> Network:
    """Build the body up to the deepest of `depths`, with a randomly initialised head."""
    body = Body(backbone.build(), depths, backbone.n_depths, pooling).cut()
    by_depth = widths(backbone.depths, pooling)
    return Network(body, nn.Linear(sum(by_depth[d - 1] for d in depths), n_classes))


def set_head(network: Network, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
    """Set the weight (classes, d) and the bias (classes,) of the network's head."""
    device = network.head.weight.device
    with torch.no_grad():
        network.head.weight.copy_(torch.as_tensor(weight, device=device))
        network.head.bias.copy_(torch.as_tensor(bias, device=device))


def scale_scores(network: Network, factor: float) -> None:
    """Multiply the head's scores by `factor`: the inverse of a temperature."""
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.mul_(factor)


MAX_CONFUSED_PAIRS, MAX_MISTAKES_PER_PAIR = 12, 4
"""Number of most confused class pairs whose mistakes an evaluation lists, and mistakes of each."""


def evaluate(classifier: ImageClassifier, split: Split, *, n_workers: int = 2) -> Evaluation:
    """Evaluate a classifier on labelled images."""
    paths = [image.path for image in split]
    probabilities = classifier.predict_proba(paths, n_workers=n_workers)
    return evaluate_probabilities(probabilities, split, classifier.classes)


def evaluate_probabilities(
    probabilities: Scores, split: Split, classes: tuple[str, ...]
) -> Evaluation:
    """Evaluate predicted probabilities, (n, classes), of labelled images."""
    labels = labels_of(split)
    predicted = probabilities.argmax(axis=1)
    n_classes = len(classes)
    confusion = np.bincount(n_classes * labels + predicted, minlength=n_classes**2)
    table = confusion.reshape(n_classes, n_classes)
    return Evaluation(
        accuracy(predicted, labels),
        top_k(probabilities, labels, 5) if n_classes > 5 else None,
        mean_per_class(predicted, labels),
        calibration_error(probabilities, labels),
        len(labels),
        classes,
        tuple(
            proportion(float(row[c] / row.sum()), int(row.sum())) if row.sum() else None
            for c, row in enumerate(table)
        ),
        tuple(tuple(row) for row in table.tolist()),
        calibration_bins(probabilities, labels),
        _mistakes(split, classes, probabilities, labels),
    )


def _mistakes(
    split: Split, classes: Sequence[str], probabilities: Scores, labels: Labels
) -> tuple[Mistake, ...]:
    """List the most confident mistakes of the most confused pairs of classes."""
    predicted = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    wrong = predicted != labels
    by_pair: dict[tuple[int, int], list[int]] = {}
    for row in np.flatnonzero(wrong)[np.argsort(-confidence[wrong])]:
        by_pair.setdefault((int(labels[row]), int(predicted[row])), []).append(int(row))
    pairs = sorted(by_pair.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    return tuple(
        Mistake(shown(split[row].path), classes[label], classes[guess], float(confidence[row]))
        for (label, guess), rows in pairs[:MAX_CONFUSED_PAIRS]
        for row in rows[:MAX_MISTAKES_PER_PAIR]
    )
