import subprocess
import sys

import pytest
import torch

from strategies.core.allocator import CPU_MICRO_BATCH, first_micro_batches, keep_freed_memory

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
