import sqlite3
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from strategies.core.cache import ArrayCache, as_stored, on_network, space_name
from strategies.core.errors import StorageError

WRITER = """
import sys
from pathlib import Path
import numpy as np
from strategies.core.cache import ArrayCache

cache, me = ArrayCache(Path(sys.argv[1])), sys.argv[2]
for i in range(40):
    cache.put("both", {f"{me}-{i}-{j}": np.full(64, i, dtype=np.float32) for j in range(5)})
    cache.put("both", {"contested": np.full(64, i, dtype=np.float32)})
"""

ONE_BY_ONE = """
import sys
from pathlib import Path
import numpy as np
from strategies.core.cache import ArrayCache

cache = ArrayCache(Path(sys.argv[1]))
with cache.keep_open():
    for i in range(100_000):
        cache.put("space", {f"d{i}": np.full(2000, i, dtype=np.float32)})
        print(i, flush=True)
"""


@pytest.fixture
def cache(tmp_path: Path) -> ArrayCache:
    return ArrayCache(tmp_path / "cache")


def _row(seed: int, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=width).astype(np.float32)


def test_stored_rows_are_returned_unchanged(cache: ArrayCache) -> None:
    rows = {f"d{i}": _row(i) for i in range(5)}
    cache.put("space", rows)

    found = cache.get("space", list(rows))

    assert found.keys() == rows.keys()
    for digest, row in rows.items():
        np.testing.assert_array_equal(found[digest], row)
        assert found[digest].dtype == np.float32


def test_stored_rows_are_found_by_a_new_cache_object(cache: ArrayCache) -> None:
    cache.put("space", {"a": _row(0)})

    np.testing.assert_array_equal(ArrayCache(cache.path.parent).get("space", ["a"])["a"], _row(0))


def test_absent_rows_are_left_out_and_repeated_digests_are_returned_once(
    cache: ArrayCache,
) -> None:
    cache.put("space", {"a": _row(0)})

    assert cache.get("space", ["a", "a", "b"]).keys() == {"a"}
    assert cache.get("space", []) == {}


def test_a_row_of_another_space_is_not_returned(cache: ArrayCache) -> None:
    cache.put("one", {"a": _row(1)})
    cache.put("two", {"a": _row(2)})

    np.testing.assert_array_equal(cache.get("one", ["a"])["a"], _row(1))
    assert cache.get("three", ["a"]) == {}


def test_a_second_put_replaces_the_first(cache: ArrayCache) -> None:
    cache.put("space", {"a": _row(1)})
    cache.put("space", {"a": _row(2)})

    np.testing.assert_array_equal(cache.get("space", ["a"])["a"], _row(2))


def test_more_digests_than_one_query_can_hold_are_all_found(cache: ArrayCache) -> None:
    rows = {f"d{i}": np.array([i], dtype=np.float32) for i in range(1203)}
    cache.put("space", rows)

    found = cache.get("space", list(reversed(rows)))

    assert {k: float(v[0]) for k, v in found.items()} == {f"d{i}": i for i in range(1203)}


def test_only_the_damaged_row_is_left_out(cache: ArrayCache) -> None:
    cache.put("space", {"good": _row(1), "bad": _row(2)})
    with sqlite3.connect(cache.path) as db:
        (data,) = db.execute("SELECT data FROM rows WHERE digest = 'bad'").fetchone()
        flipped = bytes([data[0] ^ 1]) + data[1:]
        db.execute("UPDATE rows SET data = ? WHERE digest = 'bad'", (flipped,))
    db.close()

    assert cache.get("space", ["good", "bad"]).keys() == {"good"}


def test_a_truncated_row_is_left_out(cache: ArrayCache) -> None:
    cache.put("space", {"a": _row(1)})
    with sqlite3.connect(cache.path) as db:
        db.execute("UPDATE rows SET data = substr(data, 1, 7)")
    db.close()

    assert cache.get("space", ["a"]) == {}


@pytest.mark.parametrize("value", [None, "text", 3])
def test_a_row_that_is_not_bytes_is_left_out(cache: ArrayCache, value: object) -> None:
    cache.put("space", {"a": _row(1)})
    with sqlite3.connect(cache.path) as db:
        db.execute("UPDATE rows SET data = ?, crc = ?", (value, zlib.crc32(b"")))
    db.close()

    assert cache.get("space", ["a"]) == {}


def test_a_put_that_fails_half_way_stores_no_row(cache: ArrayCache) -> None:
    cache.put("space", {"first": _row(0)})
    with sqlite3.connect(cache.path) as db:
        db.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON rows WHEN NEW.digest = 'bad' "
            "BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
    db.close()

    with pytest.raises(StorageError, match="refused"):
        cache.put("space", {"good": _row(1), "bad": _row(2)})

    assert cache.get("space", ["good", "bad"]) == {}


def test_features_are_read_in_the_order_of_the_digests(cache: ArrayCache) -> None:
    rows = as_stored(np.stack([_row(i) for i in range(1203)]))
    cache.put_features("space", {f"d{i}": row for i, row in enumerate(rows)})
    wanted = [*reversed(range(1203)), 7, 7]

    found, is_found = cache.read_features("space", [f"d{i}" for i in wanted], 8)

    assert is_found.all()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, rows[wanted])


def test_columns_of_features_are_read_and_absent_rows_are_zero(cache: ArrayCache) -> None:
    rows = as_stored(np.stack([_row(0), _row(1)]))
    cache.put_features("space", {"a": rows[0], "b": rows[1]})

    found, is_found = cache.read_features("space", ["b", "absent", "a"], 8, slice(2, 5))

    assert is_found.tolist() == [True, False, True]
    np.testing.assert_array_equal(found[[0, 2]], rows[[1, 0], 2:5])
    assert not found[1].any()


def test_features_of_another_width_and_damaged_ones_are_absent(cache: ArrayCache) -> None:
    cache.put_features("space", {"short": _row(0, 7), "bad": _row(1), "good": _row(2)})
    with sqlite3.connect(cache.path) as db:
        db.execute("UPDATE rows SET crc = crc + 1 WHERE digest = 'bad'")
    db.close()

    _, is_found = cache.read_features("space", ["short", "bad", "good"], 8)

    assert is_found.tolist() == [False, False, True]


def test_features_that_were_stored_as_float32_are_read(cache: ArrayCache) -> None:
    cache.put("space", {"old": _row(0)})

    found, is_found = cache.read_features("space", ["old"], 8)

    assert is_found.all()
    np.testing.assert_array_equal(found[0], _row(0))


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1.0, 1e4, 1e9, np.nan])
def test_features_of_any_scale_are_read_as_they_were_stored(
    cache: ArrayCache, scale: float
) -> None:
    exact = scale * np.stack([_row(i) for i in range(4)])
    rows = as_stored(exact)
    cache.put_features("space", {f"d{i}": row for i, row in enumerate(rows)})

    found, _ = cache.read_features("space", [f"d{i}" for i in range(4)], 8)

    np.testing.assert_array_equal(found, rows)
    np.testing.assert_allclose(found, exact, atol=1e-3 * np.abs(exact).max())


def test_features_take_half_the_bytes_of_other_rows(cache: ArrayCache) -> None:
    cache.put_features("space", {"a": as_stored(_row(0)[None])[0]})
    with sqlite3.connect(cache.path) as db:
        (n_bytes,) = db.execute("SELECT length(data) FROM rows").fetchone()
    db.close()

    assert n_bytes == 2 * 8


def test_rows_of_all_kinds_are_carried_to_another_cache(cache: ArrayCache, tmp_path: Path) -> None:
    features = as_stored(_row(0)[None])
    cache.put_features("space", {"features": features[0]})
    cache.put("space", {"exact": _row(1)})
    other = ArrayCache(tmp_path / "other")

    other.put_bytes("space", cache.get_bytes("space", ["features", "exact", "absent"]))

    found, is_found = other.read_features("space", ["features", "absent"], 8)
    assert is_found.tolist() == [True, False]
    np.testing.assert_array_equal(found[0], features[0])
    np.testing.assert_array_equal(other.get("space", ["exact"])["exact"], _row(1))


def test_missing_rows_are_told_from_stored_ones(cache: ArrayCache) -> None:
    cache.put("space", {f"d{i}": _row(i) for i in range(1100)})

    assert cache.missing("space", [f"d{i}" for i in range(1102)]) == {"d1100", "d1101"}
    assert cache.missing("other", ["d0"]) == {"d0"}
    assert cache.missing("space", []) == set()


MOUNTS = """\
/dev/vda / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/vdb /home/local ext4 rw 0 0
me@host:/ /mnt/my\\040disk fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "is_network"),
    [
        ("/tmp/cache", False),
        ("/home/me/cache", True),
        ("/home/local/cache", False),
        ("/mnt/my disk/cache", True),
        ("/mnt/other", False),
    ],
)
def test_a_folder_is_on_the_file_system_of_its_nearest_mount(
    tmp_path: Path, folder: str, is_network: bool
) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    assert on_network(Path(folder), tmp_path / "mounts") == is_network


def test_without_a_list_of_mounts_only_network_shares_are_on_a_network(tmp_path: Path) -> None:
    assert not on_network(tmp_path, tmp_path / "absent")


@pytest.mark.parametrize(("is_network", "mode"), [(True, "delete"), (False, "wal")])
def test_no_write_ahead_log_is_kept_on_a_network_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_network: bool, mode: str
) -> None:
    monkeypatch.setattr("strategies.core.cache.on_network", lambda _: is_network)
    cache = ArrayCache(tmp_path)
    cache.put("space", {"a": _row(0)})
    with cache.keep_open():
        ArrayCache(tmp_path).put("space", {"b": _row(1)})
        assert cache.get("space", ["a", "b"]).keys() == {"a", "b"}
        assert cache.path.with_name("cache.sqlite-wal").exists() != is_network
    with sqlite3.connect(cache.path) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == (mode,)
    db.close()


def test_a_write_ahead_log_of_before_is_ended_on_a_network_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ArrayCache(tmp_path).put("space", {"a": _row(0)})
    monkeypatch.setattr("strategies.core.cache.on_network", lambda _: True)
    cache = ArrayCache(tmp_path)

    assert cache.get("space", ["a"]).keys() == {"a"}
    assert not cache.path.with_name("cache.sqlite-wal").exists()


def test_two_processes_can_write_at_once(cache: ArrayCache) -> None:
    folder = str(cache.path.parent)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, folder, me]) for me in ("left", "right")
    ]

    assert [w.wait(timeout=60) for w in writers] == [0, 0]

    digests = [f"{me}-{i}-{j}" for me in ("left", "right") for i in range(40) for j in range(5)]
    found = cache.get("both", [*digests, "contested"])
    assert len(found) == len(digests) + 1
    assert all((row == int(k.split("-")[1])).all() for k, row in found.items() if "-" in k)
    assert (found["contested"] == 39).all()


@pytest.mark.parametrize("n_rows", [1, 40, 333])
def test_a_writer_killed_at_any_moment_loses_no_committed_row(
    cache: ArrayCache, n_rows: int
) -> None:
    command = [sys.executable, "-c", ONE_BY_ONE, str(cache.path.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        written = [int(process.stdout.readline()) for _ in range(n_rows)]
        process.kill()
        written += [int(line) for line in process.stdout.read().split()]

    found = cache.get("space", [f"d{i}" for i in range(len(written) + 2)])

    assert len(written) <= len(found) <= len(written) + 1
    assert all((found[f"d{i}"] == i).all() for i in written)
    assert not cache.info().damaged


def test_a_file_keep_open_can_be_written_by_another_connection(cache: ArrayCache) -> None:
    with cache.keep_open():
        ArrayCache(cache.path.parent).put("space", {"a": _row(1)})
        assert set(cache.get("space", ["a"])) == {"a"}
        cache.put("space", {"b": _row(2)})
    assert set(cache.get("space", ["a", "b"])) == {"a", "b"}


def test_a_folder_that_cannot_be_created_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(StorageError, match="--cache-dir"):
        ArrayCache(tmp_path / "file" / "cache")


NO_DATABASE = b"this is not a database at all" * 1000


def test_a_file_that_is_not_a_database_is_quarantined_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ArrayCache(tmp_path)
    cache.path.write_bytes(NO_DATABASE)

    assert cache.get("space", ["a"]) == {}
    cache.put("space", {"a": _row(1)})

    assert cache.get("space", ["a"]).keys() == {"a"}
    (quarantined,) = cache.info().damaged
    assert quarantined.read_bytes() == NO_DATABASE
    assert "damaged" in caplog.text
    assert quarantined.name in caplog.text


@pytest.mark.parametrize("damage", ["cut", "overwritten", "emptied"])
def test_a_damaged_database_is_detected_and_the_cache_is_usable_again(
    cache: ArrayCache, damage: str
) -> None:
    rows = {f"d{i}": _row(i, 2000) for i in range(100)}
    cache.put("space", rows)
    with sqlite3.connect(cache.path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    data = cache.path.read_bytes()
    contents = {
        "cut": data[: len(data) // 2],
        "overwritten": data[:100] + b"\xff" * (len(data) - 100),
        "emptied": b"",
    }
    cache.path.write_bytes(contents[damage])

    found = cache.get("space", list(rows))
    for digest, row in found.items():
        np.testing.assert_array_equal(row, rows[digest])
    for _ in range(2):  # the first put may be the one that finds the damage
        cache.put("space", rows)
    found = cache.get("space", list(rows))

    assert found.keys() == rows.keys()
    for digest, row in rows.items():
        np.testing.assert_array_equal(found[digest], row)


def test_a_path_that_cannot_be_opened_is_a_storage_error_and_is_not_renamed(
    cache: ArrayCache,
) -> None:
    cache.path.mkdir()

    with pytest.raises(StorageError, match="--cache-dir"):
        cache.get("space", ["a"])
    assert cache.path.is_dir()


def test_json_values_are_returned_unchanged(cache: ArrayCache) -> None:
    values = {"a": [1, 0.1, None, "é\udcff"], "b": {"c": [True, -1e-300]}}
    cache.put_json("space", values)

    assert cache.get_json("space", ["a", "b", "c"]) == values
    assert cache.get_json("other", ["a"]) == {}


def test_the_least_recently_used_rows_are_evicted_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ArrayCache(tmp_path, max_bytes=1_000_000)
    now = 1_700_000_000.0
    monkeypatch.setattr("strategies.core.cache.time.time", lambda: now)
    for i in range(20):
        cache.put("space", {f"d{i}": _row(i, 10_000)})  # 40 kB each
    now += 3600
    assert cache.get("space", ["d0", "d1"]).keys() == {"d0", "d1"}
    now += 3600
    for i in range(20, 30):
        cache.put("space", {f"d{i}": _row(i, 10_000)})

    stored = cache.get("space", [f"d{i}" for i in range(30)]).keys()

    assert {"d0", "d1"} <= stored
    assert {f"d{i}" for i in range(20, 30)} <= stored
    assert "d2" not in stored
    assert len(stored) >= 20
    assert cache.path.stat().st_size < 1_200_000


def test_info_returns_the_size_and_clear_deletes_all_rows(cache: ArrayCache) -> None:
    cache.put("space", {f"d{i}": _row(i, 10_000) for i in range(10)})
    full = cache.info()
    assert full.n_rows == 10
    assert full.n_bytes > 400_000
    assert full.path == cache.path

    cache.clear()

    assert cache.info().n_rows == 0
    assert cache.get("space", ["d0"]) == {}
    cache.put("space", {"d0": _row(0)})
    assert cache.get("space", ["d0"]).keys() == {"d0"}


def test_a_space_name_is_determined_by_all_its_parts() -> None:
    assert space_name([1, "a", (0.5, 0.5)]) == space_name([1, "a", (0.5, 0.5)])
    names = [
        space_name(p) for p in (["ab", "c"], ["a", "bc"], ["a|b", "c"], ["a", "b|c"], ["abc"])
    ]
    assert len(set(names)) == len(names)
