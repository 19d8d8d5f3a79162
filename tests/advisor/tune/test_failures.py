"""What goes wrong around a search ends with a sentence and costs no finished trial."""

import errno
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from advisor.cli.app import auto_app
from advisor.tune.run_dir.directory import RunDir
from strategies.core.errors import StorageError
from strategies.layer_svm import LayerSVM
from strategies.models.classifier import ImageClassifier
from tests.advisor.searching import Runner

OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: type(e).__name__)
def test_out_of_memory_is_a_reason_and_the_search_goes_on(
    run: Runner, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing(
        monkeypatch, LayerSVM, "fit", error, call=3
    )  # 2: the first trial once more, with validation
    found = run(max_trials=3, only="layer_svm")
    assert [r.val_accuracy is None for r in found.trials] == [False, True, False]
    assert str(found.trials[1].reason).startswith("out of memory")
    assert run.study("layer_svm").trials[1].value is None


def test_a_probe_without_memory_for_val_is_kept_as_it_was(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    run.ctx = replace(run.ctx, on_note=notes.append)
    failing(monkeypatch, LayerSVM, "fit", OUT_OF_MEMORY[1], call=2)
    found = run(max_trials=1, only="layer_svm")
    assert (found.best.number, found.refitted) == (0, False)
    assert "out of memory" in notes[0]


def test_a_bug_is_not_taken_for_out_of_memory(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, LayerSVM, "fit", RuntimeError("shapes do not match"), call=1)
    with pytest.raises(RuntimeError, match="shapes"):
        run(max_trials=1, only="layer_svm")


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [(ImageClassifier, "save", 1), (Path, "rename", 1), (Path, "replace", 6)],
    ids=["classifier", "swap", "json"],
)
def test_a_full_disk_ends_the_search_and_later_it_goes_on(
    run: Runner, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, call: int
) -> None:
    with monkeypatch.context() as patch:
        failing(patch, owner, name, FULL, call=call)
        with pytest.raises(StorageError, match=r"No space left on device.*tl-auto resume"):
            run(max_trials=3, only="layer_svm")
    known = run.prepare().trials.snapshot().done
    found = run.resumed(max_trials=3, only="layer_svm")
    assert [r.number for r in found.trials] == [0, 1, 2]
    assert found.trials[: len(known)] == known
    assert all(r.val_accuracy is not None for r in found.trials)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for a database, and for no classifier."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here: that takes root's rights")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_is_really_full_costs_no_trial(
    small_disk: Path, make_runner: Callable[[Path], Runner]
) -> None:
    run = make_runner(small_disk / "run")
    with pytest.raises(StorageError, match=r"No space left on device.*tl-auto resume"):
        run(max_trials=2, only="linear_probe")
    assert run.folder.best() is None
    size = ["mount", "-o", "remount,size=100m", str(small_disk)]
    subprocess.run(size, check=True)
    found = run.resumed(max_trials=2, only="linear_probe")
    assert [r.number for r in found.trials] == [0, 1]
    assert all(r.val_accuracy is not None for r in found.trials)


def test_a_second_run_on_the_same_folder_is_refused(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = RunDir.create(tmp_path / "run")
    folder.begin({"data": "somewhere"})
    arguments = ["run", str(make_folder("data", 4)), "--out", str(folder.path)]
    with folder.locked():
        for command in (arguments, ["resume", str(folder.path)]):
            found = CliRunner().invoke(auto_app, command)
            assert found.exit_code == 2
            assert "in use" in " ".join(found.stderr.split())
    found = CliRunner().invoke(auto_app, arguments)
    assert found.exit_code == 2
    assert "tl-auto resume" in " ".join(found.stderr.split())


def test_the_data_folder_may_be_read_only_and_stays_as_it_was(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_folder("data", 8)
    folders = [data, *(p for p in data.rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)

    def seen() -> list[tuple[Path, int, int]]:
        return [(p, p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(data.rglob("*"))]

    before = seen()
    out = tmp_path / "run"
    arguments = ["run", str(data), "--out", str(out), "--trials", "1", "--input-px", "32"]
    found = CliRunner().invoke(auto_app, [*arguments, "--cache-dir", str(tmp_path / "cache")])
    for folder in folders:
        folder.chmod(0o755)
    assert found.exit_code == 0, found.output
    assert seen() == before
    assert (out / "outcome.json").exists()


def test_data_that_cannot_be_read_leave_a_folder_that_can_be_used_again(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    data, out = make_folder("data", 4, n_classes=1), tmp_path / "run"
    for _ in range(2):
        found = CliRunner().invoke(auto_app, ["run", str(data), "--out", str(out)])
        assert found.exit_code == 2
        assert "at least two are needed" in " ".join(found.stderr.split())


def failing(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, error: Exception, *, call: int
) -> None:
    """Let the `call`-th call of a method raise."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def fail_once(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, fail_once)
