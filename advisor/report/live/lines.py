"""Events of a search as lines of text."""

import math

from advisor.types.events import Event
from advisor.types.outcome import TrialRecord


def line_of(event: Event) -> str | None:
    """Return an event as one line; None for rounds within a trial."""
    name = f"trial {event.number} {event.strategy}"
    if event.kind == "begun":
        return f"{name}: started{_left(event.seconds_left)}"
    if event.kind == "round":
        return None
    outcome = (
        event.reason
        if event.accuracy is None
        else f"validation accuracy {event.accuracy.percent()}"
    )
    return f"{name}: {outcome}{_best(event.best)}{_left(event.seconds_left)}"


def _best(best: TrialRecord | None) -> str:
    if best is None or best.val_accuracy is None:
        return "; no scored trial yet"
    return f"; best so far: {best.strategy} {best.val_accuracy.percent()}"


def _left(seconds: float) -> str:
    if not math.isfinite(seconds):
        return ""
    whole = max(0, round(seconds))
    return f"; {whole // 60}:{whole % 60:02d} min left"
