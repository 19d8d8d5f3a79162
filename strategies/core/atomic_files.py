"""Atomic writes of text and JSON files: a reader sees the old file or the new one."""

import json
import os
from pathlib import Path

from strategies.core.errors import StorageError


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON atomically: a reader sees the old file or the whole new one."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text atomically: a reader sees the old file or the whole new one.

    Raises
    ------
    StorageError
        If the file cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error
