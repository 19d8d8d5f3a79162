"""Durations as text: estimates, and limits that the user gave."""

import re

from strategies.core.errors import TransferError


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


def limit_argument(seconds: float) -> str:
    """Return a limit as `parse_duration_s` reads it: ``"90s"``, ``"10m"``."""
    return f"{seconds / 60:.12g}m" if seconds % 60 == 0 else f"{seconds:.12g}s"


def parse_duration_s(flag: str, text: str) -> float:
    """Parse ``"90s"``, ``"10m"``, ``"1.5h"`` or plain seconds into seconds.

    Raises
    ------
    TransferError
        If the text is no duration above 0; the message names the flag.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)?", text.strip())
    if not found or float(found[1]) <= 0:
        raise TransferError(f"{flag} {text!r} is not a duration. Give for example 90s, 10m or 2h.")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, None: 1}[found[2]]
