"""Tables that name images: CSV, TSV or Parquet with the columns path, label and maybe split."""

import csv
import importlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strategies.core.errors import DataError
from strategies.data.image import shown

MANIFEST_SUFFIXES = (".csv", ".tsv", ".parquet")
_COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path"),
    "label": ("label", "class", "target", "category"),
    "split": ("split", "set", "subset"),
}
_BATCH_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a manifest; `number` counts from 1 below the header."""

    number: int
    path: str
    label: str
    split: str


def manifest_rows(manifest: Path) -> Iterator[Row]:
    """Yield the rows of a manifest; only one is held at a time.

    Raises
    ------
    DataError
        If the table cannot be read, lacks a column, or a row lacks a value.
    """
    if manifest.suffix.lower() == ".parquet":
        header, table = _parquet(manifest)
    else:
        header, table = _text(manifest)
    where = _find_columns(manifest, header)
    for number, values in enumerate(table, start=1):
        if not any(values):
            continue  # an empty line
        cells = {name: values[i].strip() for name, i in where.items() if i < len(values)}
        for name in where:
            if not cells.get(name):
                raise DataError(
                    f"{shown(manifest)}, row {number}: no {name}. Every row needs "
                    f"{', '.join(where)}."
                )
        yield Row(number, cells["path"], cells["label"], cells.get("split", ""))


def _find_columns(manifest: Path, header: Sequence[str]) -> dict[str, int]:
    lower = [name.strip().lower() for name in header]
    where = {}
    for column, spellings in _COLUMNS.items():
        found = [i for i, name in enumerate(lower) if name in spellings]
        exact = [i for i in found if lower[i] == column]
        if len(exact or found) > 1:
            names = ", ".join(header[i] for i in found)
            raise DataError(f"{shown(manifest)} has several columns for the {column}: {names}.")
        if found:
            where[column] = (exact or found)[0]
    missing = [column for column in ("path", "label") if column not in where]
    if missing:
        raise DataError(
            f"{shown(manifest)} has no column {' and no column '.join(missing)}. Its first line "
            f"must name path, label and, if there is one, split; it is: {shown(','.join(header))}."
        )
    return where


def _text(manifest: Path) -> tuple[list[str], Iterator[list[str]]]:
    def lines() -> Iterator[list[str]]:
        try:
            # A name need not be valid UTF-8 to be a file's name.
            with manifest.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                first = file.readline()
                file.seek(0)
                tab = manifest.suffix.lower() == ".tsv"
                mark = "\t" if tab else max(",;\t", key=first.count)
                yield from csv.reader(file, delimiter=mark)
        except (OSError, csv.Error) as error:
            raise DataError(f"{shown(manifest)} cannot be read: {error}.") from error

    table = lines()
    return next(table, []), table


def _parquet(manifest: Path) -> tuple[list[str], Iterator[list[str]]]:
    try:
        pyarrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise DataError(
            f"{shown(manifest)} needs pyarrow: pip install 'tl-advisor[hf]', or save it as CSV."
        ) from error
    try:
        file = parquet.ParquetFile(manifest)
        header: list[str] = list(file.schema_arrow.names)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{shown(manifest)} cannot be read as Parquet: {error}.") from error
    _find_columns(manifest, header)
    wanted = [n for n in header if any(n.strip().lower() in names for names in _COLUMNS.values())]

    def rows() -> Iterator[list[str]]:
        try:
            for batch in file.iter_batches(_BATCH_ROWS, columns=wanted):
                columns: Iterable[list[Any]] = [column.to_pylist() for column in batch.columns]
                for values in zip(*columns, strict=True):
                    yield [_cell(value) for value in values]
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{shown(manifest)} cannot be read as Parquet: {error}.") from error

    return wanted, rows()


def _cell(value: Any) -> str:
    """Return a cell as text; 3.0 and 3 are one label, an absent value is empty."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
