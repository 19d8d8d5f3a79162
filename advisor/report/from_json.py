"""Read advice back from JSON (`advice.json` of a run folder, or the cache)."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from cattrs.errors import BaseValidationError
from cattrs.preconf.json import make_converter

from advisor.types.advice import Advice
from strategies.core.errors import StorageError

_CONVERTER = make_converter()


def read_advice(record: Mapping[str, Any]) -> Advice:
    """Restore an `Advice` from its JSON record (the inverse of `advice_record`).

    Raises
    ------
    StorageError
        If the record cannot be read: it is damaged, or was written by another release.
    """
    kinds = get_type_hints(Advice)
    try:
        renamed = {
            "data": Path(record["data"]),
            "split": record["split"]["description"],
            "n_test": record["split"]["test"] or 0,
        }
        same = {
            f.name: _CONVERTER.structure(record[f.name], kinds[f.name])
            for f in fields(Advice)
            if f.name in record and f.name not in renamed
        }
        return Advice(**same, **renamed)
    except (LookupError, TypeError, ValueError, BaseValidationError) as error:
        raise StorageError(
            f"The advice record cannot be read: {error!r}. It is damaged or of another release; "
            "use the release that wrote it."
        ) from error
