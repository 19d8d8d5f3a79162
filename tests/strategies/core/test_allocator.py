import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from strategies.core.allocator import (
    CPU_MICRO_BATCH,
    INFERENCE_MEMORY_SHARE,
    MAX_INFERENCE_BATCH,
    N_SMALL,
    PartsThatFit,
    first_micro_batches,
    inference_batch,
    inference_passes,
    joined,
    keep_freed_memory,
    more_micro_batches,
)
from strategies.core.errors import TransferError

CPU = torch.device("cpu")

COUNT_PAGE_FAULTS = """
import resource, sys
import numpy as np
from strategies.core.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
np.ones(16 << 20, dtype=np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(16 << 20, dtype=np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_page_faults(mode: str) -> int:
    command = [sys.executable, "-c", COUNT_PAGE_FAULTS, mode]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="needs glibc")
def test_freed_memory_is_reused_without_new_page_faults() -> None:
    assert count_page_faults("keep") < count_page_faults("default") / 10


def test_without_glibc_no_setting_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()


@pytest.mark.parametrize("n", [1, 8, CPU_MICRO_BATCH, CPU_MICRO_BATCH + 1, 512])
def test_a_cpu_computes_a_large_batch_in_parts_and_a_gpu_as_a_whole(n: int) -> None:
    parts = first_micro_batches(n, torch.device("cpu"))

    assert n / parts <= CPU_MICRO_BATCH
    assert parts == 1 or n / (parts - 1) > CPU_MICRO_BATCH
    assert first_micro_batches(n, torch.device("cuda")) == 1


def limited(most: int, sizes: list[int]) -> Callable[[Tensor], Tensor]:
    """Return a pass that doubles its inputs, and fails for more than `most` of them."""

    def forward(images: Tensor) -> Tensor:
        sizes.append(len(images))
        if len(images) > most:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 9.1 GiB)")
        return 2 * images

    return forward


@pytest.mark.parametrize(("n", "most"), [(1, 1), (32, 32), (32, 31), (33, 7), (5, 1), (256, 3)])
def test_parts_give_the_outputs_of_the_whole_batch_in_order(n: int, most: int) -> None:
    batch, sizes = torch.arange(3.0 * n).reshape(n, 3), list[int]()
    assert torch.equal(PartsThatFit(CPU)(limited(most, sizes), batch), 2 * batch)
    fitting = [size for size in sizes if size <= most]
    assert sum(fitting) == n
    assert max(fitting) - min(fitting) <= 1  # no part is much smaller than the others


def test_the_size_that_fits_is_kept_for_the_next_batches() -> None:
    sizes, parts = list[int](), PartsThatFit(CPU)
    for n in (32, 32, 5):
        parts(limited(9, sizes), torch.zeros(n, 1))
    assert sizes == [32, 16, *4 * [8], *4 * [8], 5]


def test_a_batch_that_fits_is_passed_as_it_is() -> None:
    batch, seen = torch.zeros(4, 1), list[Tensor]()

    def forward(images: Tensor) -> Tensor:
        seen.append(images)
        return images

    assert PartsThatFit(CPU)(forward, batch) is batch
    assert seen[0] is batch
    assert len(PartsThatFit(CPU)(forward, batch[:0])) == 0


def test_a_single_image_that_does_not_fit_is_named_with_what_to_do() -> None:
    with pytest.raises(TransferError, match=r"even with one image.*smaller --input-px"):
        PartsThatFit(CPU)(limited(0, []), torch.zeros(8, 1))


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (torch.AcceleratorError("CUDA error: device-side assert"), TransferError, "device failed"),
        (RuntimeError("shapes do not match"), RuntimeError, "shapes do not match"),
    ],
)
def test_other_errors_of_a_pass_are_not_tried_again(
    error: RuntimeError, raised: type[Exception], message: str
) -> None:
    n_calls = 0

    def forward(images: Tensor) -> Tensor:
        nonlocal n_calls
        n_calls += 1
        raise error

    with pytest.raises(raised, match=message.replace("device failed", "The device cpu failed")):
        PartsThatFit(CPU)(forward, torch.zeros(8, 1))
    assert n_calls == 1


def pixels_of(n_chunks: int, size: int = 32) -> Iterator[NDArray[np.uint8]]:
    """Yield chunks of "images" that are numbered, (size, 1)."""
    for number in range(n_chunks):
        yield np.arange(number * size, (number + 1) * size, dtype=np.uint8)[:, None]


@pytest.mark.parametrize(("size", "expected"), [(0, 5 * [32]), (63, 5 * [32]), (64, [64, 64, 32])])
def test_chunks_are_joined_up_to_a_size(size: int, expected: list[int]) -> None:
    found = list(joined(pixels_of(5), size))
    assert [len(batch) for batch in found] == expected
    assert np.concatenate(found)[:, 0].tolist() == list(range(160))


def test_joining_reads_no_further_than_a_batch_needs() -> None:
    chunks = pixels_of(5)
    next(joined(chunks, 64))
    assert next(chunks)[0, 0] == 64


def test_a_cpu_passes_what_is_read_together() -> None:
    sizes: list[int] = []

    def forward(pixels: NDArray[np.uint8]) -> Tensor:
        sizes.append(len(pixels))
        return torch.from_numpy(pixels)

    found = torch.cat(list(inference_passes(forward, pixels_of(7), CPU)))
    assert sizes == 7 * [32]
    assert found[:, 0].tolist() == list(range(224))
    assert not list(inference_passes(forward, [], CPU))


def test_a_cuda_device_passes_more_images_once_their_memory_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first batch takes 32 MB of 256 MB: half of the memory holds 128 images."""
    sizes: list[int] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 5 << 20)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 7 << 20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 37 << 20)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (254 << 20, 300 << 20))

    def forward(pixels: NDArray[np.uint8]) -> Tensor:
        sizes.append(len(pixels))
        return torch.from_numpy(pixels)

    device = torch.device("cuda")
    found = torch.cat(list(inference_passes(forward, pixels_of(N_SMALL + 5, 28), device)))
    assert sizes == [*N_SMALL * [28], 4 * 28, 28]
    assert len(found) == (N_SMALL + 5) * 28


def test_a_batch_is_bounded_by_free_memory_and_by_a_constant() -> None:
    assert inference_batch(1e9, int(80e9)) == int(80 * INFERENCE_MEMORY_SHARE)
    assert inference_batch(1e6, int(80e9)) == MAX_INFERENCE_BATCH
    assert inference_batch(1e9, 0) == 1


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 2.00 MiB",
        "[enforce fail] DefaultCPUAllocator: can't allocate memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_a_lack_of_memory_is_recognised_in_every_library(message: str) -> None:
    assert more_micro_batches(1, 8, RuntimeError(message), CPU) == 2
