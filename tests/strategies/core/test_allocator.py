import subprocess
import sys

import pytest
import torch

from strategies.core.allocator import CPU_MICRO_BATCH, first_micro_batch, keep_freed_memory

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


@pytest.mark.parametrize("batch_size", [8, CPU_MICRO_BATCH, 512])
def test_a_cpu_computes_a_large_batch_in_parts_and_a_gpu_as_a_whole(batch_size: int) -> None:
    on_cpu = first_micro_batch(batch_size, torch.device("cpu"))

    assert on_cpu == min(batch_size, CPU_MICRO_BATCH)
    assert first_micro_batch(batch_size, torch.device("cuda")) == batch_size
