"""Durations as text."""

import pytest

from advisor.types.durations import duration, time_limit


@pytest.mark.parametrize(
    ("seconds", "text"), [(40.4, "40 s"), (89, "89 s"), (720, "12 min"), (12600, "3.5 h")]
)
def test_an_estimate_is_rounded(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (15, "15 s"),
        (60, "1 min"),
        (90, "90 s"),
        (120, "2 min"),
        (150, "2.5 min"),
        (437.12, "7.3 min"),
        (3600, "1 h"),
        (5400, "1.5 h"),
    ],
)
def test_a_limit_reads_as_it_was_given(seconds: float, text: str) -> None:
    assert time_limit(seconds) == text
