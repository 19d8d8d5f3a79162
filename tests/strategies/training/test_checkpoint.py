"""Checkpoints: an interrupted training run resumes and ends with the same weights."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from strategies.core.context import RunContext, TrainingResources
from strategies.core.errors import StorageError
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.models.classifier import make_network
from strategies.models.network import Network
from strategies.training.checkpoint import Checkpoint, Snapshot, identity_of
from strategies.training.loop import ROUNDS, TrainingLoop
from strategies.training.recipe import Recipe
from strategies.training.trainer import train

CPU = torch.device("cpu")
RECIPE = Recipe(14, 0.01, batch_size=8, batch_norm="trained", hflip=True, blend=0.7, ema=0.5)


@pytest.fixture
def checkpointed(ctx: RunContext, tmp_path: Path) -> RunContext:
    return replace(ctx, training=TrainingResources(tmp_path / "run" / "training.safetensors"))


def _trained(
    dataset: Dataset, backbone: Backbone, recipe: Recipe, ctx: RunContext
) -> dict[str, Tensor]:
    with ctx.seeded():
        network: Network = make_network(backbone, (backbone.n_depths,), dataset.n_classes)
        train(network, dataset, backbone, recipe, ctx)
    return network.state_dict()


def _interrupt_before(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Interrupt the step of this number, once; record the steps that are taken."""
    taken: list[int] = []
    step = TrainingLoop.take_step
    remaining = [1]

    def record(loop: TrainingLoop, *args: object) -> None:
        if loop.step == number and remaining:
            remaining.pop()
            raise KeyboardInterrupt
        taken.append(loop.step)
        step(loop, *args)

    monkeypatch.setattr(TrainingLoop, "take_step", record)
    return taken


@pytest.mark.parametrize(
    ("recipe", "times"),
    [
        (RECIPE, 5),
        (replace(RECIPE, frozen_stages=2), 2),
        (replace(RECIPE, optimiser="sgd", mixup=0.3, cutmix=1.0), 2),
    ],
    ids=["full", "frozen prefix", "sgd and mixing"],
)
def test_a_run_interrupted_at_any_step_ends_with_the_same_weights(
    tiny: Backbone,
    small_dataset: Dataset,
    checkpointed: RunContext,
    monkeypatch: pytest.MonkeyPatch,
    recipe: Recipe,
    times: int,
) -> None:
    distant = replace(checkpointed, deadline_s=time.monotonic() + 1e4)
    expected = _trained(small_dataset, tiny, recipe, distant)
    for number in np.random.default_rng(0).choice(recipe.steps, size=times, replace=False):
        with monkeypatch.context() as patch:
            taken = _interrupt_before(patch, int(number))
            with pytest.raises(KeyboardInterrupt):
                _trained(small_dataset, tiny, recipe, distant)
            found = _trained(small_dataset, tiny, recipe, distant)

        assert all(torch.equal(found[name], value) for name, value in expected.items())
        steps_per_round = int(np.ceil(recipe.steps / ROUNDS))
        assert len(taken) - recipe.steps <= steps_per_round
        assert not list(distant.training.checkpoint.parent.iterdir())


@pytest.mark.parametrize(
    "other",
    [
        lambda dataset, recipe, ctx: (dataset, replace(recipe, lr=0.02), ctx),
        lambda dataset, recipe, ctx: (dataset, recipe, replace(ctx, seed=1)),
        lambda dataset, recipe, ctx: (replace(dataset, train=dataset.train[:-1]), recipe, ctx),
    ],
    ids=["recipe", "seed", "images"],
)
def test_another_training_run_does_not_resume_from_the_checkpoint(
    tiny: Backbone,
    small_dataset: Dataset,
    checkpointed: RunContext,
    monkeypatch: pytest.MonkeyPatch,
    other: Callable[..., tuple[Dataset, Recipe, RunContext]],
) -> None:
    dataset, recipe, ctx = other(small_dataset, RECIPE, checkpointed)
    expected = _trained(dataset, tiny, recipe, replace(ctx, training=TrainingResources()))
    _interrupt_before(monkeypatch, 8)
    with pytest.raises(KeyboardInterrupt):
        _trained(small_dataset, tiny, RECIPE, checkpointed)
    assert checkpointed.training.checkpoint.exists()

    found = _trained(dataset, tiny, recipe, ctx)

    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "text"])
def test_a_damaged_checkpoint_is_treated_as_absent(tmp_path: Path, damage: str) -> None:
    checkpoint = Checkpoint(tmp_path / "c", "me")
    checkpoint.write(Snapshot({"a": torch.arange(50.0)}, {"step": 3}))
    data = bytearray(checkpoint.path.read_bytes())
    if damage == "one bit":
        data[-7] ^= 1
    damaged = {"truncated": data[:-9], "one bit": data, "empty": b"", "text": b"hello there"}
    checkpoint.path.write_bytes(damaged[damage])

    assert checkpoint.read(CPU) is None


def test_a_snapshot_is_read_as_it_was_written(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "folder" / "c", "me")
    tensors = {
        "a/b": torch.randn(3, 4).to(torch.bfloat16),
        "scalar": torch.tensor(7),
        "none": torch.zeros(0, dtype=torch.bool),
    }
    checkpoint.write(Snapshot(tensors, {"step": 3, "progress": 0.1 + 0.2}))

    found = checkpoint.read(CPU)

    assert found is not None
    assert found.values == {"step": 3, "progress": 0.1 + 0.2}
    assert all(torch.equal(found.tensors[name], value) for name, value in tensors.items())
    assert Checkpoint(checkpoint.path, "someone else").read(CPU) is None
    checkpoint.remove()
    assert checkpoint.read(CPU) is None


def test_a_folder_that_cannot_be_written_raises_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        Checkpoint(tmp_path / "file" / "c", "me").write(Snapshot({}, {}))


def test_the_deadline_is_not_part_of_a_training_runs_identity(
    tiny: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    one = identity_of(small_dataset, tiny, RECIPE, ctx)

    assert identity_of(small_dataset, tiny, RECIPE, ctx.with_deadline(1e9)) == one
    assert identity_of(small_dataset, tiny, RECIPE, replace(ctx, seed=5)) != one
