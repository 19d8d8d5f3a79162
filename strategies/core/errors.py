"""Exception hierarchy: all errors that the program raises on purpose."""

from collections.abc import Iterable
from difflib import get_close_matches


class TransferError(Exception):
    """Base class of all errors that this program raises for its user.

    A message says what was given, what it must be, what was found, and what to do.
    """


class DataError(TransferError):
    """The images, their folder or their labels cannot be used as given."""


class BackboneError(TransferError):
    """A backbone is unknown, cannot be loaded, or contradicts its own metadata."""


class NotApplicable(TransferError):
    """A strategy cannot be applied to this dataset or backbone."""


class OutOfTime(TransferError):
    """The deadline passed before there was a result."""


class TrainingDiverged(TransferError):
    """The training loss became infinite or NaN, even after retries at lower learning rates."""


class StorageError(TransferError):
    """A cache, run folder or saved classifier cannot be read or written."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the error message for an unknown name, with the closest known names."""
    names = sorted(known)
    close = get_close_matches(name, names, n=3)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    listed = f" Known: {', '.join(names)}." if len(names) <= 20 else ""
    return f"Unknown {kind} {name!r}.{hint}{listed}"
