"""Devices: choose one and its precision, copy to it, and set what CUDA computes with."""

import contextlib
from collections.abc import Iterator

import torch
from torch.backends import cuda, cudnn
from torch.nn.attention import SDPBackend, sdpa_kernel

from strategies.core.errors import TransferError


def make_device(device: str) -> torch.device:
    """Return a device by name; "auto" selects the fastest one available.

    Raises
    ------
    TransferError
        If the device is unknown or unavailable.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        chosen = torch.device(device)
        if chosen.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError(f"{chosen.type} is not supported.")
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise TransferError(
            f"--device {device} cannot be used here: {reason} Use auto, cpu, cuda or cuda:N."
        ) from error
    return chosen


def choose_precision(device: torch.device) -> torch.dtype:
    """Return the dtype in which forward passes are fastest on a device."""
    if device.type == "cuda":
        # Older GPUs (V100, T4) emulate bfloat16, which is slower than float32.
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if is_native else torch.float16
    if device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False):
        return torch.bfloat16
    return torch.float32


def predict_precision(device: torch.device) -> torch.dtype:
    """Return the dtype in which new images are classified on a device: on a CPU float32.

    That is how its exports compute, and it is the same on every processor. bfloat16 changed the
    class of up to 2% of the images (benchmarks/exports.py).
    """
    return torch.float32 if device.type == "cpu" else choose_precision(device)


def device_name(device: torch.device) -> str:
    """Return the name of a device's model, which timings depend on: "cpu", "mps" or a GPU's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def copy_to(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor from the CPU to a device, without waiting for work that runs there.

    For CUDA it is pinned first. From other memory the copy would wait.
    """
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


@contextlib.contextmanager
def cuda_settings(device: torch.device, *, is_deterministic: bool = False) -> Iterator[None]:
    """Context with explicit settings of CUDA; those of before come back at its end.

    TF32 is off: what is computed in float32 here needs its precision, and everything else is
    computed in 16 bits. cuDNN times its algorithms once for every shape of a batch, unless results
    must be deterministic. Without CUDA this changes nothing.

    Parameters
    ----------
    is_deterministic
        Whether equal inputs give equal bits. Operations that torch has no deterministic kernel
        for are used with a warning. Attention is computed by plain matrix products: while torch
        only warns, the gradients of its faster kernels are not deterministic.
    """
    if device.type != "cuda":
        yield
        return
    matmul_tf32, conv_tf32 = cuda.matmul.allow_tf32, cudnn.allow_tf32
    before = cudnn.benchmark, cudnn.deterministic
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    attention = sdpa_kernel(SDPBackend.MATH) if is_deterministic else contextlib.nullcontext()
    cuda.matmul.allow_tf32 = cudnn.allow_tf32 = False
    cudnn.benchmark, cudnn.deterministic = not is_deterministic, is_deterministic
    if is_deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with attention:
            yield
    finally:
        cuda.matmul.allow_tf32, cudnn.allow_tf32 = matmul_tf32, conv_tf32
        cudnn.benchmark, cudnn.deterministic = before
        torch.use_deterministic_algorithms(was_deterministic, warn_only=warned_only)
