"""The time that a recommended fit may take."""

import math
import time

import pytest

from advisor.advise import _limit_s
from strategies.core.context import RunContext


@pytest.mark.parametrize(
    ("time_s", "reserve_s", "expected"),
    [(None, None, math.inf), (60.0, None, 60.0), (None, 20.0, 80.0), (60.0, 20.0, 60.0)],
)
def test_a_fit_must_end_within_its_time_and_before_the_deadline_less_the_reserve(
    ctx: RunContext, time_s: float | None, reserve_s: float | None, expected: float
) -> None:
    limited = ctx.with_deadline(time.monotonic() + 100.0)
    assert _limit_s(time_s, reserve_s, limited) == pytest.approx(expected, abs=1.0)
