"""Tar archives: list the members and read them in place, without unpacking.

A member is addressed like a file in a folder, ``pets.tar/cats/1.jpg``.
"""

import functools
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from strategies.core.errors import DataError


def is_archive(path: Path) -> bool:
    """Return whether a file name is that of an uncompressed tar archive."""
    return path.suffix.lower() == ".tar"


def members(archive: Path) -> Iterator[tuple[str, int, int]]:
    """Yield (name, offset, bytes) of every regular file in an archive, in stored order.

    Raises
    ------
    DataError
        If the file is damaged, compressed, or not a tar archive.
    """
    try:
        with tarfile.open(archive, "r:", errorlevel=0) as tar:
            while (member := tar.next()) is not None:
                vars(tar)["members"].clear()  # tarfile would keep a record of every member
                if member.isreg() and not member.issparse():
                    name = "/".join(p for p in PurePosixPath(member.name).parts if p != "/")
                    yield name, member.offset_data, member.size
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise DataError(
            f"{archive} cannot be read as an uncompressed tar archive: {error}. "
            "Decompress it, or unpack it and give the folder."
        ) from error


def read_member(path: Path, max_bytes: int) -> bytes:
    """Read ``archive.tar/member``.

    Raises
    ------
    DataError
        If the archive or member does not exist, or the member is larger than `max_bytes`.
    """
    archive = next((p for p in path.parents if p.is_file()), None)
    if archive is None or not is_archive(archive):
        raise DataError("no such file")
    status = archive.stat()
    index = _index(archive, status.st_mtime_ns, status.st_size)
    name = path.relative_to(archive).as_posix()
    if name not in index:
        raise DataError(f"{archive.name} has no member of this name")
    offset, size = index[name]
    if size > max_bytes:
        raise DataError(f"{size:,} bytes: over the limit of {max_bytes:,}")
    with archive.open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise DataError(f"{archive.name} ends within this member")
    return data


@functools.lru_cache(maxsize=8)
def _index(archive: Path, mtime_ns: int, size: int) -> Mapping[str, tuple[int, int]]:
    """Return (offset, bytes) by member, cached until the archive's mtime or size changes."""
    return {name: (offset, n_bytes) for name, offset, n_bytes in members(archive)}
