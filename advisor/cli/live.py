"""Live view of a search: one line per event, and scalars for TensorBoard."""

import importlib
import math
from pathlib import Path
from typing import Any

from advisor.types.events import Event
from advisor.types.outcome import TrialRecord
from strategies.core.errors import StorageError


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


class TensorBoard:
    """Event listener that writes validation accuracies for TensorBoard.

    Raises
    ------
    StorageError
        If TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._make_writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        except ImportError as error:
            raise StorageError(
                "--tensorboard needs TensorBoard: pip install 'tl-advisor[tensorboard]'."
            ) from error
        self._folder = folder
        self._writer: Any = None

    def __call__(self, event: Event) -> None:
        """Write the validation accuracy of an event, if it has one."""
        if event.accuracy is None:
            return
        if self._writer is None:
            self._writer = self._make_writer(str(self._folder))
        if event.kind == "round":
            name = f"val_accuracy/{event.strategy}-{event.number}"
            self._writer.add_scalar(name, event.accuracy.mid, event.step)
        elif event.best is not None and event.best.val_accuracy is not None:
            self._writer.add_scalar("val_accuracy/trial", event.accuracy.mid, event.number)
            self._writer.add_scalar("val_accuracy/best", event.best.val_accuracy.mid, event.number)
        self._writer.flush()

    def close(self) -> None:
        """Close the event files."""
        if self._writer is not None:
            self._writer.close()
