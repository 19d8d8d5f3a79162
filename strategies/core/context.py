"""Run context of a fit: cache, device, precision, seed, deadline and reporter."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch

from strategies.core.activation_store import ActivationStore
from strategies.core.cache import ArrayCache, default_cache_dir
from strategies.core.devices import choose_precision, cuda_settings, make_device
from strategies.core.errors import OutOfTime
from strategies.core.limits import usable_cpus
from strategies.core.progress import Reporter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResources:
    """What only training runs of a network need.

    Attributes
    ----------
    checkpoint
        Checkpoint file, or None. A training run writes its state there every epoch, resumes from
        it when it is started again, and deletes it at the end. A damaged checkpoint, or one of
        another training run, is replaced; so no two concurrent runs may share a file.
    n_gpus
        GPUs that share every batch of a training run (data-parallel): `RunContext.device` and the
        ones after it. On a CPU, as many processes share it.
    activation_store
        Shares the activations of frozen stages between training runs that freeze the same stages;
        None shares nothing.
    """

    checkpoint: Path | None = None
    n_gpus: int = 1
    activation_store: ActivationStore | None = None


@dataclass(frozen=True)
class RunContext:
    """Everything that a fit needs besides the dataset, the backbone and the hyperparameters.

    Attributes
    ----------
    precision
        Autocast dtype of forward and backward passes; ``torch.float32`` disables autocast.
    is_deterministic
        Whether the same fit gives the same weights on CUDA as well, which takes longer. On a CPU
        it always does.
    n_workers
        Threads that read images beside the network.
    deadline_s
        Value of ``time.monotonic()`` at which to stop, or None.
    reporter
        Callbacks for progress, notes and epochs.
    training
        What only training runs need.
    """

    cache: ArrayCache
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: torch.dtype = torch.float32
    seed: int = 0
    n_workers: int = 2
    deadline_s: float | None = None
    reporter: Reporter = field(default_factory=Reporter)
    training: TrainingResources = field(default_factory=TrainingResources)
    is_deterministic: bool = False

    @property
    def head_device(self) -> torch.device:
        """Device on which linear heads are fitted: the CPU where the device has no float64.

        Apple's MPS has none. Its memory is the CPU's own, so nothing is lost by the way there.
        """
        return torch.device("cpu") if self.device.type == "mps" else self.device

    def with_deadline(self, deadline_s: float | None) -> Self:
        """Return the same context with another deadline."""
        return replace(self, deadline_s=deadline_s)

    def seconds_left(self) -> float:
        """Return the seconds until the deadline; infinite without one."""
        return np.inf if self.deadline_s is None else self.deadline_s - time.monotonic()

    def check_time(self) -> None:
        """Raise `OutOfTime` once the deadline has passed."""
        if self.seconds_left() <= 0:
            raise OutOfTime("The time budget was used up before there was a result.")

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Context of a forward pass: its precision, and the settings of the device."""
        autocast: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self.precision != torch.float32:
            autocast = torch.autocast(self.device.type, self.precision)
        with self.device_settings(), autocast:
            yield

    def device_settings(self) -> contextlib.AbstractContextManager[None]:
        """Context with explicit settings of the device (`cuda_settings`)."""
        return cuda_settings(self.device, is_deterministic=self.is_deterministic)

    @contextlib.contextmanager
    def seeded(self) -> Iterator[None]:
        """Seed torch's global generators inside the block; leave them untouched outside."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.seed)
            yield


def make_context(
    *,
    device: str = "auto",
    cache_dir: Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    is_deterministic: bool = False,
    reporter: Reporter | None = None,
) -> RunContext:
    """Build the run context: choose device and precision.

    Parameters
    ----------
    workers
        Threads that read images beside the network; None takes one per core, from 2 to 32.
    is_deterministic
        Whether results are the same in every run on CUDA too. cuBLAS reads its setting for this
        from the environment, once: nothing may have been computed on the GPU before.

    Raises
    ------
    TransferError
        If the device is unknown or unavailable.
    """
    chosen = make_device(device)
    if is_deterministic and chosen.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    ctx = RunContext(
        cache=ArrayCache(cache_dir or default_cache_dir()),
        device=chosen,
        precision=choose_precision(chosen),
        seed=seed,
        n_workers=workers or max(2, min(32, usable_cpus())),
        reporter=reporter or Reporter(),
        is_deterministic=is_deterministic,
    )
    logger.info(
        "device %s, %s, seed %d; %d threads read images, %d compute; cache %s",
        *(ctx.device, ctx.precision, ctx.seed, ctx.n_workers, torch.get_num_threads()),
        ctx.cache.path,
    )
    return ctx
