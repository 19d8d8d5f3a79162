import pytest

from strategies.core.progress import Laps


def test_a_lap_lasts_from_one_report_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 3.0, 3.5, 10.0])
    monkeypatch.setattr("strategies.core.progress.time.monotonic", lambda: next(clock))
    told: list[tuple[str, int, int]] = []
    laps = Laps(lambda *report: told.append(report), last_s=0.0)

    laps("features", 1, 2)
    laps("features", 2, 2)
    laps("probes", 1, 1)
    laps.end("rest")

    assert laps.seconds == {"features": 3.0, "probes": 0.5, "rest": 6.5}
    assert told == [("features", 1, 2), ("features", 2, 2), ("probes", 1, 1)]
