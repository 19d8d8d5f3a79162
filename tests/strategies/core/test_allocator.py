import subprocess
import sys

import pytest

from strategies.core.allocator import keep_freed_memory

FAULTS = """
import resource, sys
import numpy as np
from strategies.core.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
np.ones(16 << 20, dtype=np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(16 << 20, dtype=np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    command = [sys.executable, "-c", FAULTS, mode]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="there is no glibc whose memory could be kept")
def test_freed_memory_is_used_again_instead_of_empty_pages_from_the_system() -> None:
    assert faults("kept") < faults("given back") / 10


def test_without_glibc_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
