"""Memory: tune glibc's malloc, bound micro-batches, and recognise out-of-memory errors."""

import ctypes
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


def first_micro_batch(batch_size: int, device: torch.device) -> int:
    """Return how many images of a batch to compute at once, before memory is known to be short.

    All of them on an accelerator, which reports a lack of memory; at most `CPU_MICRO_BATCH` on a
    CPU, where a process that takes too much is killed.
    """
    return min(batch_size, CPU_MICRO_BATCH) if device.type == "cpu" else batch_size


def reraise_unless_out_of_memory(error: RuntimeError, device: torch.device) -> None:
    """Return if an error is an out-of-memory error, on any device; raise it otherwise.

    Raises
    ------
    TransferError
        If the accelerator itself failed.
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
