"""A training written to disk, so that it can go on where it was interrupted."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as bytes_of
from torch import Tensor

from strategies.core.context import RunContext
from strategies.core.errors import StorageError
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.training.recipe import Recipe

_FORMAT = 2
# What files that are missing, cut short or no checkpoints at all lead to.
_DAMAGE = (OSError, SafetensorError, ValueError, LookupError, TypeError)


@dataclass(frozen=True)
class Snapshot:
    """All that a training needs to go on: tensors by name, and plain values for JSON."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


class Checkpoint:
    """One file: safetensors, with the plain values as JSON in its metadata. No pickle.

    What belongs to another training (recipe, images, backbone, seed), or is damaged, counts as
    absent and is replaced by the next `write`.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity = path, identity

    def read(self, device: torch.device) -> Snapshot | None:
        """Return what was written last, or None."""
        try:
            with safe_open(self.path, framework="pt", device="cpu") as file:
                about = json.loads(file.metadata()["about"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if about["identity"] != self.identity or about["digest"] != _digest(tensors):
                return None
            values: dict[str, Any] = about["values"]
        except _DAMAGE:
            return None
        return Snapshot({name: t.to(device) for name, t in tensors.items()}, values)

    def write(self, snapshot: Snapshot) -> None:
        """Write all or nothing: a reader sees the old file or the whole new one.

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
        part = self.path.with_name(self.path.name + ".part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(bytes_of(tensors, metadata={"about": json.dumps(about)}))
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.path)
        except OSError as error:
            raise StorageError(f"The checkpoint {self.path} cannot be written: {error}") from error

    def remove(self) -> None:
        """Delete the file of a training that is done."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"The checkpoint {self.path} cannot be deleted: {error}") from error


def identity_of(dataset: Dataset, backbone: Backbone, recipe: Recipe, ctx: RunContext) -> str:
    """Name a training by everything that decides what it computes, the deadline left out."""
    parts = (
        [_FORMAT, torch.__version__, asdict(recipe), asdict(backbone), dataset.classes],
        [ctx.seed, ctx.device.type, str(ctx.precision)],
        [[(p.digest, p.label) for p in split] for split in (dataset.train, dataset.val)],
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
