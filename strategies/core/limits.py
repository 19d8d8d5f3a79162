"""Limits: how much of a dataset is read by default, and the CPUs that this process may use.

This module imports little, so that the commands can show the limits in ``--help`` at once.
"""

import math
import os
from pathlib import Path

MAX_IMAGES = 5_000
"""Default maximum number of images read per split."""
MAX_QUARANTINE = 0.10
"""Default maximum share of unreadable images."""
QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")
"""The container's quota (cgroup v2): microseconds of CPU time per period, or "max"."""


def usable_cpus(quota_file: Path = QUOTA_FILE) -> int:
    """Return how many CPUs this process may use: at least 1.

    It follows the process's affinity where the system has one (Slurm, ``taskset``), and the CPU
    quota of a container, rounded up. ``os.cpu_count`` follows neither.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    n = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text(encoding="ascii").split()
    except OSError:  # no container, or another system than Linux
        return n
    return n if quota == "max" else max(1, min(n, math.ceil(int(quota) / int(period))))
