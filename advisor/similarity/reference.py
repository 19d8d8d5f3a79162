"""References: statistics of a network on images of its pretraining domain.

They are shipped with the program or measured on the user's own images.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as tensors_of
from safetensors.numpy import save as bytes_of

from advisor.similarity.bn_shift import SourceMoments
from advisor.similarity.source_head import CONFIDENT, predict
from strategies.core.cache import Rows
from strategies.core.context import RunContext
from strategies.core.errors import DataError, StorageError
from strategies.data.dataset import LabelledImage
from strategies.data.decoding import known_suffixes
from strategies.data.inspection import read_images
from strategies.models.backbone import Backbone
from strategies.models.features import Features, extract_features

FORMAT_VERSION = 1
FOLDER = Path(__file__).parent / "references"
MIN_IMAGES, MAX_IMAGES = 200, 1000
"""Number of images of a reference. With fewer, the error of the moments looks like a shift."""
_HEADER_BYTES = 8


@dataclass(frozen=True)
class Quantised:
    """Matrix (n, d) quantised to 256 levels per column: ``low + levels * step``, (d,) each."""

    levels: NDArray[np.uint8]
    low: Rows
    step: Rows

    @classmethod
    def of(cls, values: Rows) -> "Quantised":
        """Round every column to 256 levels between its minimum and its maximum."""
        low = values.min(axis=0)
        step = np.maximum((values.max(axis=0) - low) / np.float32(255), np.float32(1e-8))
        return cls(np.round((values - low) / step).astype(np.uint8), low, step)

    def values(self) -> Rows:
        """Return the matrix, dequantised."""
        return self.levels.astype(np.float32) * self.step + self.low


@dataclass(frozen=True)
class Reference:
    """Statistics of one network on images of its pretraining domain.

    Attributes
    ----------
    name
        Description of the images, shown to the user.
    backbone
        Name of the backbone.
    digest
        Hash of the weights. A reference is valid for these weights only.
    moments
        Moments at every BatchNorm layer by input size; empty for a network without BatchNorm.
    features
        Penultimate activations (n, d) by input size.
    confident_share
        Share of confident predictions of the pretrained head, by input size.
    provenance
        How the statistics were made.
    """

    name: str
    backbone: str
    digest: str
    moments: Mapping[int, SourceMoments]
    features: Mapping[int, Quantised]
    confident_share: Mapping[int, float]
    provenance: Mapping[str, str]

    def source(self, input_px: int) -> SourceMoments | None:
        """Return the moments at an input size, or None without BatchNorm.

        They are interpolated between the measured sizes, in the logarithm of the size. Beyond the
        measured sizes, those of the nearest one are returned.
        """
        if not self.moments:
            return None
        sizes = sorted(self.moments)
        at = float(np.interp(np.log(input_px), np.log(sizes), np.arange(len(sizes))))
        low, high = self.moments[sizes[int(at)]], self.moments[sizes[int(np.ceil(at))]]
        share = at - int(at)
        return SourceMoments(
            (1 - share) * low.mean + share * high.mean,
            (1 - share) * low.variance + share * high.variance,
        )

    def rows(self, input_px: int) -> Rows | None:
        """Return penultimate activations at exactly this input size, or None."""
        stored = self.features.get(input_px)
        return None if stored is None else stored.values()


def make_reference(
    name: str, backbone: Backbone, features: Features, provenance: Mapping[str, str]
) -> Reference:
    """Make a reference at one input size from features of images of the pretraining domain."""
    px, pooled = backbone.input_px, features.pooled[-1]
    moments = {}
    if features.moments is not None:
        mean = features.moments.mean.mean(axis=0, dtype=np.float64)
        square = features.moments.square.mean(axis=0, dtype=np.float64)
        moments[px] = SourceMoments(mean, square - mean**2)
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
    """Measure a reference on the user's own images of the pretraining domain.

    Parameters
    ----------
    folder
        Folder of images, with or without subfolders. Of more than `MAX_IMAGES` images, a random
        sample is used.

    Raises
    ------
    DataError
        If fewer than `MIN_IMAGES` images are readable.
    """
    images = list_images(folder, ctx.n_workers)
    if len(images) < MIN_IMAGES:
        raise DataError(
            f"--reference {folder} has {len(images)} readable images; a reference needs at "
            f"least {MIN_IMAGES}. Give a folder of images like those that the network was "
            "pretrained on."
        )
    features = extract_features(images, backbone, ctx)
    about = {"source": f"--reference {folder}"}
    return make_reference(f"{len(images)} images of {folder.name}", backbone, features, about)


def list_images(folder: Path, n_workers: int) -> list[LabelledImage]:
    """Return the readable images below a folder without duplicates, at most `MAX_IMAGES`."""
    suffixes = known_suffixes()
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    chosen = np.random.default_rng(0).permutation(len(files))[:MAX_IMAGES]
    images, _ = read_images([(files[i], 0) for i in np.sort(chosen)], n_workers)
    return list({p.digest: p for p in images}.values())


def shipped_reference(backbone: Backbone) -> Reference | None:
    """Return the reference that this program ships for exactly these weights, or None."""
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
    """Read a reference that `write_reference` wrote.

    Raises
    ------
    StorageError
        If the file is missing, damaged, or of another format version.
    """
    try:
        data = path.read_bytes()
        tensors = tensors_of(data)
        end = _HEADER_BYTES + int.from_bytes(data[:_HEADER_BYTES], "little")
        about = json.loads(json.loads(data[_HEADER_BYTES:end])["__metadata__"]["about"])
        version = about["format_version"]
        if version != FORMAT_VERSION:
            raise StorageError(
                f"{path} has format {version}; this program reads format {FORMAT_VERSION}."
            )
        return Reference(
            about["name"],
            about["backbone"],
            about["digest"],
            {
                px: SourceMoments(
                    mean.astype(np.float64), tensors[f"variance.{px}"].astype(np.float64)
                )
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


def _by_size(tensors: Mapping[str, NDArray[Any]], kind: str) -> list[tuple[int, NDArray[Any]]]:
    """Return the tensors of a kind with their input sizes; names are "kind.size"."""
    return [(int(k.split(".")[1]), v) for k, v in tensors.items() if k.split(".")[0] == kind]
