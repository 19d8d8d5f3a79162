"""Shared records and files: atomic updates, complete files, in a folder or on S3."""

import stat
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

from advisor.tune.distributed.artifacts import Artifacts, SharedRecords
from strategies.core.errors import StorageError

BUCKET = "shared"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 bucket mocked by moto."""
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
    """Return the names of the files in a store."""
    if store.startswith("s3://"):
        found = boto3.client("s3").list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return [entry["Key"] for entry in found]
    return [str(path) for path in Path(store).iterdir()]


def test_a_record_and_its_file_reach_another_process(store: str, url: str, tmp_path: Path) -> None:
    records = SharedRecords(url, "a/", store, new=True)
    (tmp_path / "file").write_bytes(b"learnt")
    records.put_file("checkpoint 3", tmp_path / "file", {"round": 2})
    other = SharedRecords(url, "a/", store)
    assert other.get_file("checkpoint 3", tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == b"learnt"
    record = other.get_json("checkpoint 3")
    assert record is not None
    assert record["round"] == 2
    assert all(str(record["file"]) in key for key in keys(store))


def test_a_replaced_or_dropped_file_is_deleted_from_the_store(
    store: str, url: str, tmp_path: Path
) -> None:
    records = SharedRecords(url, "a/", store, new=True)
    for content in (b"old", b"new"):
        (tmp_path / "file").write_bytes(content)
        records.put_file("best", tmp_path / "file", {"number": 1})
    assert len(keys(store)) == 1
    assert records.get_file("best", tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == b"new"
    records.drop_files()
    assert keys(store) == []
    assert records.get_json("best") == {"number": 1}
    assert not records.get_file("best", tmp_path / "gone")


def test_a_reader_whose_file_is_replaced_meanwhile_gets_the_new_one(
    store: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = SharedRecords(url, "a/", store, new=True)
    (tmp_path / "file").write_bytes(b"old")
    records.put_file("best", tmp_path / "file")
    outdated = records.get_json("best")
    (tmp_path / "file").write_bytes(b"new")
    records.put_file("best", tmp_path / "file")
    reads = iter([outdated, records.get_json("best")])
    monkeypatch.setattr(records, "get_json", lambda name: next(reads))
    assert records.get_file("best", tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == b"new"


def test_runs_in_one_database_and_store_are_separate(store: str, url: str, tmp_path: Path) -> None:
    one, two = SharedRecords(url, "a/", store, new=True), SharedRecords(url, "b/", store, new=True)
    one.put_json("state", {"phase": "searching"})
    assert two.get_json("state") is None
    one.delete()
    with pytest.raises(StorageError, match=r"has no run 'a'.*Its runs are: b"):
        SharedRecords(url, "a/", store)


def test_a_missing_bucket_is_reported_at_once(bucket: str, url: str) -> None:
    with pytest.raises(StorageError, match=r"s3://elsewhere cannot be written.*bucket"):
        Artifacts("s3://elsewhere")
    with pytest.raises(StorageError, match="names no bucket"):
        Artifacts("s3://")


def test_a_folder_that_cannot_be_written_is_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be used"):
        Artifacts(str(tmp_path / "file"))
    assert stat.S_ISREG((tmp_path / "file").stat().st_mode)
