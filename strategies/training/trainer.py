"""The only epoch loop: how a network is trained by a recipe.

Read `train` first. `_TrainingLoop` holds all that changes while it runs, so that it can be written down
(`checkpoint`) and taken up again; where the inputs come from is the business of `inputs`.
"""

import contextlib
import copy
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from strategies.core.allocator import check_short_memory
from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime, TrainingDiverged, TransferError
from strategies.core.metrics import Scores
from strategies.data.dataset import Dataset, labels_of
from strategies.kernels.bn_folding import FoldedNorms, Norms, norms_to_fold
from strategies.kernels.depthwise import QuickDepthwise, training_precision
from strategies.models.backbone import Backbone, stages
from strategies.models.network import Network
from strategies.training.checkpoint import Checkpoint, Snapshot, identity_of
from strategies.training.data_parallel import DataParallelGroup, start_group
from strategies.training.dataloader import ImageInputs, Inputs
from strategies.training.frozen_activations import make_inputs
from strategies.training.mixup import mixed
from strategies.training.optimiser import (
    NO_TIME,
    ProgressSchedule,
    freeze,
    l2_sp_step,
    make_optimiser,
    restore_optimiser,
    warmup_cosine,
)
from strategies.training.recipe import Recipe

ROUNDS = 6
"""A training is judged on validation so often, each a call of ``on_epoch``; less often if short."""
JUDGED_SHARE = 0.25
"""Share of a deadline that the rounds before the last one may take to be judged."""
CLEARLY = 1.64
"""Standard errors by which an earlier round must beat the last one on validation to be kept instead."""
_WRITTEN = ("step", "round", "brakes", "progress", "micro_batch", "judging_s")
BRAKES = 3
"""How often the learning rate is halved because a loss was not finite, before giving up."""


def train(
    network: Network, dataset: Dataset, backbone: Backbone, recipe: Recipe, ctx: RunContext
) -> Scores | None:
    """Train a network in place; return its scores of the validation images, (n, classes), if any.

    It ends with its last weights, unless those of an earlier round (the starting point is round
    0) were clearly better on validation: a few validation images cannot tell rounds apart. The learning rate
    follows the larger of the shares of steps and of time used, so a training that meets its
    deadline has still cooled down. With ``ctx.checkpoint`` it is written down every round, goes
    on from there after an interruption, and ends with the same weights as without one.

    Raises
    ------
    OutOfTime
        If not one step fits before the deadline.
    TrainingDiverged
        If the loss is not finite again after `BRAKES` cuts of the learning rate.
    TransferError
        If the device fails, or has too little memory for a single image.
    """
    network.to(ctx.device).to(memory_format=torch.channels_last)
    stage = stages(network.body.net, backbone)
    freeze(network.body, stage, recipe)
    found = make_inputs(network, stage, dataset, backbone, recipe, ctx)
    with _dp_group(found, dataset, backbone, recipe, ctx) as dp_group:
        inputs = found.shared(dp_group)
        checkpoint = _checkpoint(inputs, dataset, backbone, recipe, ctx)
        learner = _TrainingLoop(inputs, stage, dataset, recipe, ctx, dp_group)
        resumed = learner.restore(checkpoint)
        if not resumed:
            learner.judge()
        schedule = ProgressSchedule(recipe, ctx, learner.step, learner.progress, learner.judging_s)
        learner.rounds = learner.affordable_rounds(schedule.seconds)
        for rows, images in inputs.batches(learner.step):
            learner.progress = dp_group.agree(schedule.progress(learner.step))
            if learner.step == 0 and learner.progress >= 1:
                raise OutOfTime(NO_TIME)
            if learner.round_is_over():
                accuracy = learner.judge()
                if checkpoint:
                    checkpoint.write(learner.snapshot())
                ctx.on_epoch(learner.round, accuracy)
            if learner.progress >= 1:
                break
            learner.take_step(rows, images)
        state, scores = learner.chosen()
        network.load_state_dict(state, strict=False)  # frozen prefixes are not trained
    network.eval()
    if checkpoint:
        checkpoint.remove()
    return scores if dataset.val else None


@contextlib.contextmanager
def _dp_group(
    inputs: Inputs, dataset: Dataset, backbone: Backbone, recipe: Recipe, ctx: RunContext
) -> Iterator[DataParallelGroup]:
    """Start the other processes that the context asks for, where there is enough to share."""
    if ctx.n_processes > 1 and inputs.kind != ImageInputs.kind:
        ctx.on_note("What follows the frozen stages is trained by one process, in spite of --ddp.")
        ctx = replace(ctx, n_processes=1)
    network = copy.deepcopy(inputs.network).cpu() if ctx.n_processes > 1 else None
    job = (pickle.dumps(network), dataset, backbone, recipe)  # bytes: no memory is shared
    with start_group(_help, job, ctx, recipe.batch_size) as dp_group:
        yield dp_group


def _help(
    dp_group: DataParallelGroup,
    ctx: RunContext,
    pickled: bytes,
    dataset: Dataset,
    backbone: Backbone,
    recipe: Recipe,
) -> None:
    """Do in another process what `train` does, but for all that rank 0 does alone."""
    network: Network = pickle.loads(pickled)  # from the process that started this one
    network.to(ctx.device).to(memory_format=torch.channels_last)
    inputs = ImageInputs(network, dataset, backbone, recipe, ctx, dp_group)
    stage = stages(network.body.net, backbone)
    learner = _TrainingLoop(inputs, stage, dataset, recipe, ctx, dp_group)
    learner.restore(_checkpoint(inputs, dataset, backbone, recipe, ctx))
    for rows, images in inputs.batches(learner.step):
        learner.progress = dp_group.agree(learner.progress)
        if learner.progress >= 1:
            break
        learner.take_step(rows, images)


def _checkpoint(
    inputs: Inputs, dataset: Dataset, backbone: Backbone, recipe: Recipe, ctx: RunContext
) -> Checkpoint | None:
    if ctx.checkpoint is None:
        return None
    identity = identity_of(dataset, backbone, recipe, ctx)
    return Checkpoint(ctx.checkpoint, f"{identity} {inputs.kind}")


class _TrainingLoop:
    """A network on its way: weights, optimiser, position, and the best that there was."""

    def __init__(
        self,
        inputs: Inputs,
        stage: Mapping[str, int],
        dataset: Dataset,
        recipe: Recipe,
        ctx: RunContext,
        dp_group: DataParallelGroup,
    ) -> None:
        self.inputs, self.recipe, self.ctx, self.dp_group = inputs, recipe, ctx, dp_group
        self.network = network = inputs.network
        self.kept = freeze(network.body, stage, recipe)
        self.optimiser = make_optimiser(network.body, network.head, stage, recipe)
        self.training_ctx = replace(ctx, precision=training_precision(network, ctx))
        self.scaler = torch.amp.GradScaler(
            ctx.device.type, enabled=self.training_ctx.precision == torch.float16
        )
        self.average = _average_of(network, recipe.ema) if recipe.ema else None
        self.labels = torch.as_tensor(labels_of(dataset.train), device=ctx.device)
        self.val_labels = labels_of(dataset.val)
        self.start = _copy(network.state_dict())
        self.step = self.round = self.brakes = 0
        self.rounds = ROUNDS
        self.progress = self.judging_s = 0.0
        self.micro_batch = recipe.batch_size
        self.norms: Norms | None = None
        nothing = np.zeros((0, network.head.out_features), dtype=np.float32)
        self.best, self.best_scores, self.scores = self.start, nothing, nothing

    def affordable_rounds(self, seconds: float) -> int:
        """Return how often a training of so many seconds is judged."""
        if not self.judging_s:
            return ROUNDS
        return int(np.clip(1 + JUDGED_SHARE * seconds / self.judging_s, 1, ROUNDS))

    def round_is_over(self) -> bool:
        """Count the rounds that are over; steps that are long may take several at once."""
        over = min(int(self.progress * self.rounds + 1e-9), self.rounds) * ROUNDS // self.rounds
        before, self.round = self.round, over
        return over > before

    def judge(self) -> float | None:
        """Judge on validation what the training would end with now; None without validation images."""
        if not len(self.val_labels):
            return None
        begun = time.monotonic()
        current = _copy(self.network.state_dict())
        shown = self._shown()
        self.network.load_state_dict(shown)
        self.network.eval()
        with torch.inference_mode(), self.ctx.autocast():
            found = [self.network(images).float().cpu() for images in self.inputs.val()]
        self.network.load_state_dict(current)
        self.scores = torch.cat(found).numpy()
        hits = self._hits(self.scores)
        if not len(self.best_scores) or hits.sum() >= self._hits(self.best_scores).sum():
            self.best, self.best_scores = shown, self.scores
        self.judging_s = time.monotonic() - begun
        return float(hits.mean())

    def chosen(self) -> tuple[Mapping[str, Tensor], Scores]:
        """Return the last weights, or the best ones where validation can tell them apart.

        And what they say of the validation images, (n, classes).
        """
        hits, best = self._hits(self.scores), self._hits(self.best_scores)
        if not len(self.val_labels) or not _clearly_better(best, hits):
            return self._shown(), self.scores
        return self.best, self.best_scores

    def _hits(self, scores: Scores) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = scores.argmax(axis=1) == self.val_labels[: len(scores)]
        return found

    def _shown(self) -> dict[str, Tensor]:
        """Return the weights as they would be kept now: averaged, and blended with the start."""
        model = self.average.module if self.average else self.network
        state = _copy(model.state_dict())
        if self.recipe.blend < 1:
            for name, value in state.items():
                if value.is_floating_point():
                    state[name] = torch.lerp(self.start[name], value, self.recipe.blend)
        return state

    def take_step(self, rows: Sequence[int], images: Tensor) -> None:
        """Take one step; a loss that is not finite changes nothing but the learning rate."""
        rate = warmup_cosine(self.progress, self.recipe.warmup) / 2**self.brakes
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * rate
        self.network.train()
        for module in self.kept:
            module.eval()
        if self.norms is None:
            self.norms = norms_to_fold(self.network, self.kept, images[:1])
        seed, n_classes = [self.ctx.seed, self.step, 1], self.network.head.out_features
        images, targets = mixed(images, self.labels[list(rows)], n_classes, self.recipe, seed)
        if not self._update(images, targets, rate):
            self.brakes += 1
            if self.brakes > BRAKES:
                raise TrainingDiverged(
                    f"The loss was not finite at step {self.step}, again after {BRAKES} cuts of "
                    f"the learning rate {self.recipe.lr:g}. Give a smaller one."
                )
        self.step += 1

    def _update(self, images: Tensor, targets: Tensor, rate: float) -> bool:
        """Change the weights; False, and nothing changed, if loss or gradient is not finite."""
        buffers = _copy(dict(self.network.named_buffers()))  # BatchNorm's move on the way
        trained = [p for p in self.network.parameters() if p.requires_grad]
        if self.dp_group.all(self._gradient(images, targets, buffers)):
            self.dp_group.add_up(trained)
            self.scaler.unscale_(self.optimiser)
            norm = nn.utils.clip_grad_norm_(trained, self.recipe.clip_norm)
            if torch.isfinite(norm):
                self.scaler.step(self.optimiser)
                self.scaler.update()
                if self.recipe.l2_sp:
                    lr = self.recipe.lr * rate
                    l2_sp_step(self.network, self.start, lr, self.recipe.l2_sp)
                if self.average:
                    self.average.update_parameters(self.network)
                return True
            if self.scaler.is_enabled():
                self.scaler.update()  # float16 overflows now and then: a smaller scale will do
                _restore(self.network, buffers)
                return self.scaler.get_scale() >= 1
        _restore(self.network, buffers)
        return False

    def _gradient(self, images: Tensor, targets: Tensor, buffers: Mapping[str, Tensor]) -> bool:
        """Add up the gradient of a batch in parts that fit into memory."""
        while True:
            self.optimiser.zero_grad(set_to_none=True)
            try:
                return self._backward(images, targets)
            except RuntimeError as error:
                self._shrink(error)
                _restore(self.network, buffers)

    def _backward(self, images: Tensor, targets: Tensor) -> bool:
        for first in range(0, len(images), self.micro_batch):
            part = slice(first, first + self.micro_batch)
            folded = FoldedNorms(self.norms or {})
            with self.training_ctx.autocast(), QuickDepthwise(), folded, self.dp_group.norms():
                features = self.network.body(images[part]).float()
                scores = self.network.head(features)
            loss = nn.functional.cross_entropy(
                scores.float(),
                targets[part],
                label_smoothing=self.recipe.label_smoothing,
                reduction="sum",
            )
            if self.recipe.spectral:
                least = torch.linalg.svdvals(features)[-1]
                loss = loss + len(features) * self.recipe.spectral * least.square()
            loss = loss / self.recipe.batch_size
            if not torch.isfinite(loss):
                return False
            torch.autograd.backward(self.scaler.scale(loss))
        return True

    def _shrink(self, error: RuntimeError) -> None:
        """Halve the parts of a batch after an out-of-memory error; raise after any other."""
        check_short_memory(error, self.ctx.device)
        if self.micro_batch == 1:
            raise TransferError(
                f"The memory of {self.ctx.device} does not suffice to train on one image at a "
                "time. Use a smaller --input-px, a smaller backbone, or --device cpu."
            ) from error
        if self.dp_group.size > 1 and self._learns_statistics():
            raise TransferError(
                f"The memory of {self.ctx.device} does not suffice for its share of a batch, and "
                "BatchNorm must see all of it at once. Use a larger --ddp or a smaller --input-px."
            ) from error
        self.micro_batch = (min(self.micro_batch, self.recipe.batch_size) + 1) // 2
        if self.ctx.device.type == "cuda":
            torch.cuda.empty_cache()

    def _learns_statistics(self) -> bool:
        norms = {m for m in self.network.modules() if isinstance(m, nn.BatchNorm2d)}
        return not norms <= self.kept

    def snapshot(self) -> Snapshot:
        """Return all that changes."""
        groups = {"network": self.network.state_dict(), "best": self.best, "start": self.start}
        if self.average:
            groups["average"] = self.average.state_dict()
        tensors = {f"{group}/{k}": v for group, state in groups.items() for k, v in state.items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{number}/{k}": v for k, v in state.items() if v is not None}
        tensors["scores"] = torch.from_numpy(self.scores)
        tensors["best_scores"] = torch.from_numpy(self.best_scores)
        tensors["rng"] = torch.get_rng_state()
        if self.ctx.device.type == "cuda":
            tensors["cuda_rng"] = torch.cuda.get_rng_state(self.ctx.device)
        values = {name: getattr(self, name) for name in _WRITTEN}
        return Snapshot(tensors, values | {"scaler": self.scaler.state_dict()})

    def restore(self, checkpoint: Checkpoint | None) -> bool:
        """Go back to where a checkpoint was written; False if there is none of this training."""
        found = checkpoint.read(self.ctx.device) if checkpoint else None
        resumed = self.dp_group.all(
            found is not None
        )  # and all have read it before it is replaced
        if found is None or not resumed:
            return False
        groups: dict[str, dict[str, Tensor]] = {}
        for name, value in found.tensors.items():
            group, _, rest = name.partition("/")
            groups.setdefault(group, {})[rest] = value
        self.network.load_state_dict(groups["network"])
        self.best, self.start = groups["best"], groups["start"]
        if self.average:
            self.average.load_state_dict(groups["average"])
        restore_optimiser(self.optimiser, groups.get("optimiser", {}))
        self.scores = found.tensors["scores"].cpu().numpy()
        self.best_scores = found.tensors["best_scores"].cpu().numpy()
        torch.set_rng_state(found.tensors["rng"].cpu())
        if self.ctx.device.type == "cuda":
            torch.cuda.set_rng_state(found.tensors["cuda_rng"].cpu(), self.ctx.device)
        for name in _WRITTEN:
            setattr(self, name, found.values[name])
        self.scaler.load_state_dict(found.values["scaler"])
        return True


def _average_of(network: Network, decay: float) -> AveragedModel:
    step = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(network, multi_avg_fn=step, use_buffers=True)


def _clearly_better(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> bool:
    """Whether hits on the same images differ by more than chance would let them (`CLEARLY`)."""
    gap = one.astype(np.float64) - other
    return bool(gap.mean() > CLEARLY * gap.std() / np.sqrt(len(gap)))


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


@torch.no_grad()
def _restore(network: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    for name, buffer in network.named_buffers():
        buffer.copy_(buffers[name])
