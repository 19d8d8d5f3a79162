"""Features of all images of a dataset, written to a Parquet, CSV or NumPy file row by row."""

import contextlib
import csv
import importlib
import io
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from advisor.deploy.features import Embedded, Embedder, embed_files
from advisor.deploy.labelled import Files, list_any
from strategies.core.atomic_files import atomic_file
from strategies.core.context import RunContext
from strategies.core.errors import DataError, StorageError, unknown_name
from strategies.data.image import Skipped, shown

SUFFIXES = (".parquet", ".csv", ".npz")
Write = Callable[[Embedded], None]


@dataclass(frozen=True)
class EmbeddedDataset:
    """What was written.

    Attributes
    ----------
    columns
        Names of the columns before the features.
    n
        Number of images.
    """

    out: Path
    embedder: Embedder
    columns: tuple[str, ...]
    n: int
    skipped: tuple[Skipped, ...]


def check_out(out: Path) -> None:
    """Check that features can be written to a file, before anything is computed.

    Raises
    ------
    StorageError
        If its suffix is unknown, the file exists, its folder does not, or pyarrow is missing.
    """
    suffix = out.suffix.lower()
    if suffix not in SUFFIXES:
        raise StorageError(f"--out {out}: {unknown_name('suffix', suffix, SUFFIXES)}")
    if out.exists():
        raise StorageError(f"{out} already exists. Give another path with --out.")
    if not out.absolute().parent.is_dir():
        raise StorageError(f"--out {out}: there is no folder {out.absolute().parent}.")
    if suffix == ".parquet":
        _pyarrow(out)


def embed_dataset(
    data: Path, out: Path, embedder: Embedder, ctx: RunContext, root: Path | None = None
) -> EmbeddedDataset:
    """Write the features of all images of a dataset or an unlabelled folder to a file.

    The columns are path, label (where the images are labelled), split (where they are split),
    digest (SHA-256 of the file) and the features: in Parquet one column ``features`` of lists of
    fixed size, in CSV the columns f0, f1, ...; an ``.npz`` file holds one array for each, and
    ``features`` is (n, width). Rows are written as they are computed.

    Raises
    ------
    StorageError
        If the file cannot be written, see `check_out`.
    DataError
        If the dataset cannot be used, or no image of it can be read.
    """
    check_out(out)
    listed = list_any(data, root)
    columns = _columns(listed)
    skipped, n = list(listed.skipped), 0
    openers = {".parquet": _parquet, ".csv": _csv, ".npz": _npz}
    try:
        with openers[out.suffix.lower()](out, columns, embedder.width) as write:
            for part in embed_files(listed.files, embedder, ctx):
                skipped += part.skipped
                n += len(part.files)
                if part.files:
                    write(part)
            if not n:
                raise DataError(f"{shown(data)} has no readable image.")
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror or error}") from error
    finally:
        out.with_name(out.name + ".part").unlink(missing_ok=True)
    return EmbeddedDataset(out, embedder, columns, n, tuple(skipped))


def embedded_record(found: EmbeddedDataset) -> dict[str, Any]:
    """Return what was written as plain JSON values."""
    return {
        "out": shown(found.out),
        "n": found.n,
        "columns": found.columns,
        "features": found.embedder.width,
        "network": found.embedder.name,
        "input_px": found.embedder.input_px,
        "quarantine": [{"path": shown(s.path), "reason": s.reason} for s in found.skipped],
    }


def _columns(listed: Files) -> tuple[str, ...]:
    has_labels = any(file.label for file in listed.files)
    return (
        "path",
        *(["label"] if has_labels else []),
        *(["split"] if listed.splits else []),
        "digest",
    )


def _texts(part: Embedded, columns: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the columns before the features. Bytes of names that are not UTF-8 are escaped."""
    found = {
        "path": [shown(file.path) for file in part.files],
        "label": [file.label for file in part.files],
        "split": [file.split for file in part.files],
        "digest": [image.digest for image in part.images],
    }
    return {name: found[name] for name in columns}


@contextlib.contextmanager
def _csv(out: Path, columns: tuple[str, ...], width: int) -> Iterator[Write]:
    with atomic_file(out) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*columns, *(f"f{i}" for i in range(width))])

        def write(part: Embedded) -> None:
            texts = zip(*_texts(part, columns).values(), strict=True)
            for row, features in zip(texts, part.rows.tolist(), strict=True):
                writer.writerow([*row, *(f"{x:.6g}" for x in features)])

        yield write
        text.flush()
        text.detach()


@contextlib.contextmanager
def _parquet(out: Path, columns: tuple[str, ...], width: int) -> Iterator[Write]:
    pyarrow, parquet = _pyarrow(out)
    rows = pyarrow.list_(pyarrow.float32(), width)
    fields = [*((name, pyarrow.string()) for name in columns), ("features", rows)]
    schema = pyarrow.schema(fields)
    with atomic_file(out) as file, parquet.ParquetWriter(file, schema) as writer:

        def write(part: Embedded) -> None:
            flat = pyarrow.array(part.rows.reshape(-1), pyarrow.float32())
            features = pyarrow.FixedSizeListArray.from_arrays(flat, width)
            texts = [pyarrow.array(v, pyarrow.string()) for v in _texts(part, columns).values()]
            writer.write_batch(pyarrow.record_batch([*texts, features], schema=schema))

        yield write


@contextlib.contextmanager
def _npz(out: Path, columns: tuple[str, ...], width: int) -> Iterator[Write]:
    """Write an ``.npz`` file; features wait in a temporary file until their number is known."""
    texts: dict[str, list[str]] = {name: [] for name in columns}
    with tempfile.TemporaryFile(dir=out.absolute().parent) as waiting:

        def write(part: Embedded) -> None:
            for name, values in _texts(part, columns).items():
                texts[name] += values
            waiting.write(np.ascontiguousarray(part.rows, dtype=np.float32).tobytes())

        yield write
        shape = (len(texts["path"]), width)
        waiting.seek(0)
        with atomic_file(out) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, values in texts.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.array(values), allow_pickle=False)
            with archive.open("features.npy", "w", force_zip64=True) as member:
                about = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_2_0(member, about)
                while block := waiting.read(1 << 24):
                    member.write(block)


def _pyarrow(out: Path) -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise StorageError(
            f"{out} needs pyarrow: pip install 'tl-advisor[parquet]', or give a .csv or .npz file."
        ) from error
