"""What one gets in a given time, as rows that all reports share."""

from dataclasses import dataclass
from itertools import groupby

from advisor.types.advice import Advice, BudgetPick
from advisor.types.durations import time_limit

HEADING = "What you get in a given time"


@dataclass(frozen=True)
class PickRow:
    """A strategy at an input size, and the times from which on it is the best option.

    Attributes
    ----------
    time
        ``"within 15 s"``; in the last row ``"10 min or more"`` or ``"no limit"``.
    pick
        The option, with the shortest of these times.
    """

    time: str
    pick: BudgetPick


def pick_rows(advice: Advice, most: int | None = None) -> tuple[PickRow, ...]:
    """Return one row for every change of the best option, from short times to long ones.

    Parameters
    ----------
    most
        Maximum number of rows, at least 2. The changes that gain least are left out, but neither
        the first row nor the last one.
    """
    picks = () if advice.frontier is None else advice.frontier.picks
    groups = [list(g) for _, g in groupby(picks, key=lambda p: (p.strategy, p.input_px))]
    rows = [PickRow(_time(group), group[0]) for group in groups]
    while most is not None and len(rows) > most:
        inner = range(1, len(rows) - 1)
        rows.pop(min(inner, key=lambda i: _accuracy(rows[i]) - _accuracy(rows[i - 1])))
    return tuple(rows)


def _time(group: list[BudgetPick]) -> str:
    first, last = group[0].time_s, group[-1].time_s
    if first is None:
        return "no limit"
    return f"within {time_limit(first)}" if last is not None else f"{time_limit(first)} or more"


def _accuracy(row: PickRow) -> float:
    return row.pick.accuracy.mid
