"""How a network answers to images of its own pretraining domain: shipped, or the user's own."""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as tensors_of
from safetensors.numpy import save as bytes_of

from advisor.similarity.bn_shift import Source
from advisor.similarity.source_head import CONFIDENT, predict
from strategies.core.cache import Rows
from strategies.core.context import RunContext
from strategies.core.errors import DataError, StorageError
from strategies.data.dataset import LabelledImage
from strategies.data.decoding import UnreadableImage, decode_image, known_suffixes
from strategies.models.backbone import Backbone
from strategies.models.features import Features, extract_features

FORMAT_VERSION = 1
FOLDER = Path(__file__).parent / "references"
MIN_IMAGES, MOST_IMAGES = 200, 1000
"""Fewer images would blur a domain's moments enough to be taken for a shift."""
_HEADER_BYTES = 8


@dataclass(frozen=True)
class Quantised:
    """A matrix (n, d) in 256 steps a column, from `low` in steps of `step`, (d,) each."""

    levels: NDArray[np.uint8]
    low: Rows
    step: Rows

    @classmethod
    def of(cls, values: Rows) -> "Quantised":
        """Round every column to 256 steps between its least and its largest value."""
        low = values.min(axis=0)
        step = np.maximum((values.max(axis=0) - low) / np.float32(255), np.float32(1e-8))
        return cls(np.round((values - low) / step).astype(np.uint8), low, step)

    def values(self) -> Rows:
        """Return the matrix."""
        return self.levels.astype(np.float32) * self.step + self.low


@dataclass(frozen=True)
class Reference:
    """What pretraining images look like to one network.

    Attributes
    ----------
    name
        What the images are, for people.
    digest
        Of the weights. A reference says nothing about other weights.
    moments
        Moments at every BatchNorm layer by input size; empty for a network without BatchNorm.
    features
        Penultimate activations (n, d) by input size.
    confident_share
        Share of predictions that the old head is confident of, by input size.
    provenance
        How the numbers came about.
    """

    name: str
    backbone: str
    digest: str
    moments: Mapping[int, Source]
    features: Mapping[int, Quantised]
    confident_share: Mapping[int, float]
    provenance: Mapping[str, str]

    def source(self, input_px: int) -> Source | None:
        """Moments at an input size: between the measured ones by the logarithm of the size.

        Beyond the measured sizes, the nearest one's.
        """
        if not self.moments:
            return None
        sizes = sorted(self.moments)
        at = float(np.interp(np.log(input_px), np.log(sizes), np.arange(len(sizes))))
        low, high = self.moments[sizes[int(at)]], self.moments[sizes[int(np.ceil(at))]]
        share = at - int(at)
        return Source(
            (1 - share) * low.mean + share * high.mean,
            (1 - share) * low.variance + share * high.variance,
        )

    def rows(self, input_px: int) -> Rows | None:
        """Penultimate activations at exactly this input size, or None."""
        stored = self.features.get(input_px)
        return None if stored is None else stored.values()


def make_reference(
    name: str, backbone: Backbone, features: Features, provenance: Mapping[str, str]
) -> Reference:
    """Turn features of images of the pretraining domain into a reference at one input size."""
    px, pooled = backbone.input_px, features.pooled[-1]
    moments = {}
    if features.moments is not None:
        mean = features.moments.mean.mean(axis=0, dtype=np.float64)
        square = features.moments.square.mean(axis=0, dtype=np.float64)
        moments[px] = Source(mean, square - mean**2)
    confident = {}
    if features.source_head is not None:
        confidence = predict(features.source_head, pooled).confidence
        confident[px] = float(np.mean(confidence >= CONFIDENT))
    return Reference(
        name,
        backbone.name,
        backbone.digest,
        moments,
        {px: Quantised.of(pooled)},
        confident,
        {"images": str(len(pooled)), **provenance},
    )


def build_reference(folder: Path, backbone: Backbone, ctx: RunContext) -> Reference:
    """Measure a user's own images of the domain that the network was pretrained on.

    Parameters
    ----------
    folder
        Images, with or without subfolders; at most `MOST_IMAGES` of them are taken at random.

    Raises
    ------
    DataError
        If there are fewer than `MIN_IMAGES` readable ones.
    """
    images = images_below(folder, ctx.n_workers)
    if len(images) < MIN_IMAGES:
        raise DataError(
            f"--reference {folder} has {len(images)} readable images; a reference needs at "
            f"least {MIN_IMAGES}. Give a folder of images like those that the network was "
            "pretrained with."
        )
    features = extract_features(images, backbone, ctx)
    about = {"source": f"--reference {folder}"}
    return make_reference(f"{len(images)} images of {folder.name}", backbone, features, about)


def images_below(folder: Path, n_workers: int) -> list[LabelledImage]:
    """List the readable images below a folder, each content once, at most `MOST_IMAGES`."""
    suffixes = known_suffixes()
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    chosen = np.random.default_rng(0).permutation(len(files))[:MOST_IMAGES]
    with ThreadPoolExecutor(n_workers) as pool:
        read = pool.map(_read_image, [files[i] for i in np.sort(chosen)])
        return list({p.digest: p for p in read if p is not None}.values())


def _read_image(path: Path) -> LabelledImage | None:
    """Return an image, or None where the file cannot be read: a reference can spare it."""
    try:
        data = path.read_bytes()
        image = decode_image(data)
    except (OSError, UnreadableImage):
        return None
    return LabelledImage(path, 0, hashlib.sha256(data).hexdigest(), image.width, image.height)


def shipped_reference(backbone: Backbone) -> Reference | None:
    """Return the reference that comes with this program for exactly these weights, or None."""
    path = FOLDER / f"{backbone.name}.safetensors"
    if ":" in backbone.name or not path.exists():
        return None
    reference = read_reference(path)
    return reference if reference.digest == backbone.digest else None


def write_reference(reference: Reference, path: Path) -> None:
    """Store a reference as one safetensors file."""
    tensors: dict[str, NDArray[Any]] = {}
    for px, source in reference.moments.items():
        tensors[f"mean.{px}"] = source.mean.astype(np.float16)
        tensors[f"variance.{px}"] = source.variance.astype(np.float16)
    for px, stored in reference.features.items():
        tensors[f"levels.{px}"] = stored.levels
        tensors[f"low.{px}"], tensors[f"step.{px}"] = stored.low, stored.step
    about = {
        "format_version": FORMAT_VERSION,
        "name": reference.name,
        "backbone": reference.backbone,
        "digest": reference.digest,
        "confident_share": {str(k): v for k, v in reference.confident_share.items()},
        "provenance": dict(reference.provenance),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes_of(tensors, {"about": json.dumps(about)}))


def read_reference(path: Path) -> Reference:
    """Read what `write_reference` stored.

    Raises
    ------
    StorageError
        If the file is missing, damaged, or of another version.
    """
    try:
        data = path.read_bytes()
        tensors = tensors_of(data)
        end = _HEADER_BYTES + int.from_bytes(data[:_HEADER_BYTES], "little")
        about = json.loads(json.loads(data[_HEADER_BYTES:end])["__metadata__"]["about"])
        version = about["format_version"]
        if version != FORMAT_VERSION:
            raise StorageError(
                f"{path} has format {version}; this version reads {FORMAT_VERSION}."
            )
        return Reference(
            about["name"],
            about["backbone"],
            about["digest"],
            {
                px: Source(mean.astype(np.float64), tensors[f"variance.{px}"].astype(np.float64))
                for px, mean in _by_size(tensors, "mean")
            },
            {
                px: Quantised(levels, tensors[f"low.{px}"], tensors[f"step.{px}"])
                for px, levels in _by_size(tensors, "levels")
            },
            {int(k): v for k, v in about["confident_share"].items()},
            about["provenance"],
        )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise StorageError(f"{path} cannot be read as a reference: {error}") from error


def _by_size(tensors: Mapping[str, NDArray[Any]], what: str) -> list[tuple[int, NDArray[Any]]]:
    return [(int(k.split(".")[1]), v) for k, v in tensors.items() if k.split(".")[0] == what]
