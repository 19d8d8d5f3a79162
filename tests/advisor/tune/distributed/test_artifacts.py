"""What machines share: facts change at once, files are whole, and a store is a folder or S3."""

import stat
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

from advisor.tune.distributed.artifacts import Artifacts, Board
from strategies.core.errors import StorageError

BUCKET = "shared"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket that moto plays, for the length of a test."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield f"s3://{BUCKET}/some/where"


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        name: str = request.getfixturevalue("bucket")
        return name
    return str(tmp_path / "artifacts")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'trials.db'}"


def keys(store: str) -> list[str]:
    """What lies in a store."""
    if store.startswith("s3://"):
        found = boto3.client("s3").list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return [entry["Key"] for entry in found]
    return [str(path) for path in Path(store).iterdir()]


def test_a_fact_and_its_file_reach_another_process(store: str, url: str, tmp_path: Path) -> None:
    board = Board(url, "a/", store, new=True)
    (tmp_path / "file").write_bytes(b"learnt")
    board.put("checkpoint 3", tmp_path / "file", {"round": 2})
    other = Board(url, "a/", store)
    assert other.get("checkpoint 3", tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == b"learnt"
    fact = other.fact("checkpoint 3")
    assert fact is not None
    assert fact["round"] == 2
    assert all(str(fact["file"]) in key for key in keys(store))


def test_a_file_that_is_replaced_or_dropped_leaves_nothing(
    store: str, url: str, tmp_path: Path
) -> None:
    board = Board(url, "a/", store, new=True)
    for content in (b"old", b"new"):
        (tmp_path / "file").write_bytes(content)
        board.put("best", tmp_path / "file", {"number": 1})
    assert len(keys(store)) == 1
    assert board.get("best", tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == b"new"
    board.clear()
    assert keys(store) == []
    assert board.fact("best") == {"number": 1}
    assert not board.get("best", tmp_path / "gone")


def test_a_reader_whose_file_is_replaced_meanwhile_finds_the_new_one(
    store: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board(url, "a/", store, new=True)
    (tmp_path / "file").write_bytes(b"old")
    board.put("best", tmp_path / "file")
    outdated = board.fact("best")
    (tmp_path / "file").write_bytes(b"new")
    board.put("best", tmp_path / "file")
    with_stats = iter([outdated, board.fact("best")])
    monkeypatch.setattr(board, "fact", lambda name: next(with_stats))
    assert board.get("best", tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == b"new"


def test_runs_in_one_database_and_store_do_not_meet(store: str, url: str, tmp_path: Path) -> None:
    one, two = Board(url, "a/", store, new=True), Board(url, "b/", store, new=True)
    one.set("state", {"phase": "searching"})
    assert two.fact("state") is None
    one.take_down()
    with pytest.raises(StorageError, match=r"knows of no run 'a'.*It knows: b"):
        Board(url, "a/", store)


def test_a_bucket_that_is_not_there_is_told_of_at_once(bucket: str, url: str) -> None:
    with pytest.raises(StorageError, match=r"s3://elsewhere cannot be written.*bucket"):
        Artifacts("s3://elsewhere")
    with pytest.raises(StorageError, match="names no bucket"):
        Artifacts("s3://")


def test_a_folder_that_cannot_be_written_is_told_of_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be used"):
        Artifacts(str(tmp_path / "file"))
    assert stat.S_ISREG((tmp_path / "file").stat().st_mode)
