"""Checkpoints: save the state of a training run to disk, so that it can be resumed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as bytes_of
from torch import Tensor

from strategies.core.atomic_files import atomic_file
from strategies.core.context import RunContext
from strategies.core.errors import StorageError
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.training.recipe import Recipe

_FORMAT = 4
# Exceptions raised for missing, truncated or invalid checkpoint files.
_READ_ERRORS = (OSError, SafetensorError, ValueError, LookupError, TypeError)


@dataclass(frozen=True)
class Snapshot:
    """State of a training run: tensors by name, and JSON-serialisable values by name."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


class Checkpoint:
    """Checkpoint file: safetensors, with the values as JSON in its metadata. No pickle.

    A file that is damaged, or belongs to another training run (recipe, images, backbone, seed),
    is treated as absent and is replaced by the next `write`.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity = path, identity

    def read(self, device: torch.device) -> Snapshot | None:
        """Return the last snapshot; None if there is no valid one of this training run."""
        try:
            with safe_open(self.path, framework="pt", device="cpu") as file:
                about = json.loads(file.metadata()["about"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if about["identity"] != self.identity or about["digest"] != _digest(tensors):
                return None
            values: dict[str, Any] = about["values"]
        except _READ_ERRORS:
            return None
        return Snapshot({name: t.to(device) for name, t in tensors.items()}, values)

    def write(self, snapshot: Snapshot) -> None:
        """Write the checkpoint atomically: a reader sees either the old file or the new one.

        Raises
        ------
        StorageError
            If the file cannot be written.
        """
        tensors = {  # copies: safetensors refuses tensors that share memory
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in snapshot.tensors.items()
        }
        about = {
            "identity": self.identity,
            "digest": _digest(tensors),
            "values": dict(snapshot.values),
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(self.path) as file:
                file.write(bytes_of(tensors, metadata={"about": json.dumps(about)}))
        except OSError as error:
            raise StorageError(f"The checkpoint {self.path} cannot be written: {error}") from error

    def remove(self) -> None:
        """Delete the checkpoint after the training run has finished.

        Raises
        ------
        StorageError
            If the file cannot be deleted.
        """
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"The checkpoint {self.path} cannot be deleted: {error}") from error


def identity_of(dataset: Dataset, backbone: Backbone, recipe: Recipe, ctx: RunContext) -> str:
    """Return a hash of everything that determines a training run's result, except the deadline."""
    parts = (
        [_FORMAT, torch.__version__, asdict(recipe), asdict(backbone), dataset.classes],
        [ctx.seed, ctx.device.type, str(ctx.precision)],
        [[(p.digest, p.label) for p in split] for split in (dataset.train, dataset.val)],
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
