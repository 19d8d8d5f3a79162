"""Data-parallel training: one process per GPU trains the network on its share of every batch.

`DistributedDataParallel` averages the gradients, and `SyncBatchNorm` takes its statistics over all
processes, so the weights are those of a single process except for rounding. The process that calls
`launch` trains nothing. It reports the epochs of rank 0 and ends all processes if one fails.
"""

import contextlib
import os
import pickle
import signal
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.multiprocessing import get_context
from torch.nn.parallel import DistributedDataParallel

from strategies.core.allocator import keep_freed_memory
from strategies.core.context import RunContext, TrainingResources
from strategies.core.errors import TransferError
from strategies.core.progress import Reporter

T = TypeVar("T")

TIMEOUT = timedelta(days=1)
"""Timeout of collective operations. While rank 0 validates, the others wait. A process that died
is noticed at once."""


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

    def parallel(self, module: nn.Module, fixed_norms: Collection[nn.Module]) -> nn.Module:
        """Return a module whose gradients are the means over all ranks; waits for all ranks.

        Parameters
        ----------
        fixed_norms
            BatchNorm layers that keep their statistics; the others of the module become
            SyncBatchNorm.

        Raises
        ------
        TransferError
            If statistics are trained on CPUs, which SyncBatchNorm does not support.
        """
        if self.world_size == 1:
            return module
        norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        for name, norm in list(module.named_modules()):
            if isinstance(norm, norms) and norm not in fixed_norms:
                if next(module.parameters()).device.type == "cpu":
                    raise TransferError(
                        "Data-parallel training of BatchNorm statistics needs GPUs. Use one "
                        'process, or batch_norm="frozen".'
                    )
                module.set_submodule(name, synchronised(norm))
        return DistributedDataParallel(module, forward_sync_buffers=False)


SINGLE_PROCESS = DataParallelGroup()


def synchronised(norm: nn.Module) -> nn.Module:
    """Return a BatchNorm layer as a SyncBatchNorm with the same parameters and statistics.

    Some networks have BatchNorm layers that call their children on the result, such as an
    activation. SyncBatchNorm only keeps the children; here it calls them.
    """
    convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
    converted = convert(norm)
    converted.register_forward_hook(_call_children)
    return converted


def _call_children(norm: nn.Module, _: object, output: Tensor) -> Tensor:
    for child in norm.children():
        output = child(output)
    return output


def launch(work: Callable[..., T], job: Sequence[object], ctx: RunContext) -> T:
    """Run ``work(group, ctx, *job)`` in a process per GPU of this machine; return rank 0's result.

    Parameters
    ----------
    work
        Function of a module, as new processes import it.
    ctx
        The GPUs are its device and the ones after it. On a CPU, the processes share it. The
        reporter's `on_epoch` is called in this process, for rank 0; an error in it ends all.

    Raises
    ------
    TransferError
        If a process ends without a result, or the GPUs cannot communicate.
    Exception
        The first error in a process.
    """
    spawn, results = get_context("spawn"), {}
    store = _store(0, is_master=True)  # at a free port
    with contextlib.ExitStack() as stack:
        running = {}
        for rank in range(ctx.training.n_gpus):
            pipe, theirs = spawn.Pipe()
            arguments = (theirs, store.port, _context_of(rank, ctx), rank, work, job)
            process = spawn.Process(target=_run, args=arguments, daemon=True)
            process.start()
            theirs.close()  # so that the pipe ends when the process does
            stack.callback(process.join)
            stack.callback(process.kill)
            running[pipe] = rank, process
        while running:
            ready = wait(list(running))
            for pipe in [pipe for pipe in running if pipe in ready]:
                rank, process = running[pipe]
                try:
                    message = pipe.recv()
                except EOFError as error:
                    process.join()
                    raise TransferError(
                        f"Process {rank} of data-parallel training ended without a result (exit "
                        f"code {process.exitcode})."
                    ) from error
                if isinstance(message, distributed.DistError):
                    raise TransferError(f"The GPUs cannot communicate: {message}") from message
                if isinstance(message, Exception):
                    raise message
                if isinstance(message, bytes):
                    results[rank] = message
                    del running[pipe]
                else:
                    ctx.reporter.on_epoch(*message)
                    pipe.send(None)
    result: T = pickle.loads(results[0])  # from a process that this one started
    return result


def _context_of(rank: int, ctx: RunContext) -> RunContext:
    """Return the context of a rank: its own device and its share of the threads."""
    device, n = ctx.device, ctx.training.n_gpus
    if device.type == "cuda":
        device = torch.device("cuda", (device.index or 0) + rank)
    training = TrainingResources(ctx.training.checkpoint, n)
    n_workers = max(1, ctx.n_workers // n)
    return replace(ctx, device=device, n_workers=n_workers, reporter=Reporter(), training=training)


def _run(
    pipe: "Connection[object, object]",
    port: int,
    ctx: RunContext,
    rank: int,
    work: Callable[..., object],
    job: Sequence[object],
) -> None:
    """Run one rank; send its epochs, then its result or its error, pickled."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends this process
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    keep_freed_memory()

    def on_epoch(epoch: int, accuracy: float | None) -> None:
        pipe.send((epoch, accuracy))
        pipe.recv()  # the parent may end the training run here instead

    try:
        n, backend = ctx.training.n_gpus, "gloo"
        if ctx.device.type == "cuda":
            backend = "cpu:gloo,cuda:nccl"  # by the device of a tensor
            torch.cuda.set_device(ctx.device)
        else:
            torch.set_num_threads(max(1, torch.get_num_threads() // n))
        distributed.init_process_group(
            backend, store=_store(port), rank=rank, world_size=n, timeout=TIMEOUT
        )
        reporting = replace(ctx, reporter=Reporter(on_epoch=on_epoch))
        with ctx.seeded():
            result = work(DataParallelGroup(rank, n), reporting, *job)
        distributed.destroy_process_group()
        pipe.send(pickle.dumps(result if rank == 0 else None))
    except Exception as error:
        pipe.send(error)
        pipe.recv()  # waits to be ended: if one rank left, the others would fail as well


def _store(port: int, *, is_master: bool = False) -> Any:
    """Return the store by which the ranks find each other; it ends with the master's process."""
    return distributed.TCPStore(  # type: ignore[attr-defined]
        "localhost", port, is_master=is_master, wait_for_workers=False
    )


def _exit_with_parent() -> None:
    """End this process when the one that started it has ended, whatever it is waiting for."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
