"""How this process asks the system for memory, and how it hears that there is none."""

import ctypes
import sys

import torch

from strategies.core.errors import TransferError

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Numbers of glibc's ``mallopt`` (malloc.h)."""
_KEPT_BYTES = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc keep up to 2 GB of freed memory for the next tensor, for the whole process.

    By default it gives every freed block of some megabytes back to the system, which hands out
    empty pages for the next one: on a CPU a network spends up to half of a forward pass on that.
    The peak of the memory in use stays the same, but it is held until the process ends.

    Returns
    -------
    Whether there was a glibc that took the advice.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    return bool(libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES))


def check_short_memory(error: RuntimeError, device: torch.device) -> None:
    """Return where an error says that memory was short, on any device; raise any other.

    Raises
    ------
    TransferError
        If the device itself failed.
    """
    if isinstance(error, torch.AcceleratorError):
        raise TransferError(
            f"The device {device} failed: {str(error).splitlines()[0]} Its state is lost, so the "
            "training cannot go on; start again, or use --device cpu."
        ) from error
    said = ("not enough memory", "can't allocate memory", "out of memory")
    short = isinstance(error, torch.OutOfMemoryError) or any(s in str(error) for s in said)
    if not short:
        raise error
