"""Loss, optimiser and its parameter groups, freezing, learning-rate schedule, and progress."""

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime
from strategies.models.architectures.anatomy import (
    is_exempt_from_weight_decay,
    layers_below_head,
)
from strategies.models.body import Body
from strategies.models.network import Network
from strategies.training.recipe import Recipe

Optimiser = torch.optim.SGD | torch.optim.AdamW
CHECK_STEPS = 8
"""Steps after which a GPU is asked whether a gradient was not finite."""
RESERVE_S = 0.2
"""Seconds kept free before the deadline, for work that is not measured."""
VAL_TIME_MARGIN = 1.15
"""Safety factor for the duration of the last validation."""
LORA_MATRICES = ".lora_"
"""In the names of the modules that hold the matrices of LoRA, as peft calls them."""
MAX_FIRST_LOSS = 25.0
"""Largest loss after AdamW's first update at the peak learning rate, in units of the loss of
guessing. It is 0.2 to 11 for the default rates of the benchmarks' reference network. On another
network training succeeded at 21 and collapsed at 33 (docs/benchmarks/training.md)."""
MAX_HALVINGS = 6
NO_TIME = "The deadline leaves no time for a single training step."


class Loss(nn.Module):
    """Loss of some images of a batch: their share of the mean over the batch."""

    def __init__(self, network: Network, recipe: Recipe) -> None:
        super().__init__()
        self.network, self.recipe = network, recipe

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over the images divided by the size of the batch."""
        features = self.network.body(images).float()
        loss = nn.functional.cross_entropy(
            self.network.scores(features).float(),
            targets,
            label_smoothing=self.recipe.label_smoothing,
            reduction="sum",
        )
        return loss / self.recipe.batch_size


def freeze(body: Body, stage: Mapping[str, int], recipe: Recipe) -> frozenset[nn.Module]:
    """Freeze what the recipe does not train; return the BatchNorm layers with fixed statistics.

    Parameters
    ----------
    stage
        Depth of every module of the network by name, from `backbone.stages`.
    """
    deepest = max(stage.values())
    last = deepest if recipe.last_trained_stage is None else recipe.last_trained_stage
    fixed_norms: set[nn.Module] = set()
    for name, module in body.net.named_modules():
        frozen = not recipe.frozen_stages < stage.get(name, deepest) <= last
        for key, parameter in module.named_parameters(recurse=False):
            if recipe.lora_rank:
                chosen = LORA_MATRICES in f".{name}."
            else:
                chosen = recipe.trained == "all" or _is_norm_or_bias(module, key, parameter)
            parameter.requires_grad_(chosen and not frozen)
        reset = stage.get(name, deepest) > deepest - recipe.reset_stages
        updated = not frozen and (reset or recipe.batch_norm == "trained")
        if isinstance(module, nn.BatchNorm2d) and not updated:
            fixed_norms.add(module)
    return frozenset(fixed_norms)


def _is_norm_or_bias(module: nn.Module, key: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter is a bias, or the scale of a normalisation layer.

    Normalisation layers are recognised by their class: torch's and timm's have "Norm" in its name.
    """
    return parameter.ndim <= 1 and (key.endswith("bias") or "Norm" in type(module).__name__)


def make_optimiser(
    body: Body, head: nn.Linear, stage: Mapping[str, int], recipe: Recipe
) -> Optimiser:
    """Create the optimiser, with parameter groups by learning rate and weight decay.

    The learning rate depends on the depth or layer (`Recipe.layer_lr_decay`); that of the head is
    multiplied by `Recipe.head_lr_factor`. Vectors (biases, normalisation) have no weight decay,
    and with `Recipe.by_layer` nor has what timm exempts. Every group holds its peak learning rate
    as "peak". On CUDA all updates are one kernel (fused).
    """
    is_fused = True if head.weight.device.type == "cuda" else None
    above = _layers_above(body.net, stage, recipe)
    is_exempt = is_exempt_from_weight_decay(body.net) if recipe.by_layer else lambda name: False
    weight_decay = 0.0 if recipe.l2_sp else recipe.weight_decay
    grouped: dict[tuple[float, float], list[nn.Parameter]] = {}

    def add(parameter: nn.Parameter, peak: float, decay: float) -> None:
        if parameter.requires_grad:
            key = (peak, decay if parameter.ndim > 1 else 0.0)
            grouped.setdefault(key, []).append(parameter)

    for name, parameter in body.net.named_parameters():
        peak = recipe.lr * recipe.layer_lr_decay ** above[name]
        add(parameter, peak, 0.0 if is_exempt(name) else weight_decay)
    for parameter in head.parameters():
        add(parameter, recipe.lr * recipe.head_lr_factor, recipe.weight_decay)
    groups = [
        {"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay}
        for (peak, decay), parameters in grouped.items()
    ]
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(groups, recipe.lr, momentum=0.9, nesterov=True, fused=is_fused)
    return torch.optim.AdamW(groups, recipe.lr, fused=is_fused)


def _layers_above(net: nn.Module, stage: Mapping[str, int], recipe: Recipe) -> dict[str, int]:
    """Return by how many layers or depths the learning rate of a parameter decays."""
    layers = layers_below_head(net) if recipe.by_layer else None
    if layers is not None:
        return layers
    deepest = max(stage.values())
    owners = {name: name.rpartition(".")[0] for name, _ in net.named_parameters()}
    return {name: deepest - stage.get(owner, deepest) for name, owner in owners.items()}


def restore_optimiser(optimiser: Optimiser, flat: Mapping[str, Tensor]) -> None:
    """Restore an optimiser's state from tensors named "<parameter number>/<state name>".

    The number of steps stays on the CPU, unless the optimiser is fused: on a GPU, every step would
    wait for the device once per parameter to read it. Everything else gets the memory format of
    its parameter, because a fused optimiser pairs elements by their place in memory.
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in flat.items():
        number, _, key = name.partition("/")
        if key == "step":
            restored = value.cpu()
        else:
            restored = torch.empty_like(parameters[int(number)], requires_grad=False).copy_(value)
        state.setdefault(int(number), {})[key] = restored
    optimiser.load_state_dict(optimiser.state_dict() | {"state": state})


@torch.no_grad()
def restore_buffers(
    network: nn.Module, buffers: Mapping[str, Tensor], unless: Tensor | None = None
) -> None:
    """Restore buffers; `unless` is a boolean on the device, which need not wait for it."""
    for name, buffer in network.named_buffers():
        before = buffers[name]
        buffer.copy_(before if unless is None else torch.where(unless, buffer, before))


class Updater:
    """Updates the weights by clipped gradients; skips an update whose gradient is not finite.

    A fused optimiser skips it on the device, and the host asks only every `check_steps` steps
    whether that happened: to ask, it must wait for the device.

    Parameters
    ----------
    precision
        Autocast dtype of the forward pass. float16 needs a loss scale.
    """

    def __init__(
        self, network: nn.Module, optimiser: Optimiser, clip_norm: float, precision: torch.dtype
    ) -> None:
        self.optimiser, self.clip_norm = optimiser, clip_norm
        self.is_fused = all(bool(group["fused"]) for group in optimiser.param_groups)
        self.check_steps = CHECK_STEPS if self.is_fused else 1
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        device = self.parameters[0].device
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
        self.n_skipped = torch.zeros((), device=device)
        if self.is_fused and isinstance(optimiser, torch.optim.SGD):
            # torch sets the momentum in the first update only. Were that one skipped, it would
            # stay uninitialised memory. Zeros lead to the same first update.
            for parameter in self.parameters:
                optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def update(self) -> Tensor:
        """Update the weights; return whether the gradient was finite, a boolean on the device."""
        self.scaler.unscale_(self.optimiser)
        finite = torch.isfinite(nn.utils.clip_grad_norm_(self.parameters, self.clip_norm))
        if self.scaler.is_enabled():
            self.scaler.step(self.optimiser)
            self.scaler.update()  # after an overflow: lowers the loss scale
        elif self.is_fused:
            self.optimiser.found_inf = (~finite).float()  # type: ignore[union-attr]
            self.optimiser.step()
        elif finite:
            self.optimiser.step()
        self.n_skipped += ~finite
        return finite

    def has_failed(self) -> bool:
        """Return whether updates were skipped since the last call. This waits for the device.

        With float16 an overflow is no failure, as long as the loss scale is at least 1.
        """
        skipped = bool(self.n_skipped)
        self.n_skipped.zero_()
        return skipped and (not self.scaler.is_enabled() or self.scaler.get_scale() < 1)


@torch.no_grad()
def stable_halvings(optimiser: Optimiser, loss: Callable[[], float], n_classes: int) -> int:
    """Return how often the peak learning rate must be halved for the training to be stable.

    AdamW's first update moves every weight by the learning rate, whatever the size of its
    gradient. Where BatchNorm statistics are fixed, nothing bounds what such a step does to the
    features: with some networks it leaves a loss that training does not recover from. The update
    is tried at the peak, and at halves of it, until the loss is at most `MAX_FIRST_LOSS` times
    that of guessing. The weights are as before when this returns.

    Parameters
    ----------
    optimiser
        AdamW, after the gradient of a batch was computed.
    loss
        Computes the mean loss of that batch.
    """
    moved = [
        (parameter, parameter.clone(), group["peak"] * _adam_direction(parameter.grad))
        for group in optimiser.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    limit = MAX_FIRST_LOSS * np.log(n_classes)
    try:
        for halvings in range(MAX_HALVINGS):
            for parameter, start, step in moved:
                parameter.copy_(start - step / 2**halvings)
            if loss() <= limit:
                return halvings
    finally:
        for parameter, start, _ in moved:
            parameter.copy_(start)
    return MAX_HALVINGS


def _adam_direction(gradient: Tensor) -> Tensor:
    """Return AdamW's first update at a learning rate of 1."""
    return gradient / (gradient.abs() + 1e-8)


@torch.no_grad()
def l2_sp_step(network: Network, start: Mapping[str, Tensor], lr: float, strength: float) -> None:
    """Take a decoupled L2-SP step: move the body's weights towards their starting values.

    Parameters
    ----------
    start
        State of the network at the start of training.
    """
    for name, parameter in network.body.named_parameters(prefix="body"):
        if parameter.requires_grad:
            parameter.lerp_(start[name], min(lr * strength, 1.0))


def warmup_cosine(progress: float, warmup_share: float) -> float:
    """Return the factor on the peak learning rate: linear warm-up, then cosine decay to zero."""
    if progress < warmup_share:
        return max(progress / warmup_share, 0.02)
    rest = (progress - warmup_share) / (1 - warmup_share)
    return float(0.5 * (1 + np.cos(np.pi * min(rest, 1.0))))


class ProgressSchedule:
    """Progress of a training run: the share of steps or of time used, whichever is larger.

    Parameters
    ----------
    step, progress
        Step and progress at which the run starts or resumes. A resumed run spreads the rest of its
        schedule over the remaining steps and the remaining time; the earlier deadline does not
        matter.
    val_s
        Seconds per validation. The last validation must end before the deadline.

    Raises
    ------
    OutOfTime
        If no time is left for training.
    """

    def __init__(
        self,
        recipe: Recipe,
        ctx: RunContext,
        step: int = 0,
        progress: float = 0.0,
        val_s: float = 0.0,
    ) -> None:
        self.steps, self.first_step = recipe.steps, step
        self.first_progress = progress
        # By how much the share of time was ahead of the share of steps. Exactly 0 (no rounding) if
        # the steps alone determined the progress.
        self.time_lead = max(progress - step / recipe.steps, 0.0)
        self.start_s = time.monotonic()
        self.seconds = ctx.seconds_left() - VAL_TIME_MARGIN * val_s - RESERVE_S
        if self.seconds <= 0:
            raise OutOfTime(NO_TIME)

    def progress(self, step: int) -> float:
        """Return the progress before `step`: 0 at the start, 1 or more at the end."""
        by_steps = step / self.steps
        if self.time_lead:
            by_steps += self.time_lead * (self.steps - step) / max(self.steps - self.first_step, 1)
        used_s = time.monotonic() - self.start_s
        if step == self.first_step:  # the time to read the first batch does not count for a step
            self.start_s, self.seconds = self.start_s + used_s, self.seconds - used_s
            return max(by_steps, self.first_progress) if self.seconds > 0 else 1.0
        step_s = used_s / (step - self.first_step)  # one more step must still fit
        used = used_s / max(self.seconds - step_s, 1e-3)
        return max(by_steps, self.first_progress + (1 - self.first_progress) * used)
