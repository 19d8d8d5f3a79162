import pytest

from strategies.core.progress import PhaseTimer


def test_the_time_between_two_reports_counts_for_the_phase_of_the_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = iter([1.0, 3.0, 3.5, 10.0])
    monkeypatch.setattr("strategies.core.progress.time.monotonic", lambda: next(times))
    reports: list[tuple[str, int, int]] = []
    timer = PhaseTimer(lambda *report: reports.append(report), last_s=0.0)

    timer("features", 1, 2)
    timer("features", 2, 2)
    timer("probes", 1, 1)
    timer.end("rest")

    assert timer.seconds == {"features": 3.0, "probes": 0.5, "rest": 6.5}
    assert reports == [("features", 1, 2), ("features", 2, 2), ("probes", 1, 1)]
