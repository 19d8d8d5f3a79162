"""Manifests: CSV, TSV or Parquet tables of path and label, and optionally split and group."""

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
    "group": ("group", "group_id"),
}
_MAY_BE_EMPTY = "group"
_BATCH_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a manifest; `number` counts from 1, without the header.

    Images of one group stay in the same split. An empty group is a group of its own.
    """

    number: int
    path: str
    label: str
    split: str
    group: str = ""


def manifest_rows(manifest: Path) -> Iterator[Row]:
    """Yield the rows of a manifest one by one, without reading the whole table into memory.

    Raises
    ------
    DataError
        If the table cannot be read, or a column or a value is missing.
    """
    if manifest.suffix.lower() == ".parquet":
        header, table = _read_parquet(manifest)
    else:
        header, table = _read_text(manifest)
    index = _find_columns(manifest, header)
    for number, values in enumerate(table, start=1):
        if not any(values):
            continue  # an empty line
        cells = {name: values[i].strip() for name, i in index.items() if i < len(values)}
        needed = [name for name in index if name != _MAY_BE_EMPTY]
        for name in needed:
            if not cells.get(name):
                raise DataError(
                    f"{shown(manifest)}, row {number}: no {name}. Every row needs "
                    f"{', '.join(needed)}."
                )
        more = (cells.get("split", ""), cells.get("group", ""))
        yield Row(number, cells["path"], cells["label"], *more)


def _find_columns(manifest: Path, header: Sequence[str]) -> dict[str, int]:
    lower = [name.strip().lower() for name in header]
    index = {}
    for column, spellings in _COLUMNS.items():
        found = [i for i, name in enumerate(lower) if name in spellings]
        exact = [i for i in found if lower[i] == column]
        if len(exact or found) > 1:
            names = ", ".join(header[i] for i in found)
            raise DataError(
                f"{shown(manifest)} has several columns for the {column}: {names}. Keep one, or "
                f"name it {column}."
            )
        if found:
            index[column] = (exact or found)[0]
    missing = [column for column in ("path", "label") if column not in index]
    if missing:
        raise DataError(
            f"{shown(manifest)} has no column {' and no column '.join(missing)}. The header must "
            f"name path, label and optionally split and group; it is: {shown(','.join(header))}."
        )
    return index


def _read_text(manifest: Path) -> tuple[list[str], Iterator[list[str]]]:
    def lines() -> Iterator[list[str]]:
        try:
            # File names need not be valid UTF-8: keep their bytes.
            with manifest.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                first = file.readline()
                file.seek(0)
                tab = manifest.suffix.lower() == ".tsv"
                delimiter = "\t" if tab else max(",;\t", key=first.count)
                yield from csv.reader(file, delimiter=delimiter)
        except (OSError, csv.Error) as error:
            raise DataError(f"{shown(manifest)} cannot be read: {error}.") from error

    table = lines()
    return next(table, []), table


def _read_parquet(manifest: Path) -> tuple[list[str], Iterator[list[str]]]:
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
    """Return a cell as text: 3.0 becomes "3", so that both are one label; a null is empty."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
