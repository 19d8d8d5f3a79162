import os
import time
from pathlib import Path

import pytest

from strategies.core import limits
from strategies.core.limits import OtherLoad, thread_settings, usable_cpus


def test_the_number_of_cpus_is_that_of_the_affinity(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert usable_cpus(tmp_path / "no such file") == 3


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("150000 100000", 2), ("1000 100000", 1), ("1600000 100000", 8)],
)
def test_the_quota_of_a_container_caps_the_number_of_cpus(
    quota: str, expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert usable_cpus(tmp_path / "cpu.max") == expected


def test_without_an_affinity_all_cpus_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cpus(tmp_path / "none") == 6


def _stat(cpus: dict[int, list[int]]) -> str:
    rows = {"cpu": [sum(column) for column in zip(*cpus.values(), strict=True)]}
    rows |= {f"cpu{n}": ticks for n, ticks in cpus.items()}
    lines = [f"{name} {' '.join(map(str, ticks))} 0 0" for name, ticks in rows.items()]
    return "\n".join([*lines, "intr 5 0 0", "ctxt 77", ""])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Return clock and CPU seconds of this process, which a test can change; it has CPUs 0, 1."""
    times = {"monotonic": 5.0, "process_time": 1.0}
    for name in times:
        monkeypatch.setattr(time, name, lambda name=name: times[name])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    return times


def test_what_this_process_does_not_take_of_its_cpus_is_taken_by_others(
    clock: dict[str, float], tmp_path: Path
) -> None:
    stat = tmp_path / "stat"
    stat.write_text(_stat({0: [0, 0, 0, 0, 0, 0, 0, 0], 1: [7] * 8, 2: [0] * 8}))
    others = OtherLoad(stat)
    assert others.share() == 0  # no time has passed

    clock |= {"monotonic": 7.0, "process_time": 1.5}
    #      user nice system idle iowait irq softirq steal
    ticks = [50, 20, 10, 500, 600, 4, 6, 10]
    stat.write_text(_stat({0: ticks, 1: [7 + t for t in ticks], 2: [900] * 8}))

    assert others.share() == pytest.approx((2 * 1.0 - 0.5) / 2)


def test_others_take_nothing_where_the_system_does_not_say(
    clock: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = tmp_path / "stat"
    stat.write_text(_stat({0: [0] * 8, 1: [0] * 8}))
    unseen, without_affinity = OtherLoad(tmp_path / "no such file"), OtherLoad(stat)
    clock["monotonic"] = 7.0
    stat.write_text(_stat({0: [100] * 8, 1: [100] * 8}))
    assert without_affinity.share() > 0
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)

    assert unseen.share() == 0
    assert without_affinity.share() == 0


@pytest.mark.parametrize(
    ("others", "usable", "expected"),
    [
        (0.2, 2, {}),
        (1.0, 2, {"OMP_WAIT_POLICY": "PASSIVE"}),
        (0.0, 1, {"OMP_NUM_THREADS": "1"}),
        (2.0, 1, {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}),
    ],
)
def test_threads_sleep_beside_other_processes_and_keep_to_the_quota(
    others: float,
    usable: int,
    expected: dict[str, str],
    clock: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "usable_cpus", lambda: usable)
    assert thread_settings(others) == expected
