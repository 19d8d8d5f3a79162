import os
from collections.abc import Callable
from pathlib import Path

import pytest

from strategies.core.cache import ArrayCache
from strategies.data import inspection
from strategies.data.dataset import load_dataset


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArrayCache:
    """Return a cache that also stores files written a moment ago."""
    monkeypatch.setattr(inspection, "SETTLED_S", 0.0)
    return ArrayCache(tmp_path / "cache")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list to which the path of every decoded file is added."""
    paths: list[Path] = []
    read_bytes = inspection.read_bytes

    def record(path: Path) -> bytes:
        paths.append(path)
        return read_bytes(path)

    monkeypatch.setattr(inspection, "read_bytes", record)
    return paths


def test_a_cached_dataset_is_equal_and_decodes_no_image(
    make_folder: Callable[..., Path], cache: ArrayCache, decoded: list[Path]
) -> None:
    data = make_folder("data", 6)
    first = load_dataset(data, cache=cache)
    decoded.clear()

    assert load_dataset(data, cache=cache) == first
    assert decoded == []
    assert load_dataset(data) == first


def test_a_changed_image_is_decoded_again_even_with_equal_size_and_mtime(
    make_folder: Callable[..., Path], cache: ArrayCache, decoded: list[Path]
) -> None:
    data = make_folder("data", 6)
    path = data / "class0" / "000.png"
    load_dataset(data, cache=cache)
    decoded.clear()
    before, status = path.read_bytes(), path.stat()
    other = (data / "class0" / "001.png").read_bytes()
    path.write_bytes(other[: len(before)].ljust(len(before), b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert path.stat().st_mtime_ns == status.st_mtime_ns

    load_dataset(data, cache=cache)

    assert decoded == [path]


def test_only_a_new_image_is_decoded(
    make_folder: Callable[..., Path], cache: ArrayCache, decoded: list[Path]
) -> None:
    data = make_folder("data", 6)
    load_dataset(data, cache=cache)
    decoded.clear()
    new = data / "class1" / "new.png"
    new.write_bytes((data / "class1" / "003.png").read_bytes())

    assert len(load_dataset(data, cache=cache).pairs) == 1
    assert decoded == [new]


def test_an_image_moved_to_another_class_gets_the_new_label(
    make_folder: Callable[..., Path], cache: ArrayCache
) -> None:
    data = make_folder("data", 6)
    load_dataset(data, cache=cache)
    (data / "class0" / "000.png").rename(data / "class1" / "moved.png")

    dataset = load_dataset(data, cache=cache)

    labels = {p.path.name: p.label for p in dataset.fit_split + (dataset.test or ())}
    assert labels["moved.png"] == 1


def test_an_unreadable_file_is_tried_again(
    make_folder: Callable[..., Path], cache: ArrayCache, decoded: list[Path]
) -> None:
    data = make_folder("data", 6)
    bad = data / "class0" / "bad.png"
    bad.write_bytes(b"no image")
    first = load_dataset(data, cache=cache)
    decoded.clear()

    assert load_dataset(data, cache=cache).skipped == first.skipped
    assert decoded == [bad]


def test_a_file_changed_a_moment_ago_has_no_signature(tmp_path: Path) -> None:
    path = tmp_path / "new.png"
    path.write_bytes(b"new")

    assert inspection.signature(path) is None
    assert inspection.signature(tmp_path) is None
    assert inspection.signature(tmp_path / "absent.png") is None
