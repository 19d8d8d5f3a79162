"""Exception hierarchy: all errors that the program raises on purpose."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

MOST_NAMED = 20
"""Most names that one message lists."""


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
    close = _closest(name, names)
    hint = f" Did you mean {close}?" if close else ""
    return f"Unknown {kind} {name!r}.{hint}{_listed(names)}"


def unknown_names(kind: str, names: Iterable[str], known: Iterable[str]) -> str:
    """Return the error message for several unknown names, each with the closest known names."""
    given, sorted_names, parts = list(names), sorted(known), []
    for name in given[:MOST_NAMED]:
        close = _closest(name, sorted_names)
        parts.append(f"{name!r} (did you mean {close}?)" if close else repr(name))
    more = f" and {len(given) - MOST_NAMED} more" if len(given) > MOST_NAMED else ""
    return f"Unknown {kind}: {', '.join(parts)}{more}.{_listed(sorted_names)}"


def _closest(name: str, known: Sequence[str]) -> str:
    return " or ".join(map(repr, get_close_matches(name, known, n=3)))


def _listed(names: Sequence[str]) -> str:
    return f" Known: {', '.join(names)}." if len(names) <= MOST_NAMED else ""
