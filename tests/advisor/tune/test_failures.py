"""Failures during a search: a clear message, and no finished trial is lost."""

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
from strategies.core.progress import Reporter
from strategies.layer_svm import LayerSVM
from strategies.models.classifier import ImageClassifier
from tests.advisor.searching import Runner

OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: type(e).__name__)
def test_out_of_memory_fails_the_trial_and_the_search_continues(
    run: Runner, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    # Call 2 refits the first trial on train and validation.
    fail_at_call(monkeypatch, LayerSVM, "fit", error, call=3)
    found = run(max_trials=3, only="layer_svm")
    assert [r.val_accuracy is None for r in found.trials] == [False, True, False]
    assert str(found.trials[1].reason).startswith("out of memory")
    assert run.study("layer_svm").trials[1].value is None


def test_a_probe_that_cannot_be_refitted_for_lack_of_memory_is_kept_as_it_is(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    run.ctx = replace(run.ctx, reporter=Reporter(on_note=notes.append))
    fail_at_call(monkeypatch, LayerSVM, "fit", OUT_OF_MEMORY[1], call=2)
    found = run(max_trials=1, only="layer_svm")
    assert (found.best.number, found.refitted) == (0, False)
    assert "out of memory" in notes[0]


def test_another_runtime_error_is_not_treated_as_out_of_memory(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at_call(monkeypatch, LayerSVM, "fit", RuntimeError("shapes do not match"), call=1)
    with pytest.raises(RuntimeError, match="shapes"):
        run(max_trials=1, only="layer_svm")


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [(ImageClassifier, "save", 1), (Path, "rename", 1), (Path, "replace", 6)],
    ids=["classifier", "swap", "json"],
)
def test_a_full_disk_ends_the_search_and_it_can_be_resumed(
    run: Runner, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, call: int
) -> None:
    with monkeypatch.context() as patch:
        fail_at_call(patch, owner, name, FULL, call=call)
        with pytest.raises(StorageError, match=r"No space left on device.*tl-auto resume"):
            run(max_trials=3, only="layer_svm")
    known = run.prepare().trials.snapshot().done
    found = run.resume(max_trials=3, only="layer_svm")
    assert [r.number for r in found.trials] == [0, 1, 2]
    assert found.trials[: len(known)] == known
    assert all(r.val_accuracy is not None for r in found.trials)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with space for a database but not for a classifier."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here: this needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_file_system_loses_no_trial(
    small_disk: Path, make_runner: Callable[[Path], Runner]
) -> None:
    run = make_runner(small_disk / "run")
    with pytest.raises(StorageError, match=r"No space left on device.*tl-auto resume"):
        run(max_trials=2, only="linear_probe")
    assert run.folder.best() is None
    size = ["mount", "-o", "remount,size=100m", str(small_disk)]
    subprocess.run(size, check=True)
    found = run.resume(max_trials=2, only="linear_probe")
    assert [r.number for r in found.trials] == [0, 1]
    assert all(r.val_accuracy is not None for r in found.trials)


def test_a_second_run_in_the_same_run_directory_is_refused(
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


def test_the_data_folder_may_be_read_only_and_is_not_changed(
    make_folder: Callable[..., Path], tmp_path: Path, warm_cache: Path
) -> None:
    data = make_folder("data", 8)
    folders = [data, *(p for p in data.rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)

    def state() -> list[tuple[Path, int, int]]:
        return [(p, p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(data.rglob("*"))]

    before = state()
    out = tmp_path / "run"
    arguments = ["run", str(data), "--out", str(out), "--trials", "1", "--input-px", "32"]
    found = CliRunner().invoke(auto_app, [*arguments, "--cache-dir", str(warm_cache)])
    for folder in folders:
        folder.chmod(0o755)
    assert found.exit_code == 0, found.output
    assert state() == before
    assert (out / "outcome.json").exists()


def test_after_data_that_cannot_be_used_the_run_directory_can_be_used_again(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    data, out = make_folder("data", 4, n_classes=1), tmp_path / "run"
    for _ in range(2):
        found = CliRunner().invoke(auto_app, ["run", str(data), "--out", str(out)])
        assert found.exit_code == 2
        assert "at least two are needed" in " ".join(found.stderr.split())


def fail_at_call(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, error: Exception, *, call: int
) -> None:
    """Make the `call`-th call of a method raise an error."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def fail_once(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, fail_once)
