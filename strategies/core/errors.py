"""Everything that can go wrong on purpose, as one tree."""

from collections.abc import Iterable
from difflib import get_close_matches


class TransferError(Exception):
    """The root of all errors that this program raises for its user.

    A message says what was given, what it must be, what was found, and what to do.
    """


class DataError(TransferError):
    """The images, their folder or their labels cannot be used as they are."""


class BackboneError(TransferError):
    """A backbone is unknown, cannot be loaded, or is not what its record says."""


class NotApplicable(TransferError):
    """A strategy cannot be used on this dataset or backbone."""


class OutOfTime(TransferError):
    """The deadline passed before there was a result."""


class TrainingDiverged(TransferError):
    """A training's loss became infinite or not a number, again after lower learning rates."""


class StorageError(TransferError):
    """A cache, run folder or saved classifier cannot be read or written."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the sentence for a name that does not exist, with the closest ones that do."""
    names = sorted(known)
    close = get_close_matches(name, names, n=3)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    listed = f" Known: {', '.join(names)}." if len(names) <= 20 else ""
    return f"Unknown {kind} {name!r}.{hint}{listed}"
