"""Memory: tune glibc's malloc, and split batches into parts that fit into memory."""

import ctypes
import math
import sys

import torch

from strategies.core.errors import TransferError

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameter numbers of glibc's ``mallopt`` (malloc.h)."""
_TRIM_ABOVE_BYTES = 2**31 - 1
CPU_MICRO_BATCH = 32
"""More images at once are no faster on a CPU, and take memory in proportion."""


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
            f"The device {device} failed: {str(error).splitlines()[0]} Its state is lost, so "
            "training cannot continue. Start the program again, or use --device cpu."
        ) from error
    messages = ("not enough memory", "can't allocate memory", "out of memory")
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
    return min(2 * n, most)
