"""Compile training steps and feature passes with torch.compile, where that saves time.

Compiling takes from seconds to minutes, and saves a share of all work after it. Both depend on the
network, its input and the device. They are measured in the first run that compiles, and kept in
the cache for the runs after it.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from strategies.core.cache import space_name
from strategies.core.context import RunContext
from strategies.core.devices import device_name

_KEY = "seconds of compiling, share of the time saved"
MIN_SAVING = 0.02
"""What is compiled must take less time than before by at least this share, or it is not used."""
MAX_WAITING = 0.1
"""Where a larger share of the time is spent waiting for decoded images, nothing is compiled."""
CHECK_BATCHES = 8
"""Batches of a feature pass that are timed together."""
PASS_OPTIONS: dict[str, Any] = {"triton.cudagraphs": True, "emulate_precision_casts": True}
"""Options of torch's compiler for feature passes: CUDA graphs, and 16-bit values that are rounded
where they were rounded before (`OneSize`)."""


@dataclass(frozen=True)
class CompileCost:
    """Seconds that compiling takes, and the share of the time that it saves afterwards."""

    seconds: float
    saving: float

    def is_worth(self, rest_s: float) -> bool:
        """Return whether compiling saves time where the rest of the work takes `rest_s`."""
        return self.saving >= MIN_SAVING and self.saving * rest_s > self.seconds


ASSUMED = CompileCost(60.0, 0.15)
"""Before it was measured. A wrong assumption costs at most `seconds` in one run of more than
`seconds / saving` (400 s)."""


def compiled_loss(loss: nn.Module) -> nn.Module:
    """Return the compiled loss of a training step, without CUDA graphs.

    A CUDA graph writes gradients to the same memory in every replay. Where the gradients of
    several parts of a batch are added, that gives an error or wrong sums (issues 169545 and 96693
    of pytorch/pytorch), and a batch is split whenever memory is short.
    """
    compiled: nn.Module = torch.compile(loss)  # type: ignore[assignment]
    return compiled


class OneSize(nn.Module):
    """A network that runs compiled for batches of one size, and as before for all others.

    The size is that of the first batch. The last batch of a pass, and parts of a batch that did
    not fit into memory, have other sizes; each would be compiled by itself.

    CUDA graphs are used: nothing is differentiated, and the outputs of a batch must be copied to
    the host before the next batch overwrites them. 16-bit values are rounded as without
    compiling. Otherwise images of the same pass, computed before and after compiling, would be
    rounded differently, and the images of a pass may be sorted by class.

    Call it under ``torch.no_grad``. After a graph was recorded in ``torch.inference_mode``, other
    recordings of the process fail (issue 135892 of pytorch/pytorch).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.eager = network
        self.compiled = torch.compile(network, dynamic=False, options=PASS_OPTIONS)
        self.shape: torch.Size | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's output for a batch."""
        self.shape = self.shape or images.shape
        network = self.compiled if images.shape == self.shape else self.eager
        output: Tensor = network(images)
        return output


@dataclass(frozen=True)
class Work:
    """Something that is repeated, and can be compiled.

    Attributes
    ----------
    name, unit
        Words of the notes: what is repeated, and of what its amount is counted.
    compiled
        Returns the module that runs compiled.
    """

    name: str
    unit: str
    compiled: Callable[[nn.Module], nn.Module]


TRAINING = Work("Training steps", "step", compiled_loss)
FEATURE_PASS = Work("Feature passes", "image", OneSize)


def can_compile(ctx: RunContext) -> bool:
    """Return whether anything is compiled: on CUDA, unless equal runs must end equally."""
    return ctx.device.type == "cuda" and not ctx.is_deterministic


class TimedCompiler:
    """Times repeated work, and compiles its module if the rest of the work is long.

    Work is timed from check to check: at a check the host has waited for the device. The first
    span is warm-up, the second is timed, and then it is decided. The span after that contains the
    compiling, and the next one shows what compiled work takes. If that saves too little, the
    module runs as before.

    Parameters
    ----------
    network
        What the time depends on besides the device: names and sizes of the network and its input.
    is_enabled
        False: nothing is ever compiled.
    """

    def __init__(
        self, work: Work, ctx: RunContext, network: Sequence[object], *, is_enabled: bool
    ) -> None:
        self.work, self.ctx, self.is_enabled = work, ctx, is_enabled
        parts = [work.name, *network, ctx.precision, device_name(ctx.device), torch.__version__]
        self.space = space_name([_KEY, *map(str, parts)])
        self.spans: list[float] = []
        self.last = (0.0, 0, 0.0)
        self.eager: nn.Module | None = None

    def after_check(
        self, module: nn.Module, done: int, of: int, waited_s: float = 0.0
    ) -> nn.Module:
        """Return the module to use from here on: as given, compiled, or as it was before that.

        Parameters
        ----------
        done, of
            Steps or images so far, and of the whole run or pass.
        waited_s
            Seconds so far in which the device had no work, because images were decoded.
        """
        now = time.perf_counter()
        (then, before, waited_before_s), self.last = self.last, (now, done, waited_s)
        if not self.is_enabled or done == before:
            return module
        self.spans.append((now - then) / (done - before))
        if len(self.spans) == 2:
            is_waiting = waited_s - waited_before_s > MAX_WAITING * (now - then)
            rest_s = min((of - done) * self.spans[1], self.ctx.seconds_left())
            if not is_waiting and self._cost().is_worth(rest_s):
                self.eager = module
                torch.compiler.reset()  # torch compiles a function for at most eight networks
                return self.work.compiled(module)
            self.is_enabled = False
        elif len(self.spans) == 4:
            self.is_enabled = False
            _, eager_s, with_compiling_s, compiled_s = self.spans
            compiling_s = (done - before) * (with_compiling_s - compiled_s)
            return self._judge(module, CompileCost(compiling_s, 1 - compiled_s / eager_s))
        return module

    def running(self) -> contextlib.AbstractContextManager[object]:
        """Context of all work: what cannot be compiled runs as before, with torch's warning."""
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
        """Store what was measured; return the compiled module if it saves enough."""
        assert self.eager is not None
        row = np.array([max(measured.seconds, 0.0), measured.saving], dtype=np.float32)
        self.ctx.cache.put(self.space, {_KEY: row})
        name, took = self.work.name, f"after {measured.seconds:.0f} s of compiling"
        if measured.saving < MIN_SAVING:
            self.ctx.reporter.on_note(f"{name} are not compiled: no faster {took}.")
            return self.eager
        share = f"{100 * measured.saving:.0f}% less time per {self.work.unit}"
        self.ctx.reporter.on_note(f"{name} are compiled: {share}, {took}.")
        return compiled


class FeaturePass:
    """A network without gradients that many batches pass; it is compiled if they are enough.

    Use it as a context manager. Within it nothing is recorded for gradients; at its end the memory
    of CUDA graphs is free again.

    Parameters
    ----------
    network
        Input: normalised images, (n, 3, h, w). Output: one tensor, (n, d).
    kind
        What the time depends on besides the device (`TimedCompiler`).
    n_images
        Of the whole pass.
    """

    def __init__(
        self, network: nn.Module, kind: Sequence[object], n_images: int, ctx: RunContext
    ) -> None:
        self.network, self.n_images, self.ctx = network, n_images, ctx
        n_weights = sum(p.numel() for p in network.parameters())
        parts = [*kind, n_weights, ctx.n_workers]  # decoding limits how much can be saved
        self.compiler = TimedCompiler(FEATURE_PASS, ctx, parts, is_enabled=can_compile(ctx))
        is_enabled = self.compiler.is_enabled
        self.mode = torch.no_grad() if is_enabled else torch.inference_mode()  # see `OneSize`
        self.n_batches = 0

    def __enter__(self) -> Self:
        """Return the pass itself."""
        self.mode.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give back the memory of CUDA graphs."""
        self.mode.__exit__(kind, error, trace)
        if self.compiler.eager is not None:
            torch.compiler.reset()

    def __call__(self, images: Tensor) -> Tensor:
        """Return the outputs of a batch on the host, (n, d)."""
        with self.ctx.autocast(), self.compiler.running():
            output: Tensor = self.network(images)
        return output.cpu()

    def after_batch(self, done: int, waited_s: float) -> None:
        """Compile the network if it is time for it.

        Parameters
        ----------
        done
            Images so far.
        waited_s
            Seconds so far in which a batch was waited for.
        """
        self.n_batches += 1
        if self.n_batches % CHECK_BATCHES == 0:
            self.network = self.compiler.after_check(self.network, done, self.n_images, waited_s)
