"""State of a training run: weights, optimiser, position, and the best round so far."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from strategies.core.allocator import PartsThatFit, first_micro_batches, in_micro_batches
from strategies.core.context import RunContext
from strategies.core.devices import copy_to
from strategies.core.errors import TrainingDiverged
from strategies.core.metrics import Scores, significantly_better
from strategies.data.dataset import Dataset, labels_of
from strategies.kernels.bn_folding import NormByConv, fast_kernels, norms_to_fold
from strategies.kernels.compiled import TRAINING, TimedCompiler, can_compile
from strategies.kernels.depthwise import training_precision
from strategies.models.architectures.timm_zoo import timm_module
from strategies.models.network import Network
from strategies.training.checkpoint import Checkpoint, Snapshot
from strategies.training.costs.memory import fitting_micro_batches
from strategies.training.data_parallel import SINGLE_PROCESS, DataParallelGroup
from strategies.training.dataloader import Inputs
from strategies.training.mixup import mixed
from strategies.training.optimiser import (
    Loss,
    Updater,
    freeze,
    l2_sp_step,
    make_optimiser,
    restore_buffers,
    restore_optimiser,
    stable_halvings,
    warmup_cosine,
)
from strategies.training.recipe import Recipe

ROUNDS = 6
"""Rounds of a run. Each ends with validation and a call of ``on_epoch``. Short runs have fewer."""
VALIDATION_SHARE = 0.25
"""Maximum share of the time limit for validation before the last round."""
MAX_LR_CUTS = 3
"""Maximum number of times that the learning rate is halved because the loss was not finite."""
_SAVED = ("step", "round", "progress", "peak_halvings", "lr_cuts", "val_s")


class TrainingLoop:
    """Everything that changes during a training run."""

    def __init__(
        self,
        inputs: Inputs,
        stage: Mapping[str, int],
        dataset: Dataset,
        recipe: Recipe,
        ctx: RunContext,
        dp_group: DataParallelGroup = SINGLE_PROCESS,
        n_parts: int = 1,
    ) -> None:
        self.inputs, self.recipe, self.ctx, self.dp_group = inputs, recipe, ctx, dp_group
        self.network = network = inputs.network
        self.fixed_norms = freeze(network.body, stage, recipe)
        self.optimiser = make_optimiser(network.body, network.head, stage, recipe)
        self.training_ctx = replace(ctx, precision=training_precision(network, ctx))
        self.updater = Updater(
            network, self.optimiser, recipe.clip_norm, self.training_ctx.precision
        )
        self.average = _ema_of(network, recipe.ema) if recipe.ema else None
        self.labels = torch.as_tensor(labels_of(dataset.train))
        self.val_labels = labels_of(dataset.val)
        self.start = _copy(network.state_dict())
        self.step, self.round, self.rounds = 0, 0, ROUNDS
        self.peak_halvings, self.lr_cuts, self.progress, self.val_s = 0, 0, 0.0, 0.0
        self.loss: nn.Module = Loss(network, recipe)
        n_own = recipe.batch_size // dp_group.world_size
        self.n_parts = max(n_parts, first_micro_batches(n_own, ctx.device))  # fit into memory
        self.norms: NormByConv = {}
        self.compiler: TimedCompiler | None = None
        empty = np.zeros((0, network.head.out_features), dtype=np.float32)
        self.best, self.best_scores, self.scores = self.start, empty, empty

    def affordable_rounds(self, seconds: float) -> int:
        """Return the number of validations that a run of this length can afford."""
        if not self.val_s:
            return ROUNDS
        return int(np.clip(1 + VALIDATION_SHARE * seconds / self.val_s, 1, ROUNDS))

    def end_of_round(self) -> bool:
        """Update the round; return whether one ended. A long step may end several at once."""
        ended = min(int(self.progress * self.rounds + 1e-9), self.rounds) * ROUNDS // self.rounds
        before, self.round = self.round, ended
        return ended > before

    def validate(self) -> float | None:
        """Return the validation accuracy of `result_state`; None without validation images."""
        if not len(self.val_labels):
            return None
        start_s, current = time.monotonic(), _copy(self.network.state_dict())
        state = self.result_state()
        self.network.load_state_dict(state)
        self.network.eval()
        fitting = PartsThatFit(self.ctx.device)
        with torch.inference_mode(), self.ctx.autocast():
            parts = [fitting(self.network, images).float().cpu() for images in self.inputs.val()]
        self.network.load_state_dict(current)
        self.scores = torch.cat(parts).numpy()
        correct = self.correct(self.scores)
        if not len(self.best_scores) or correct.sum() >= self.correct(self.best_scores).sum():
            self.best, self.best_scores = state, self.scores
        self.val_s = time.monotonic() - start_s
        return float(correct.mean())

    def select(self) -> tuple[Mapping[str, Tensor], Scores]:
        """Return weights and validation scores: of the last round, or of a better one."""
        last, best = self.correct(self.scores), self.correct(self.best_scores)
        if not len(self.scores) or not significantly_better(best, last):
            return self.result_state(), self.scores
        return self.best, self.best_scores

    def correct(self, scores: Scores) -> NDArray[np.bool_]:
        """Return which validation images are classified correctly, (n,)."""
        correct: NDArray[np.bool_] = scores.argmax(axis=1) == self.val_labels[: len(scores)]
        return correct

    def result_state(self) -> dict[str, Tensor]:
        """Return the weights that a run ending now would return: averaged (EMA) and blended."""
        model = self.average.module if self.average else self.network
        state = _copy(model.state_dict())
        if self.recipe.blend < 1:
            for name, value in state.items():
                if value.is_floating_point():
                    state[name] = torch.lerp(self.start[name], value, self.recipe.blend)
        return state

    def take_step(self, rows: Sequence[int], images: Tensor) -> None:
        """Take a step. If the loss is not finite, only lower the learning rate."""
        self.network.train()
        for module in self.fixed_norms:
            module.eval()
        if self.compiler is None:
            self.norms = norms_to_fold(self.network, self.fixed_norms, images[:1])
            self.compiler = self._compiler(images)
            tried = (self.network, self.fixed_norms, self.recipe, images, self.ctx)
            self.n_parts = max(self.n_parts, fitting_micro_batches(*tried))
        seed, n_classes = [self.ctx.seed, self.step, 1], self.network.head.out_features
        labels = copy_to(self.labels[list(rows)], self.ctx.device)
        images, targets = mixed(images, labels, n_classes, self.recipe, seed)
        self._update(images, targets)
        if (self.step + 1) % self.updater.check_steps == 0:
            self.cut_rate_after_failure()
            self.loss = self.compiler.after_check(self.loss, self.step + 1, self.recipe.steps)
        self.step += 1

    def _compiler(self, images: Tensor) -> TimedCompiler:
        """Return what compiles the steps, unless several GPUs share a batch."""
        ctx = self.training_ctx
        groups = (self.network.parameters(), self.updater.parameters)
        sizes = [sum(p.numel() for p in group) for group in groups]
        is_enabled = can_compile(ctx) and self.dp_group.world_size == 1
        kind = [self.inputs.kind, tuple(images.shape), self.recipe.mixes]
        return TimedCompiler(TRAINING, ctx, [*sizes, *kind], is_enabled=is_enabled)

    def cut_rate_after_failure(self) -> None:
        """Lower the learning rate if an update was skipped, because its gradient was not finite.

        Raises
        ------
        TrainingDiverged
            If it was lowered `MAX_LR_CUTS` times before.
        """
        if not self.updater.has_failed():  # the same on all ranks
            return
        self.lr_cuts += 1
        if self.lr_cuts > MAX_LR_CUTS:
            raise TrainingDiverged(
                f"The loss was not finite at step {self.step}, although the learning rate "
                f"{self.recipe.lr:g} was halved {MAX_LR_CUTS} times. Use a smaller one."
            )

    def _update(self, images: Tensor, targets: Tensor) -> None:
        """Update the weights; they stay as they are if the gradient is not finite."""
        buffers = _copy(dict(self.network.named_buffers()))  # changed by BatchNorm
        self._gradient(images, targets, buffers)
        if self.step == 0 and self._may_be_unstable():
            self._halve_unstable_peak(images, targets)
        halvings = self.peak_halvings + self.lr_cuts
        rate = warmup_cosine(self.progress, self.recipe.warmup) / 2**halvings
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * rate
        finite = self.updater.update()
        if self.updater.is_fused:
            restore_buffers(self.network, buffers, unless=finite)
        elif not finite:
            restore_buffers(self.network, buffers)
            return
        if self.recipe.l2_sp:
            l2_sp_step(self.network, self.start, self.recipe.lr * rate, self.recipe.l2_sp)
        if self.average:
            self.average.update(self.network, step=self.step + 1)  # the first one is a copy

    def _gradient(self, images: Tensor, targets: Tensor, buffers: Mapping[str, Tensor]) -> None:
        """Accumulate the gradient of a batch over micro-batches that fit into memory."""

        def attempt(n_parts: int) -> None:
            self.optimiser.zero_grad(set_to_none=True)
            try:
                self._backward(images, targets, n_parts)
            except RuntimeError:
                restore_buffers(self.network, buffers)
                raise

        if self.dp_group.world_size > 1:  # the other ranks wait for this one's gradient
            attempt(self.n_parts)
        else:
            device = self.ctx.device
            self.n_parts = in_micro_batches(attempt, self.n_parts, len(images), device)

    def _backward(self, images: Tensor, targets: Tensor, n_parts: int) -> None:
        parts = list(zip(*(x.tensor_split(n_parts) for x in (images, targets)), strict=True))
        for number, part in enumerate(parts, 1):
            with contextlib.ExitStack() as stack:
                if isinstance(self.loss, DistributedDataParallel) and number < len(parts):
                    stack.enter_context(self.loss.no_sync())
                if self.compiler is not None:
                    stack.enter_context(self.compiler.running())
                kernels = fast_kernels(self.ctx.device, self.norms)
                with self.training_ctx.autocast(), kernels:
                    loss = self.loss(*part)
                loss = self.dp_group.world_size * loss  # gradients become means over the ranks
                torch.autograd.backward(self.updater.scaler.scale(loss))

    def _may_be_unstable(self) -> bool:
        """Return whether AdamW trains a network that normalises with fixed statistics."""
        gradients = [p.grad for p in self.updater.parameters if p.grad is not None]
        norms = [m for m in self.network.modules() if isinstance(m, nn.BatchNorm2d)]
        is_fixed = bool(norms) and all(m in self.fixed_norms for m in norms)
        is_adam = self.recipe.optimiser == "adamw"
        return is_adam and is_fixed and all(bool(g.isfinite().all()) for g in gradients)

    def _halve_unstable_peak(self, images: Tensor, targets: Tensor) -> None:
        """Halve the peak learning rate as often as `stable_halvings` finds; report it."""
        images, targets = images[:: self.n_parts], targets[:: self.n_parts]  # fits into memory
        loss = Loss(self.network, self.recipe)
        scale = self.recipe.batch_size / len(images)

        def mean_loss() -> float:
            with self.training_ctx.autocast(), fast_kernels(self.ctx.device, self.norms):
                return self.dp_group.broadcast(scale * float(loss(images, targets)))

        n_classes = self.network.head.out_features
        self.peak_halvings = stable_halvings(self.optimiser, mean_loss, n_classes)
        if self.peak_halvings and self.dp_group.rank == 0:
            used = self.recipe.lr / 2**self.peak_halvings
            self.ctx.reporter.on_note(
                f"The learning rate {self.recipe.lr:g} is too high for this network: a first step "
                f"would lead far above the loss of guessing. {used:.2g} is used."
            )

    def snapshot(self) -> Snapshot:
        """Return the state as a checkpoint snapshot."""
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
        values = {name: getattr(self, name) for name in _SAVED}
        return Snapshot(tensors, values | {"scaler": self.updater.scaler.state_dict()})

    def restore(self, checkpoint: Checkpoint | None) -> bool:
        """Restore the state of a checkpoint; return False if there is none of this run."""
        found = checkpoint.read(self.ctx.device) if checkpoint else None
        if found is None:
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
        for name in _SAVED:
            setattr(self, name, found.values[name])
        self.updater.scaler.load_state_dict(found.values["scaler"])
        return True


def _ema_of(network: Network, decay: float) -> Any:
    """Return timm's moving average of all weights. Unlike torch's it does not wait for a GPU."""
    return timm_module("timm.utils.model_ema").ModelEmaV3(network, decay=decay)


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
