"""Data-parallel training: several processes train one network, each on a share of every batch.

Each process holds the whole network. Gradients, and the statistics of BatchNorm layers that train
theirs, are summed over all processes, so the weights are those of a single process except for
rounding. Rank 0 is the process that started the others; it alone validates, writes checkpoints and
decides when to stop.

Gradients are summed once per step, not during the backward pass as in torch's
DistributedDataParallel. So each process may split its share into as many micro-batches as its
memory requires.
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

from strategies.core.context import RunContext
from strategies.core.errors import TransferError
from strategies.core.progress import Reporter
from strategies.kernels.torch_function import TorchFunctionInterceptor

TIMEOUT = timedelta(minutes=30)
"""Timeout of collective operations. Longer than validation, during which the other ranks wait."""
_ERROR_WAIT_S = 1.0
"""Seconds to wait for the error message of a failed process."""
_READY = "ready"


@dataclass(frozen=True)
class DataParallelGroup:
    """Process group of data-parallel training, seen from one rank. Default: a single process."""

    rank: int = 0
    world_size: int = 1

    def shard(self, n: int) -> NDArray[np.intp]:
        """Return the rows of a batch of `n` that this rank processes.

        Row i and row n - 1 - i go to the same rank, because mixup pairs them.
        """
        front = np.array_split(np.arange((n + 1) // 2), self.world_size)[self.rank]
        back = (n - 1 - front)[::-1]
        return np.concatenate([front, back[back >= (n + 1) // 2]])

    def broadcast(self, value: float) -> float:
        """Return the value of rank 0 on every rank."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        distributed.broadcast(tensor, src=0)
        return float(tensor)

    def all_reduce_and(self, ok: bool) -> bool:
        """Return whether the value is true on all ranks."""
        if self.world_size == 1:
            return ok
        tensor = torch.tensor(int(ok))
        distributed.all_reduce(tensor, distributed.ReduceOp.MIN)
        return bool(tensor)

    def all_reduce_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace the gradients by their sums over all ranks."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.world_size == 1 or not gradients:
            return
        flat = torch.cat([g.reshape(-1) for g in gradients])
        distributed.all_reduce(flat)
        parts = torch.split(flat, [g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))

    def sync_batch_norm(self) -> contextlib.AbstractContextManager[object]:
        """Return a context in which BatchNorm layers in train mode use the whole batch."""
        return contextlib.nullcontext() if self.world_size == 1 else _SyncBatchNorm()


SINGLE_PROCESS = DataParallelGroup()


@contextlib.contextmanager
def start_group(
    work: Callable[..., None], job: Sequence[object], ctx: RunContext, batch_size: int
) -> Iterator[DataParallelGroup]:
    """Run the worker processes while the block runs; each calls ``work(dp_group, ctx, *job)``.

    Raises
    ------
    TransferError
        If a process fails, or a batch has fewer than two images per process.
    """
    world_size = ctx.training.n_processes
    if world_size == 1:
        yield SINGLE_PROCESS
        return
    if world_size > batch_size // 2:
        raise TransferError(
            f"--ddp {world_size}: a batch of {batch_size} images is too small for {world_size} "
            f"processes. Use --ddp {max(1, batch_size // 2)} or less."
        )
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        init_method = (Path(folder) / "rendezvous").as_uri()
        pipes = []
        for rank in range(1, world_size):
            pipe, worker_pipe = spawn.Pipe()
            dp_group, context = DataParallelGroup(rank, world_size), _worker_context(ctx, rank)
            arguments = (worker_pipe, init_method, dp_group, context, work, job)
            process = spawn.Process(target=_run_worker, args=arguments, daemon=True)
            process.start()
            worker_pipe.close()  # so that the pipe ends when the process does
            stack.callback(process.join)
            stack.callback(process.kill)
            pipes.append(pipe)
        try:
            for message in map(_receive, pipes):
                if message != _READY:
                    raise TransferError(f"A process of --ddp failed: {message}")
            stack.enter_context(_process_group(init_method, DataParallelGroup(0, world_size)))
            yield DataParallelGroup(0, world_size)
        except RuntimeError as error:  # a worker process failed, or this process did
            for pipe in pipes:
                if pipe.poll(_ERROR_WAIT_S):
                    raise TransferError(f"A process of --ddp failed: {_receive(pipe)}") from error
            raise


def _worker_context(ctx: RunContext, rank: int) -> RunContext:
    """Return the run context of a worker process: its own device, and no callbacks."""
    device = ctx.device
    if device.type == "cuda":
        device = torch.device("cuda", (device.index or 0) + rank)
    return replace(
        ctx,
        device=device,
        deadline_s=None,
        reporter=Reporter(),
        training=replace(ctx.training, activation_store=None),
    )


def _receive(pipe: Connection) -> str:
    """Return the next message of a worker process."""
    try:
        return str(pipe.recv())
    except EOFError:
        return "it ended without an error message"


def _run_worker(
    pipe: Connection,
    init_method: str,
    dp_group: DataParallelGroup,
    ctx: RunContext,
    work: Callable[..., None],
    job: Sequence[object],
) -> None:
    """Run a worker process; send an error to rank 0."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops rank 0, which stops the workers
    if ctx.device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // dp_group.world_size))
    try:
        pipe.send(_READY)
        with _process_group(init_method, dp_group), ctx.seeded():
            work(dp_group, ctx, *job)
    except (TransferError, RuntimeError) as error:
        with contextlib.suppress(OSError):  # rank 0 may have ended
            pipe.send(str(error).splitlines()[0] if str(error) else repr(error))


@contextlib.contextmanager
def _process_group(init_method: str, dp_group: DataParallelGroup) -> Iterator[None]:
    """Join the process group inside the block: gloo for CPU tensors, nccl for GPU tensors."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(
        backend,
        init_method=init_method,
        rank=dp_group.rank,
        world_size=dp_group.world_size,
        timeout=TIMEOUT,
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


class _SyncBatchNorm(TorchFunctionInterceptor):
    """Context in which BatchNorm computes its statistics over the batches of all ranks.

    torch's SyncBatchNorm works on GPUs only. It is also another module, which would change the
    saved classifier.
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
    """Normalise like `torch.nn.functional.batch_norm`, with statistics over all ranks."""
    parameters = (running_mean, running_var, weight, bias)
    if not training:
        return functional.batch_norm(images, *parameters, False, momentum, eps)
    values = images.float()
    axes = [axis for axis in range(values.ndim) if axis != 1]
    shape = [1, -1, *[1] * (values.ndim - 2)]
    n = _AllReduceSum.apply(values.new_tensor(float(values.numel() // values.shape[1])))
    mean = _AllReduceSum.apply(values.sum(axes)) / n
    centred = values - mean.view(shape)
    variance = _AllReduceSum.apply(centred.square().sum(axes)) / n
    with torch.no_grad():
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            unbiased = variance * n / (n - 1)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    scaled = centred * torch.rsqrt(variance + eps).view(shape)
    if weight is not None:
        scaled = scaled * weight.view(shape)
    if bias is not None:
        scaled = scaled + bias.view(shape)
    normalised: Tensor = scaled.to(images.dtype)
    return normalised


class _AllReduceSum(torch.autograd.Function):
    """Differentiable sum over all ranks: all-reduce of the value and of its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total
