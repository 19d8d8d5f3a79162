"""Limits: how much of a dataset is read by default, and the CPUs that this process may use.

This module imports little, so that the commands can show the limits in ``--help`` at once, and can
set the threads of torch before it is imported.
"""

import math
import os
import time
from pathlib import Path

MAX_IMAGES = 5_000
"""Default maximum number of images read per split."""
MAX_QUARANTINE = 0.10
"""Default maximum share of unreadable images."""
QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")
"""The container's quota (cgroup v2): microseconds of CPU time per period, or "max"."""
STAT_FILE = Path("/proc/stat")
"""Linux's counts of clock ticks that every CPU spent for users, the system, idle, and so on."""
BUSY_SHARE = 0.5
"""Other processes count if they keep this share of one CPU busy."""


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


class OtherLoad:
    """Measure how busy other processes keep the CPUs of this one, from now on. Linux only."""

    def __init__(self, stat_file: Path = STAT_FILE) -> None:
        self._file = stat_file
        self._start = self._seconds()

    def share(self) -> float:
        """Return the mean number of CPUs that other processes kept busy; 0 if unknown."""
        found = self._seconds()
        if self._start is None or found is None:
            return 0.0
        elapsed, busy, own = (now - then for now, then in zip(found, self._start, strict=True))
        return max(0.0, busy - own) / elapsed if elapsed > 0 else 0.0

    def _seconds(self) -> tuple[float, float, float] | None:
        """Return clock, busy seconds of the CPUs, and CPU seconds of this process."""
        if not hasattr(os, "sched_getaffinity"):
            return None
        try:
            lines = self._file.read_text(encoding="ascii").splitlines()
        except OSError:  # not shown to this process
            return None
        mine = {f"cpu{n}" for n in os.sched_getaffinity(0)}
        rows = [line.split() for line in lines]
        fields = [[int(v) for v in row[1:]] for row in rows if row and row[0] in mine]
        ticks = sum(sum(f[:3]) + sum(f[5:8]) for f in fields)  # not idle, not waiting for a disk
        return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time()


def thread_settings(others: float) -> dict[str, str]:
    """Return environment variables for the threads of torch, to be set before it is imported.

    By default as many threads as there are CPUs wait for each other by spinning. That is fastest
    on CPUs of one's own. Beside another process, the thread that lost its CPU is waited for by
    threads that use up theirs. `tl-advise` then took twice to four times as long as with threads
    that sleep (docs/benchmarks/speed.md).

    Parameters
    ----------
    others
        How many CPUs other processes keep busy.
    """
    settings = {}
    if hasattr(os, "sched_getaffinity") and usable_cpus() < len(os.sched_getaffinity(0)):
        settings["OMP_NUM_THREADS"] = str(usable_cpus())  # a quota, which torch does not know of
    if others >= BUSY_SHARE:
        settings["OMP_WAIT_POLICY"] = "PASSIVE"
    return settings
