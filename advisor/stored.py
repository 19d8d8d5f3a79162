"""What a run folder holds as JSON, back as the nouns it was written from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from cattrs.errors import BaseValidationError
from cattrs.preconf.json import make_converter

from advisor.types import (
    Advice,
    Choice,
    Finding,
    Profile,
    Quadrant,
    Recommendation,
    Rejection,
)
from strategies.core.errors import StorageError
from strategies.core.task import Skipped

T = TypeVar("T")
_CONVERTER = make_converter()


def read_advice(record: Mapping[str, Any]) -> Advice:
    """Return advice from what `advice_record` made of it.

    Raises
    ------
    StorageError
        If it is not advice of this version.
    """
    try:
        return Advice(
            task=record["task"],
            data=Path(record["data"]),
            recommendations=_all(record["recommendations"], Recommendation),
            rejections=_all(record["rejections"], Rejection),
            quadrant=_CONVERTER.structure(record["quadrant"], Quadrant),
            profile=_CONVERTER.structure(record["profile"], Profile),
            findings=_all(record["findings"], Finding),
            quarantine=_all(record["quarantine"], Skipped),
            choices=_all(record["choices"], Choice),
            split=record["split"]["description"],
            n_test=record["split"]["test"] or 0,
            seed=record["seed"],
            seconds=record["seconds"],
        )
    except (LookupError, TypeError, ValueError, BaseValidationError) as error:
        raise StorageError(
            f"advice.json is not advice of this release: {error!r}. Use the release that wrote it."
        ) from error


def _all(records: list[Any], kind: type[T]) -> tuple[T, ...]:
    return tuple(_CONVERTER.structure(record, kind) for record in records)
