"""Findings as files for other tools: JSON, Parquet, FiftyOne and Label Studio.

Every file has the same rows (`finding_rows`): one for each finding and affected image. FiftyOne
and Label Studio show images, so their files have one row per image, and leave out the files that
could not be read (TL001).
"""

import csv
import importlib
import importlib.util
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

from advisor.types.advice import AffectedImage, Finding, Severity
from strategies.core.atomic_files import atomic_file, write_json
from strategies.core.errors import StorageError
from strategies.data.image import shown

JSON_FILE, PARQUET_FILE = "findings.json", "findings.parquet"
FIFTYONE_FILE, LABEL_STUDIO_FILE = "fiftyone.csv", "label_studio.csv"
FILES = (JSON_FILE, PARQUET_FILE, FIFTYONE_FILE, LABEL_STUDIO_FILE)
FORMAT_VERSION = 1
"""Version of ``findings.json``."""
LOCAL_FILES = "/data/local-files/?d="
"""Start of Label Studio's addresses of local files."""
NEEDS_PYARROW = f"{PARQUET_FILE} is left out: it needs pyarrow, pip install 'tl-advisor[parquet]'."
FIFTYONE_COLUMNS = (
    "filepath",
    "label",
    "suggested_label",
    "suggestion_score",
    "duplicate_of",
    "codes",
    "severity",
)
TASK_COLUMNS = ("image", "label", "suggested_label", "suggestion_score", "codes", "severity")
_UNREADABLE = "TL001"


@dataclass(frozen=True, slots=True)
class FindingRow:
    """One affected image of one finding: a row of the exported tables.

    Attributes
    ----------
    path, other_path, label, suggested_label, score
        See `AffectedImage`.
    """

    code: str
    severity: Severity
    path: Path
    other_path: Path | None
    label: str | None
    suggested_label: str | None
    score: float | None


COLUMNS = tuple(field.name for field in fields(FindingRow))


def finding_rows(findings: Iterable[Finding]) -> Iterator[FindingRow]:
    """Yield all affected images of findings: by finding, the clearest first.

    Only advice that was measured in this process has them: ``advise(...).findings``, and not what
    was read from ``advice.json``.
    """
    for finding in findings:
        for image in finding.affected:
            yield FindingRow(finding.code, finding.severity, *astuple(image))


def findings_record(findings: Sequence[Finding], data: Path) -> dict[str, Any]:
    """Return the findings with all affected images as plain JSON values; paths are absolute.

    Parameters
    ----------
    data
        Path of the dataset, to name it.
    """
    return {
        "format_version": FORMAT_VERSION,
        "data": _text(data.absolute()),
        "findings": [
            {
                "code": finding.code,
                "severity": finding.severity,
                "title": finding.title,
                "detail": finding.detail,
                "action": finding.action,
                "voids_advice": finding.voids_advice,
                "n_affected": finding.n_affected,
                "affected": [_plain(asdict(image)) for image in finding.affected],
            }
            for finding in findings
        ],
    }


def has_pyarrow() -> bool:
    """Return whether Parquet files can be written."""
    return importlib.util.find_spec("pyarrow") is not None


def export_findings(findings: Sequence[Finding], data: Path, folder: Path) -> tuple[Path, ...]:
    """Write the findings as `FILES` into a folder; without pyarrow all but the Parquet file.

    Parameters
    ----------
    data
        Path of the dataset, see `local_files_root`.
    folder
        Is created if it does not exist.

    Returns
    -------
    The files that were written.

    Raises
    ------
    StorageError
        If one of the files exists, or cannot be written.
    """
    refuse_existing(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} cannot be created: {error.strerror or error}") from error
    rows = tuple(finding_rows(findings))
    root = local_files_root(findings, data)
    write_json(folder / JSON_FILE, findings_record(findings, data))
    write_table(folder / FIFTYONE_FILE, FIFTYONE_COLUMNS, fiftyone_samples(rows))
    write_table(folder / LABEL_STUDIO_FILE, TASK_COLUMNS, label_studio_tasks(rows, root))
    written = [JSON_FILE, FIFTYONE_FILE, LABEL_STUDIO_FILE]
    if has_pyarrow():
        _write_parquet(folder / PARQUET_FILE, rows)
        written.append(PARQUET_FILE)
    return tuple(folder / name for name in written)


def refuse_existing(folder: Path) -> None:
    """Raise `StorageError` if the folder is a file, or has one of the files already."""
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"--export-findings {shown(folder)} is a file. Give a folder.")
    present = [name for name in FILES if (folder / name).exists()]
    if present:
        raise StorageError(
            f"{shown(folder / present[0])} already exists. Give another folder with "
            "--export-findings."
        )


def write_table(
    path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]], delimiter: str = ","
) -> None:
    """Write rows with a header as CSV. Bytes of paths that are not UTF-8 are kept.

    Raises
    ------
    StorageError
        If the file cannot be written.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        with atomic_file(path) as file:
            file.write(stream.getvalue().encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error


def fiftyone_samples(rows: Iterable[FindingRow]) -> Iterator[dict[str, object]]:
    """Yield one sample per image, as FiftyOne's `CSVDataset` reads it.

    The column ``filepath`` holds absolute paths, which need no data folder. All other columns
    become fields of the sample. The lists are comma-separated, and an empty cell is a missing
    field. Of several rows with one path FiftyOne keeps the last, so there is one per image.

    References
    ----------
    https://docs.voxel51.com/user_guide/import_datasets.html#csvdataset
    """
    for image, codes, severity in _per_image(rows):
        yield {
            "filepath": str(image.path.absolute()),
            "label": image.label,
            "suggested_label": image.suggested_label,
            "suggestion_score": image.score,
            "duplicate_of": None if image.other_path is None else str(image.other_path.absolute()),
            "codes": ",".join(codes),
            "severity": severity,
        }


def label_studio_tasks(rows: Iterable[FindingRow], root: Path) -> Iterator[dict[str, object]]:
    """Yield one task per image, as Label Studio imports it from CSV.

    Every column is a key of the task's data, which a labelling configuration refers to:
    ``<Image name="image" value="$image"/>``, ``<Header value="$suggested_label"/>``. The image is
    an address below Label Studio's folder of local files.

    Parameters
    ----------
    root
        That folder: LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, see `local_files_root`.

    References
    ----------
    https://labelstud.io/guide/tasks, "Import CSV or TSV data";
    https://labelstud.io/guide/storage, "Local storage".
    """
    for image, codes, severity in _per_image(rows):
        below = os.path.relpath(image.path.absolute(), root)
        yield {
            "image": LOCAL_FILES + quote(os.fsencode(below)),
            "label": image.label,
            "suggested_label": image.suggested_label,
            "suggestion_score": image.score,
            "codes": ",".join(codes),
            "severity": severity,
        }


def local_files_root(findings: Iterable[Finding], data: Path) -> Path:
    """Return the folder for LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT.

    It is the parent of the dataset, because Label Studio wants the folder of a local storage
    below this one; or a parent of that which also contains images elsewhere.
    """
    folders = {image.path.absolute().parent for f in findings for image in f.affected}
    return Path(os.path.commonpath([data.absolute().parent, *folders]))


def _per_image(
    rows: Iterable[FindingRow],
) -> Iterator[tuple[AffectedImage, list[str], Severity]]:
    """Yield every image once, with the codes of its findings and the gravest severity.

    Only a suggested label keeps its score: those of other findings have other units.
    """
    found: dict[Path, list[FindingRow]] = {}
    for row in rows:
        if row.code != _UNREADABLE:
            found.setdefault(row.path, []).append(row)
    for path, own in found.items():
        suggested = next((row for row in own if row.suggested_label is not None), None)
        image = AffectedImage(
            path,
            next((row.other_path for row in own if row.other_path is not None), None),
            next((row.label for row in own if row.label is not None), None),
            None if suggested is None else suggested.suggested_label,
            None if suggested is None else suggested.score,
        )
        is_issue = any(row.severity == "issue" for row in own)
        codes = list(dict.fromkeys(row.code for row in own))
        yield image, codes, "issue" if is_issue else "tip"


def _write_parquet(path: Path, rows: Sequence[FindingRow]) -> None:
    """Write the rows with the columns `COLUMNS` as Parquet."""
    pyarrow = importlib.import_module("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    text, number = pyarrow.string(), pyarrow.float64()
    schema = pyarrow.schema([(name, number if name == "score" else text) for name in COLUMNS])
    records = [_plain(asdict(row)) for row in rows]
    table = pyarrow.Table.from_pylist(records, schema=schema)
    try:
        with atomic_file(path) as file:
            parquet.write_table(table, file)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with absolute paths as text."""
    return {
        name: _text(value.absolute()) if isinstance(value, Path) else value
        for name, value in record.items()
    }


def _text(path: Path) -> str:
    """Return a path as text; only a path that is not valid UTF-8 is escaped."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return shown(path)
    return str(path)
