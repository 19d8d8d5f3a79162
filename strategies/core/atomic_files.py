"""Atomic writes of files: a reader sees the old file or the whole new one."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from strategies.core.errors import StorageError


@contextlib.contextmanager
def atomic_file(path: Path, *, fsync: bool = True) -> Iterator[BinaryIO]:
    """Open a binary file for writing that replaces `path` when the block ends without an error.

    Parameters
    ----------
    fsync
        Flush the file to the disk before it replaces `path`. Without it, the file may be empty
        after a power failure.
    """
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        yield file
        if fsync:
            file.flush()
            os.fsync(file.fileno())
    part.replace(path)


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON atomically.

    Raises
    ------
    StorageError
        If the file cannot be written.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text atomically.

    Raises
    ------
    StorageError
        If the file cannot be written.
    """
    try:
        with atomic_file(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error
