import pytest

from strategies.core.progress import PhaseTimer


def test_a_lap_lasts_from_one_report_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = iter([1.0, 3.0, 3.5, 10.0])
    monkeypatch.setattr("strategies.core.progress.time.monotonic", lambda: next(budget))
    told: list[tuple[str, int, int]] = []
    phase_timer = PhaseTimer(lambda *report: told.append(report), last_s=0.0)

    phase_timer("features", 1, 2)
    phase_timer("features", 2, 2)
    phase_timer("probes", 1, 1)
    phase_timer.end("rest")

    assert phase_timer.seconds == {"features": 3.0, "probes": 0.5, "rest": 6.5}
    assert told == [("features", 1, 2), ("features", 2, 2), ("probes", 1, 1)]
