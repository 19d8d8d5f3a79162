"""Fixtures for benchmark scripts: fresh imports, tiny datasets, subprocesses run in-process."""

import contextlib
import importlib
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partialmethod
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image, ImageColor
from torch.utils.data import DataLoader
from typer.core import TyperGroup

from advisor.cli.app import auto_app
from tests.conftest import BENCHMARKS, write_folder

NAMES = sorted(p.stem for p in BENCHMARKS.glob("*.py"))
COMMITTED = ("results", "evidence", "claims")
N_DATASETS = 5
"""Number of datasets whose committed rows are used: fitting priors needs several."""

COLOURS = {"class0": "red", "class1": "green", "class2": "blue"}

Load = Callable[[str], ModuleType]
RunProcess = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Return an importer of scripts that imports them, and the scripts they import, again.

    Committed rows must be unchanged after the test.
    """
    # The null distribution of near-duplicates costs up to a fifth of a second per dataset.
    monkeypatch.setattr("strategies.data.near_duplicates.TAIL_PAIRS", 1000)
    before = {p: p.read_bytes() for p in BENCHMARKS.glob("*.jsonl")}
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in NAMES:
        sys.modules.pop(name, None)
    assert {p: p.read_bytes() for p in BENCHMARKS.glob("*.jsonl")} == before


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data root with one dataset: three classes of twenty striped images."""
    root = tmp_path_factory.mktemp("root")
    write_folder(root / "striped", 20)
    return root


@pytest.fixture(scope="session")
def separable_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data root with one dataset on which a linear probe makes no error.

    A search on it ends early, because nothing is left to try.
    """
    root = tmp_path_factory.mktemp("separable")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / "coloured" / name).mkdir(parents=True)
        for i in range(16):
            pixels = 0.6 * np.array(ImageColor.getrgb(colour)) + rng.uniform(0, 100, (48, 48, 3))
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(root / "coloured" / name / f"{i:03d}.png")
    return root


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache folder that all scripts share, because their images are the same."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return folders named as three shared datasets, and images in place of ImageNet's."""
    root = tmp_path_factory.mktemp("shared")
    for seed, name in enumerate(("flowers5", "cats_dogs", "mnist5k", "imagenet_samples")):
        write_folder(root / name, 5, seed=seed)
    # Classes of this dataset differ by colour, so that its best depth differs.
    for path in (root / "mnist5k").rglob("*.png"):
        Image.new("RGB", (48, 48), COLOURS[path.parent.name]).save(path)
    for i, path in enumerate(sorted((root / "imagenet_samples").rglob("*.png"))):
        Image.open(path).save(root / "imagenet_samples" / f"{i:03d}.jpg")
    return root


@pytest.fixture(scope="session")
def rows_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the committed rows of a few datasets, one seed and two sizes."""
    folder = tmp_path_factory.mktemp("rows")
    rows = rows_in(BENCHMARKS / "results.jsonl")
    chosen = sorted({row["set"] for row in rows if row["n_per_class"] == 5})[:N_DATASETS]
    for name in COMMITTED:
        lines = (BENCHMARKS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        kept = [
            line
            for line, row in ((line, json.loads(line)) for line in lines)
            if name == "claims"
            or (row["set"] in chosen and row["seed"] == 0 and row["n_per_class"] in (5, 20))
        ]
        (folder / f"{name}.jsonl").write_text("\n".join([*kept, ""]), encoding="utf-8")
    return folder


def run_in_process(command: Sequence[object], **_: Any) -> subprocess.CompletedProcess[str]:
    """Run the command of a Python process in this process: imports would take most of its time."""
    _python, what, *arguments = map(str, command)
    out, err = io.StringIO(), io.StringIO()
    code = 0
    pid, os_exit = os.getpid(), os._exit

    def exit_process(code: int) -> None:  # the programs end with os._exit
        if os.getpid() != pid:
            os_exit(code)
        raise SystemExit(code)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "_exit", exit_process)
        patch.setattr(
            DataLoader, "__init__", partialmethod(_init_without_workers, DataLoader.__init__)
        )
        patch.setattr("advisor.cli.console.STARTED_S", time.monotonic())
        patch.setattr("advisor.cli.console.thread_settings", lambda others: {})
        patch.setattr(sys, "argv", [what, *arguments])
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                if what == "-c":
                    patch.setattr(sys, "argv", ["-c", *arguments[1:]])
                    exec(arguments[0], {"__name__": "__main__"})
                else:
                    runpy.run_path(what, run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            err.write("" if end.code is None or isinstance(end.code, int) else str(end.code))
        except Exception:
            code = 1
            err.write(traceback.format_exc())
    return subprocess.CompletedProcess(
        list(map(str, command)), code, out.getvalue(), err.getvalue()
    )


def _init_without_workers(
    loader: DataLoader[Any], init: Callable[..., None], *args: Any, **kwargs: Any
) -> None:
    """Initialise a loader without worker processes."""
    init(loader, *args, **{**kwargs, "num_workers": 0})


@pytest.fixture(scope="session")
def finished_run(
    separable_root: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the folder of a run that ended early, because nothing was left to try."""
    out = tmp_path_factory.mktemp("finished") / "run"
    given = ["--time", "60s", "--input-px", "32", "--no-control", "--quiet"]
    command = [sys.executable, "-c", "from advisor.cli.app import tl_auto; tl_auto()", "run"]
    command += [str(separable_root / "coloured"), "--out", str(out), *given]
    command += ["--cache-dir", str(cache_dir)]
    done = run_in_process(command)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def run_or_reuse(request: pytest.FixtureRequest) -> RunProcess:
    """Return a replacement of ``subprocess.run`` that runs commands in this process.

    All calls of ``tl-auto run`` copy the same finished run, after parsing their options.
    """

    def run(command: Sequence[object], **_: Any) -> subprocess.CompletedProcess[str]:
        words = [*map(str, command)]
        if "tl_auto" not in words[2] or words[3] != "run":
            return run_in_process(command)
        group = typer.main.get_command(auto_app)
        assert isinstance(group, TyperGroup)
        parsed = group.commands["run"].make_context("run", words[4:])  # fails on unknown options
        shutil.copytree(request.getfixturevalue("finished_run"), parsed.params["out"])
        return subprocess.CompletedProcess(words, 0, "", "")

    return run


@pytest.fixture
def in_process(
    run_or_reuse: RunProcess, monkeypatch: pytest.MonkeyPatch
) -> Callable[[ModuleType], None]:
    """Return a function that makes a script's ``subprocess.run`` calls run in this process."""

    def patch(script: ModuleType) -> None:
        monkeypatch.setattr(script, "subprocess", SimpleNamespace(run=run_or_reuse))

    return patch


def rows_in(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
