from pathlib import Path

import pytest

from strategies.core.atomic_files import atomic_file, write_json, write_text
from strategies.core.errors import StorageError


def test_an_error_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(TypeError), atomic_file(path) as file:
        file.writelines([b"new", None])
    assert path.read_text(encoding="utf-8") == "old"


def test_json_is_written_as_readable_utf_8(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"größe": 1})
    assert (tmp_path / "file.json").read_bytes() == '{\n  "größe": 1\n}\n'.encode()


def test_a_missing_folder_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"gone/file cannot be written: No such file"):
        write_text(tmp_path / "gone" / "file", "text")
