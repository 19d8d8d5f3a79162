"""Compile a training step with torch.compile, where that saves more time than it costs.

Compiling takes from seconds to minutes, and saves a share of every step after it. Both depend on
the network, its input and the device. They are measured in the first run that compiles, and kept
in the cache for the runs after it.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from strategies.core.cache import space_name
from strategies.core.context import RunContext
from strategies.core.devices import device_name

_KEY = "seconds to compile a training step, share of a step saved"
MIN_SAVING = 0.02
"""A compiled step must take less time than before by at least this share, or it is not used."""


@dataclass(frozen=True)
class CompileCost:
    """Seconds that it takes to compile a training step, and the share of a step that it saves."""

    seconds: float
    saving: float

    def is_worth(self, rest_s: float) -> bool:
        """Return whether compiling saves time in a run whose other steps take `rest_s`."""
        return self.saving >= MIN_SAVING and self.saving * rest_s > self.seconds


ASSUMED = CompileCost(60.0, 0.15)
"""Before it was measured. A wrong assumption costs at most `seconds` in one run of more than
`seconds / saving` (400 s)."""


class StepCompiler:
    """Times the steps of a training run, and compiles its loss if the rest of the run is long.

    Steps are timed from check to check: at a check the host has waited for the device. The first
    span is warm-up, the second is timed, and then it is decided. The span after that contains the
    compiling, and the next one shows what a compiled step takes. If that saves too little, the
    loss runs as before.

    Parameters
    ----------
    network
        What the time depends on besides the device: names and sizes of the network and its batch.
    is_enabled
        False: nothing is ever compiled.
    """

    def __init__(self, ctx: RunContext, network: Sequence[object], *, is_enabled: bool) -> None:
        self.ctx, self.is_enabled = ctx, is_enabled
        parts = [*network, str(ctx.precision), device_name(ctx.device), torch.__version__]
        self.space = space_name([_KEY, *map(str, parts)])
        self.spans: list[float] = []
        self.last = (0.0, 0)
        self.eager: nn.Module | None = None

    def after_check(self, loss: nn.Module, step: int, n_steps: int) -> nn.Module:
        """Return the loss to use from here on: as given, compiled, or as it was before that.

        Parameters
        ----------
        step, n_steps
            Steps taken so far, and of the whole run.
        """
        now = time.perf_counter()
        (then, before), self.last = self.last, (now, step)
        if not self.is_enabled or step == before:
            return loss
        self.spans.append((now - then) / (step - before))
        n_spans, n_before = len(self.spans), step - before
        if n_spans == 2:
            rest_s = min((n_steps - step) * self.spans[1], self.ctx.seconds_left())
            if self._cost().is_worth(rest_s):
                self.eager = loss
                compiled: nn.Module = torch.compile(loss)  # type: ignore[assignment]
                return compiled
            self.is_enabled = False
        elif n_spans == 4:
            self.is_enabled = False
            _, eager_s, with_compiling_s, compiled_s = self.spans
            compiling_s = n_before * (with_compiling_s - compiled_s)
            return self._judge(loss, CompileCost(compiling_s, 1 - compiled_s / eager_s))
        return loss

    def running(self) -> contextlib.AbstractContextManager[object]:
        """Context of every step: what cannot be compiled runs as before, with torch's warning."""
        if self.eager is None:
            return contextlib.nullcontext()
        patch: contextlib.AbstractContextManager[object] = torch._dynamo.config.patch(
            suppress_errors=True
        )
        return patch

    def _cost(self) -> CompileCost:
        """Return what was measured in an earlier run, or assumed."""
        known = self.ctx.cache.get(self.space, [_KEY])
        return CompileCost(*known[_KEY].tolist()) if _KEY in known else ASSUMED

    def _judge(self, compiled: nn.Module, measured: CompileCost) -> nn.Module:
        """Store what was measured; return the compiled loss if it saves enough."""
        assert self.eager is not None
        row = np.array([max(measured.seconds, 0.0), measured.saving], dtype=np.float32)
        self.ctx.cache.put(self.space, {_KEY: row})
        took = f"after {measured.seconds:.0f} s of compiling"
        if measured.saving < MIN_SAVING:
            self.ctx.reporter.on_note(f"Training steps are not compiled: no faster {took}.")
            return self.eager
        share = f"{100 * measured.saving:.0f}% less time per step"
        self.ctx.reporter.on_note(f"Training steps are compiled: {share}, {took}.")
        return compiled
