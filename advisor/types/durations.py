"""Durations as text: estimates, and limits that the user gave."""


def duration(seconds: float) -> str:
    """Format an estimate: ``"40 s"``, ``"12 min"`` or ``"3.5 h"``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def time_limit(seconds: float) -> str:
    """Format a limit, with up to one decimal: ``"90 s"``, ``"2.5 min"`` or ``"1 h"``."""
    if seconds < 120 and seconds != 60:
        return f"{round(seconds, 1):g} s"
    if seconds < 3600:
        return f"{round(seconds / 60, 1):g} min"
    return f"{round(seconds / 3600, 1):g} h"
