"""What moves the weights: parameter groups, the schedule of the learning rate, how far one is."""

import time
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime
from strategies.models.body import Body
from strategies.models.network import Network
from strategies.training.recipe import Recipe

LEAVING_S = 0.2
"""Left of a deadline when the last round is judged: for what is not measured."""
JUDGING_VARIES = 1.15
"""The last round may take this much longer to judge than the one before."""
NO_TIME = "There was no time left for a single training step."


def freeze(body: Body, stage: Mapping[str, int], recipe: Recipe) -> frozenset[nn.Module]:
    """Freeze the first stages; return the BatchNorm layers whose statistics must not move.

    Parameters
    ----------
    stage
        The depth that every module of the network works for, from `backbone.stages`.
    """
    deepest = max(stage.values())
    kept: set[nn.Module] = set()
    for name, module in body.net.named_modules():
        frozen = stage.get(name, deepest) <= recipe.frozen_stages
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(not frozen)
        fresh = stage.get(name, deepest) > deepest - recipe.reset_stages
        moves = not frozen and (fresh or recipe.batch_norm == "trained")
        if isinstance(module, nn.BatchNorm2d) and not moves:
            kept.add(module)
    return frozenset(kept)


def make_optimiser(
    body: Body, head: nn.Linear, stage: Mapping[str, int], recipe: Recipe
) -> torch.optim.Optimizer:
    """Group the parameters that learn by depth: deeper and head faster, vectors not decayed.

    Every group carries its peak learning rate as "peak".
    """
    deepest = max(stage.values())
    weight_decay = 0.0 if recipe.l2_sp else recipe.weight_decay
    grouped: dict[tuple[float, float], list[nn.Parameter]] = {}

    def add(module: nn.Module, peak: float, decay: float) -> None:
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                key = (peak, decay if parameter.ndim > 1 else 0.0)
                grouped.setdefault(key, []).append(parameter)

    for name, module in body.net.named_modules():
        above = deepest - stage.get(name, deepest)
        add(module, recipe.lr * recipe.layer_lr_decay**above, weight_decay)
    add(head, recipe.lr * recipe.head_lr_factor, recipe.weight_decay)
    groups = [
        {"params": parameters, "lr": peak, "peak": peak, "weight_decay": decay}
        for (peak, decay), parameters in grouped.items()
    ]
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=recipe.lr)


def restore_optimiser(optimiser: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    """Give an optimiser its state back, whose tensors are called "parameter/name"."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in flat.items():
        number, _, key = name.partition("/")
        state.setdefault(int(number), {})[key] = value
    optimiser.load_state_dict(optimiser.state_dict() | {"state": state})


@torch.no_grad()
def l2_sp_step(network: Network, start: Mapping[str, Tensor], lr: float, strength: float) -> None:
    """Move the body's weights a little towards where they started (decoupled L2-SP).

    Parameters
    ----------
    start
        The network's state at the start.
    """
    for name, parameter in network.body.named_parameters(prefix="body"):
        if parameter.requires_grad:
            parameter.lerp_(start[name], min(lr * strength, 1.0))


def warmup_cosine(progress: float, warmup_share: float) -> float:
    """Return the share of the peak learning rate: up in a line, down in a cosine."""
    if progress < warmup_share:
        return max(progress / warmup_share, 0.02)
    rest = (progress - warmup_share) / (1 - warmup_share)
    return float(0.5 * (1 + np.cos(np.pi * min(rest, 1.0))))


class ProgressSchedule:
    """How much of a training is behind, by steps or by time, whichever is more.

    Parameters
    ----------
    step, progress
        Where a resumed training stands. What is left of the schedule is spread over what is left
        of the steps and of the time, whatever the deadline was before.
    judging_s
        How long it takes to judge a round: the last one is judged before the deadline.
    """

    def __init__(
        self,
        recipe: Recipe,
        ctx: RunContext,
        step: int = 0,
        progress: float = 0.0,
        judging_s: float = 0.0,
    ) -> None:
        self.steps, self.first = recipe.steps, step
        self.behind = progress
        # What time took ahead of the steps; none (and no rounding) if steps alone set the pace.
        self.lead = max(progress - step / recipe.steps, 0.0)
        self.start_s = time.monotonic()
        self.seconds = ctx.seconds_left() - JUDGING_VARIES * judging_s - LEAVING_S
        if self.seconds <= 0:
            raise OutOfTime(NO_TIME)

    def progress(self, step: int) -> float:
        """Return the share of the training that lies before `step`, 0 to 1 and beyond."""
        by_steps = step / self.steps
        if self.lead:
            by_steps += self.lead * (self.steps - step) / max(self.steps - self.first, 1)
        used_s = time.monotonic() - self.start_s
        if step == self.first:  # what was read until now is not the steps' time
            self.start_s, self.seconds = self.start_s + used_s, self.seconds - used_s
            return max(by_steps, self.behind) if self.seconds > 0 else 1.0
        step_s = used_s / (step - self.first)  # one more must still fit
        used = used_s / max(self.seconds - step_s, 1e-3)
        return max(by_steps, self.behind + (1 - self.behind) * used)
