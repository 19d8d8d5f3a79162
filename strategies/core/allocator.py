"""Memory: tune glibc's malloc, and split batches into parts that fit into memory."""

import ctypes
import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strategies.core.errors import TransferError

logger = logging.getLogger(__name__)

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameter numbers of glibc's ``mallopt`` (malloc.h)."""
_TRIM_ABOVE_BYTES = 2**31 - 1
CPU_MICRO_BATCH = 32
"""More images at once are no faster on a CPU, and take memory in proportion."""
MAX_INFERENCE_BATCH = 256
"""Largest batch without gradients on an accelerator."""
INFERENCE_MEMORY_SHARE = 0.5
"""Share of an accelerator's free memory that a batch without gradients may take."""

N_SMALL = 4
"""Batches of a pass that are not made larger. The time of an image is measured on them, so that it
is comparable between passes of few and of many images, and with a training step."""

Images = TypeVar("Images", Tensor, NDArray[np.uint8])
"""A batch of images: pixels, or a tensor on the device."""


def keep_freed_memory() -> bool:
    """Let glibc keep up to 2 GB of freed memory for reuse, in the whole process.

    By default glibc returns every freed block of some megabytes to the system, which then maps
    zeroed pages for the next tensor. On a CPU that takes up to half of a forward pass. The peak
    memory stays the same, but the process holds it until it ends.

    Returns
    -------
    Whether glibc is in use and accepted the settings.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    return bool(libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, _TRIM_ABOVE_BYTES))


def first_micro_batches(n_images: int, device: torch.device) -> int:
    """Return into how many micro-batches a batch is split before memory is known to be short.

    One on an accelerator, which reports a lack of memory. On a CPU, where a process that takes too
    much is killed, as many as have at most `CPU_MICRO_BATCH` images each.
    """
    return math.ceil(n_images / CPU_MICRO_BATCH) if device.type == "cpu" else 1


def more_micro_batches(n: int, most: int, error: RuntimeError, device: torch.device) -> int:
    """Return twice as many micro-batches after an out-of-memory error, and at most `most`.

    Raises
    ------
    TransferError
        If there were `most`, or the accelerator itself failed.
    RuntimeError
        Any other error.
    """
    if isinstance(error, torch.AcceleratorError):
        raise TransferError(
            f"The device {device} failed: {str(error).splitlines()[0]} Its state is lost. "
            "Start the program again, or use --device cpu."
        ) from error
    messages = ("not enough memory", "can't allocate memory", "out of memory", "ALLOC_FAILED")
    is_known = any(message in str(error) for message in messages)
    if not (is_known or isinstance(error, torch.OutOfMemoryError)):
        raise error
    if n >= most:
        raise TransferError(
            f"{device} is out of memory even with one image at a time. "
            "Use a smaller --input-px, a smaller backbone, or --device cpu."
        ) from error
    if device.type == "cuda":
        torch.cuda.empty_cache()
    logger.info("%s is out of memory: a batch is computed in %d parts", device, min(2 * n, most))
    return min(2 * n, most)


def in_micro_batches(
    attempt: Callable[[int], None], n: int, most: int, device: torch.device
) -> int:
    """Compute a gradient in micro-batches that fit into memory; return how many it took.

    Parameters
    ----------
    attempt
        Computes the whole gradient in the given number of micro-batches. After an out-of-memory
        error it is called again with more of them.
    n, most
        The number to begin with, and the largest one: that of the images.

    Raises
    ------
    TransferError
        If a single image does not fit into memory, or the device failed.
    """
    while True:
        try:
            attempt(n)
        except RuntimeError as error:
            n = more_micro_batches(n, most, error, device)
        else:
            return n


class PartsThatFit:
    """Passes batches without gradients through a network, in parts that fit into memory.

    A batch is passed as a whole. After an out-of-memory error, the rest of it and all later
    batches are passed in parts of at most half the size. One instance serves one pass.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._most: int | None = None

    def __call__(self, forward: Callable[[Images], Tensor], batch: Images) -> Tensor:
        """Return the outputs of a batch, (n, ...), in the order of its images.

        Parameters
        ----------
        forward
            Returns the outputs of some of the images, one row each. It is called again for the
            images of a part that did not fit, so it must not keep what it has done for them. If it
            returns its outputs on the CPU, those of a whole batch need not fit on the device.

        Raises
        ------
        TransferError
            If a single image does not fit, or the accelerator itself failed.
        """
        outputs: list[Tensor] = []
        done, n = 0, len(batch)
        while done < n or not outputs:
            size = self._size(n - done)
            part = batch if size == n else batch[done : done + size]
            try:
                outputs.append(forward(part))
            except RuntimeError as error:
                self._most = math.ceil(size / more_micro_batches(1, size, error, self.device))
            else:
                done += size
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _size(self, n_left: int) -> int:
        """Return the size of the next part: all parts of the rest have nearly the same."""
        if self._most is None or n_left <= self._most:
            return n_left
        return math.ceil(n_left / math.ceil(n_left / self._most))


def inference_passes(
    forward: Callable[[NDArray[np.uint8]], Tensor],
    chunks: Iterable[NDArray[np.uint8]],
    device: torch.device,
) -> Iterator[Tensor]:
    """Yield the outputs of batches without gradients, in order: one batch per chunk on a CPU.

    On a CUDA device the first `N_SMALL` batches are one chunk each. The memory that the first one
    takes decides how many chunks make one of the later batches (`inference_batch`).

    Parameters
    ----------
    forward
        As in `PartsThatFit`.
    chunks
        Pixels, uint8 (n, h, w, 3). They are read no further than the next batch needs.

    Raises
    ------
    TransferError
        If a single image does not fit into memory, or the device failed.
    """
    parts, rest = PartsThatFit(device), iter(chunks)
    size = 0
    for chunk in islice(rest, 1):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            outputs = parts(forward, chunk)
            taken = torch.cuda.max_memory_allocated(device) - before
            size = inference_batch(taken / max(len(chunk), 1), free_bytes(device))
            logger.info("batches of up to %d images fit into the memory of %s", size, device)
        else:
            outputs = parts(forward, chunk)
        yield outputs
    for batch in chain(islice(rest, N_SMALL - 1), joined(rest, size)):
        yield parts(forward, batch)


def joined(chunks: Iterator[NDArray[np.uint8]], size: int) -> Iterator[NDArray[np.uint8]]:
    """Join consecutive chunks to batches of at most `size` images, and of at least one chunk."""
    held: list[NDArray[np.uint8]] = []
    for chunk in chunks:
        if held and sum(map(len, held)) + len(chunk) > size:
            yield np.concatenate(held)
            held = []
        held.append(chunk)
        if sum(map(len, held)) >= size:
            yield held[0] if len(held) == 1 else np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)


def inference_batch(bytes_per_image: float, free: int) -> int:
    """Return the largest batch without gradients, in images, for a number of free bytes."""
    fits = INFERENCE_MEMORY_SHARE * free / max(bytes_per_image, 1.0)
    return max(1, min(MAX_INFERENCE_BATCH, int(fits)))


def total_bytes(device: torch.device) -> int | None:
    """Return the bytes of memory of a CUDA device; None for other devices."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None


def free_bytes(device: torch.device) -> int:
    """Return the bytes of a CUDA device that torch can still allocate, its cache included."""
    free, _ = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free) + reserved
