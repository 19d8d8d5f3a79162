"""Training loop: train a network by a recipe, with validation, pruning and checkpoints.

Read `train` first. `TrainingLoop` holds everything that changes during a run, so that it can be
saved to a checkpoint and resumed. The inputs come from `dataloader` or `frozen_activations`.
"""

import pickle
from collections.abc import Mapping

import torch
from torch import Tensor

from strategies.core.allocator import more_micro_batches
from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime, TransferError
from strategies.core.metrics import Scores
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.models.network import Network
from strategies.models.stages import stages
from strategies.training.checkpoint import Checkpoint, identity_of
from strategies.training.data_parallel import SINGLE_PROCESS, DataParallelGroup, launch
from strategies.training.dataloader import ImageInputs, Inputs
from strategies.training.frozen_activations import make_inputs
from strategies.training.loop import TrainingLoop
from strategies.training.optimiser import NO_TIME, ProgressSchedule
from strategies.training.recipe import Recipe


def train(
    network: Network, dataset: Dataset, backbone: Backbone, recipe: Recipe, ctx: RunContext
) -> Scores | None:
    """Train a network in place; return its validation scores, (n, classes), or None without val.

    The result has the weights of the last round, unless an earlier round (the starting point is
    round 0) is significantly better on validation: few validation images cannot distinguish
    rounds. The learning rate follows the share of steps or of time used, whichever is larger, so
    it decays fully even if the deadline ends the run. The state is saved every round if
    there is a checkpoint file. An interrupted run resumes from it and ends with the same weights.

    Raises
    ------
    OutOfTime
        If no step fits before the deadline.
    TrainingDiverged
        If the loss is not finite even after `MAX_LR_CUTS` cuts of the learning rate.
    TransferError
        If the device fails, or has too little memory for a single image.
    """
    network.to(ctx.device).to(memory_format=torch.channels_last)
    stage = stages(network.body.net, backbone)
    inputs = make_inputs(network, stage, dataset, backbone, recipe, ctx)
    if ctx.training.n_gpus > 1 and inputs.kind == ImageInputs.kind:
        state, scores = _train_on_gpus(network, dataset, backbone, recipe, ctx)
    else:
        if ctx.training.n_gpus > 1:
            ctx.reporter.on_note("Cached frozen stages: one GPU trains the rest of the network.")
        state, scores = _train(inputs, stage, dataset, backbone, recipe, ctx)
    network.load_state_dict(state, strict=False)  # cached frozen stages are not in it
    network.eval()
    if checkpoint := _checkpoint(inputs, dataset, backbone, recipe, ctx):
        checkpoint.remove()
    return scores if dataset.val else None


def _train_on_gpus(
    network: Network, dataset: Dataset, backbone: Backbone, recipe: Recipe, ctx: RunContext
) -> tuple[Mapping[str, Tensor], Scores]:
    """Run `_train` in a process per GPU. If one is out of memory, all start again.

    They resume from the checkpoint, if there is one, with twice as many micro-batches.
    """
    n_gpus, n_parts = ctx.training.n_gpus, 1
    least = min(len(DataParallelGroup(i, n_gpus).shard(recipe.batch_size)) for i in range(n_gpus))
    if not least:
        raise TransferError(
            f"{n_gpus} GPUs: a batch of {recipe.batch_size} images is too small for them. Use "
            f"{(recipe.batch_size + 1) // 2} or less."
        )
    pickled = pickle.dumps(network.cpu())  # bytes, so that no memory is shared
    while True:
        try:
            found = launch(_train_rank, (pickled, dataset, backbone, recipe, n_parts), ctx)
        except RuntimeError as error:
            n_parts = more_micro_batches(n_parts, least, error, ctx.device)
        else:
            network.to(ctx.device)
            return found


def _train_rank(
    dp_group: DataParallelGroup,
    ctx: RunContext,
    pickled: bytes,
    dataset: Dataset,
    backbone: Backbone,
    recipe: Recipe,
    n_parts: int,
) -> tuple[Mapping[str, Tensor], Scores]:
    """Run `_train` in the process of one rank."""
    network: Network = pickle.loads(pickled)  # from the process that started this one
    network.to(ctx.device).to(memory_format=torch.channels_last)
    stage = stages(network.body.net, backbone)
    inputs = ImageInputs(network, dataset, backbone, recipe, ctx, dp_group)
    state, scores = _train(inputs, stage, dataset, backbone, recipe, ctx, dp_group, n_parts)
    return {k: v.cpu() for k, v in state.items()}, scores


def _train(
    inputs: Inputs,
    stage: Mapping[str, int],
    dataset: Dataset,
    backbone: Backbone,
    recipe: Recipe,
    ctx: RunContext,
    dp_group: DataParallelGroup = SINGLE_PROCESS,
    n_parts: int = 1,
) -> tuple[Mapping[str, Tensor], Scores]:
    """Run the epoch loop; return the weights and the validation scores. Only rank 0 validates."""
    checkpoint = _checkpoint(inputs, dataset, backbone, recipe, ctx)
    is_first = dp_group.rank == 0
    loop = TrainingLoop(inputs, stage, dataset, recipe, ctx, dp_group, n_parts)
    if not loop.restore(checkpoint) and is_first:
        loop.validate()
    loop.loss = dp_group.parallel(loop.loss, loop.fixed_norms)  # after all ranks have restored
    schedule = ProgressSchedule(recipe, ctx, loop.step, loop.progress, loop.val_s)
    loop.rounds = loop.affordable_rounds(schedule.seconds)
    for rows, images in inputs.batches(loop.step):
        loop.progress = dp_group.broadcast(schedule.progress(loop.step))
        if loop.step == 0 and loop.progress >= 1:
            raise OutOfTime(NO_TIME)
        if loop.end_of_round():
            loop.cut_rate_after_failure()
            if is_first:
                accuracy = loop.validate()
                if checkpoint:
                    checkpoint.write(loop.snapshot())
                ctx.reporter.on_epoch(loop.round, accuracy)
        if loop.progress >= 1:
            break
        with ctx.device_settings():
            loop.take_step(rows, images)
    return loop.select()


def _checkpoint(
    inputs: Inputs, dataset: Dataset, backbone: Backbone, recipe: Recipe, ctx: RunContext
) -> Checkpoint | None:
    if ctx.training.checkpoint is None:
        return None
    identity = identity_of(dataset, backbone, recipe, ctx)
    return Checkpoint(ctx.training.checkpoint, f"{identity} {inputs.kind}")
