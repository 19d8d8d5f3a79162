"""Processes that train one network together: each takes a share of every batch (data-parallel).

Each holds the whole network. Gradients, and the statistics of BatchNorm layers that learn theirs,
are added up over all shares, so the weights are those of one process, but for rounding. Rank 0 is
the process that was there before; it alone judges, writes checkpoints and decides when to stop.

Gradients are added up once a step instead of while they are computed, as torch's own
DistributedDataParallel does: so each process can compute its share in as many parts as its memory
wants.
"""

import contextlib
import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn import functional

from strategies.core.context import RunContext, ignore_epoch
from strategies.core.errors import TransferError
from strategies.core.progress import ignore_note, ignore_progress
from strategies.kernels.torch_function import Calls

PATIENCE = timedelta(minutes=30)
"""Longer than judging on validation takes, in which the others wait."""
_LAST_WORDS_S = 1.0
"""How long a process that dies may take to say why."""
_READY = "ready"


@dataclass(frozen=True)
class DataParallelGroup:
    """One of `size` processes that train together; the one that trains alone by default."""

    rank: int = 0
    size: int = 1

    def share(self, n: int) -> NDArray[np.intp]:
        """Return which of the `n` rows of a batch are this process's.

        The first and the last belong together, and so on: mixup mixes them.
        """
        front = np.array_split(np.arange((n + 1) // 2), self.size)[self.rank]
        back = (n - 1 - front)[::-1]
        return np.concatenate([front, back[back >= (n + 1) // 2]])

    def agree(self, value: float) -> float:
        """Return the value of rank 0."""
        if self.size == 1:
            return value
        told = torch.tensor(value, dtype=torch.float64)
        distributed.broadcast(told, src=0)
        return float(told)

    def all(self, fine: bool) -> bool:
        """Whether all is well in every process."""
        if self.size == 1:
            return fine
        told = torch.tensor(int(fine))
        distributed.all_reduce(told, distributed.ReduceOp.MIN)
        return bool(told)

    def add_up(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace gradients by their sums over all processes."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.size == 1 or not gradients:
            return
        flat = torch.cat([g.reshape(-1) for g in gradients])
        distributed.all_reduce(flat)
        parts = torch.split(flat, [g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))

    def norms(self) -> contextlib.AbstractContextManager[object]:
        """Let BatchNorm layers that learn statistics learn those of the whole batch."""
        return contextlib.nullcontext() if self.size == 1 else _SharedNorms()


SINGLE_PROCESS = DataParallelGroup()


@contextlib.contextmanager
def start_group(
    work: Callable[..., None], job: Sequence[object], ctx: RunContext, batch_size: int
) -> Iterator[DataParallelGroup]:
    """Start the other processes for the length of this block; each does ``work(dp_group, ctx, *job)``.

    Raises
    ------
    TransferError
        If one of them fails, or there are too few images in a batch.
    """
    size = ctx.n_processes
    if size == 1:
        yield SINGLE_PROCESS
        return
    if size > batch_size // 2:
        raise TransferError(f"--ddp {size}: a batch of {batch_size} is too small.")
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        meeting = (Path(folder) / "meeting").as_uri()
        ends = []
        for rank in range(1, size):
            own, its = spawn.Pipe()
            context = _context_of(ctx, rank)
            arguments = (its, meeting, DataParallelGroup(rank, size), context, work, job)
            process = spawn.Process(target=_take_part, args=arguments, daemon=True)
            process.start()
            its.close()  # so that its death ends the pipe
            stack.callback(process.join)
            stack.callback(process.kill)
            ends.append(own)
        try:
            for said in map(_heard, ends):
                if said != _READY:
                    raise TransferError(f"A process of --ddp failed: {said}")
            stack.enter_context(_met(meeting, DataParallelGroup(0, size)))
            yield DataParallelGroup(0, size)
        except RuntimeError as error:  # a process is gone; or the error is this one's own
            for end in ends:
                if end.poll(_LAST_WORDS_S):
                    raise TransferError(f"A process of --ddp failed: {_heard(end)}") from error
            raise


def _context_of(ctx: RunContext, rank: int) -> RunContext:
    """Return the context of another process: the next device, and nobody who listens."""
    device = ctx.device
    if device.type == "cuda":
        device = torch.device("cuda", (device.index or 0) + rank)
    return replace(
        ctx,
        device=device,
        deadline_s=None,
        on_epoch=ignore_epoch,
        on_progress=ignore_progress,
        on_note=ignore_note,
        activation_store=None,
    )


def _heard(end: Connection) -> str:
    """Return what another process says next."""
    try:
        return str(end.recv())
    except EOFError:
        return "it died without a word"


def _take_part(
    end: Connection,
    meeting: str,
    dp_group: DataParallelGroup,
    ctx: RunContext,
    work: Callable[..., None],
    job: Sequence[object],
) -> None:
    """Be one of the other processes, from start to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for rank 0, which ends the others
    if ctx.device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // dp_group.size))
    try:
        end.send(_READY)
        with _met(meeting, dp_group), ctx.seeded():
            work(dp_group, ctx, *job)
    except (TransferError, RuntimeError) as error:
        with contextlib.suppress(OSError):  # rank 0 may be gone
            end.send(str(error).splitlines()[0] if str(error) else repr(error))


@contextlib.contextmanager
def _met(meeting: str, dp_group: DataParallelGroup) -> Iterator[None]:
    """Be connected: over gloo, and over nccl what lies on GPUs."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(
        backend,
        init_method=meeting,
        rank=dp_group.rank,
        world_size=dp_group.size,
        timeout=PATIENCE,
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


class _SharedNorms(Calls):
    """Inside this context BatchNorm takes its statistics from the batches of all processes.

    torch's SyncBatchNorm does so too, on GPUs alone and as another module, which would change what
    a classifier is saved as.
    """

    def call(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        if func is functional.batch_norm:
            return _batch_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _batch_norm(
    images: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise as `torch.nn.functional.batch_norm`, whose arguments these are."""
    given = (running_mean, running_var, weight, bias)
    if not training:
        return functional.batch_norm(images, *given, False, momentum, eps)
    values = images.float()
    axes = [axis for axis in range(values.ndim) if axis != 1]
    shape = [1, -1, *[1] * (values.ndim - 2)]
    n = _Sum.apply(values.new_tensor(float(values.numel() // values.shape[1])))
    mean = _Sum.apply(values.sum(axes)) / n
    centred = values - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(axes)) / n
    with torch.no_grad():
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            unbiased = variance * n / (n - 1)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    found = centred * torch.rsqrt(variance + eps).view(shape)
    if weight is not None:
        found = found * weight.view(shape)
    if bias is not None:
        found = found + bias.view(shape)
    normalised: Tensor = found.to(images.dtype)
    return normalised


class _Sum(torch.autograd.Function):
    """The sum over all processes, and of the slopes on the way back."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        found = value.clone()
        distributed.all_reduce(found)
        return found

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        found = slope.contiguous().clone()
        distributed.all_reduce(found)
        return found
