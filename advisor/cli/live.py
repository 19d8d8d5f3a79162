"""Live view of a search: scalars for TensorBoard."""

import importlib
from pathlib import Path
from typing import Any

from advisor.types.events import Event
from strategies.core.errors import StorageError


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
