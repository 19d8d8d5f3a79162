"""Fixtures for the scripts: each imported again, tiny images, and processes that are run here."""

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
N_SETS = 5
"""Of the committed rows: priors need a few sets."""

COLOURS = {"class0": "red", "class1": "green", "class2": "blue"}

Load = Callable[[str], ModuleType]
Here = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Import a script again, and what it imports."""
    # Finding what is alike by chance costs half a second a dataset, however small.
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
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root of one set: three classes of twenty striped images."""
    root = tmp_path_factory.mktemp("root")
    write_folder(root / "striped", 20)
    return root


@pytest.fixture(scope="session")
def easy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root of one set on which a probe makes no error: nothing is left to try then."""
    root = tmp_path_factory.mktemp("easy")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / "coloured" / name).mkdir(parents=True)
        for i in range(16):
            pixels = 0.6 * np.array(ImageColor.getrgb(colour)) + rng.uniform(0, 100, (48, 48, 3))
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(root / "coloured" / name / f"{i:03d}.png")
    return root


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that all scripts share: the images are the same."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="session")
def shared_sets_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders named as three of the shared sets, and images in place of ImageNet's."""
    root = tmp_path_factory.mktemp("shared")
    for seed, name in enumerate(("flowers5", "cats_dogs", "mnist5k", "imagenet_samples")):
        write_folder(root / name, 5, seed=seed)
    for path in (root / "mnist5k").rglob("*.png"):  # colours tell: a set with another best depth
        Image.new("RGB", (48, 48), COLOURS[path.parent.name]).save(path)
    for i, path in enumerate(sorted((root / "imagenet_samples").rglob("*.png"))):
        Image.open(path).save(root / "imagenet_samples" / f"{i:03d}.jpg")
    return root


@pytest.fixture(scope="session")
def some_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the committed rows of a few sets, of one seed and two sizes."""
    folder = tmp_path_factory.mktemp("rows")
    chosen = sorted({row["set"] for row in rows_in(BENCHMARKS / "results.jsonl")})[:N_SETS]
    for name in COMMITTED:
        lines = (BENCHMARKS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [(line, json.loads(line)) for line in lines]
        kept = [
            line
            for line, row in rows
            if name == "claims"
            or (row["set"] in chosen and row["seed"] == 0 and row["n_per_class"] in (5, 20))
        ]
        (folder / f"{name}.jsonl").write_text("\n".join([*kept, ""]), encoding="utf-8")
    return folder


def run_here(command: Sequence[object], **_: Any) -> subprocess.CompletedProcess[str]:
    """Do what a Python process would, in this one: imports would take most of its time."""
    _python, what, *arguments = map(str, command)
    out, err = io.StringIO(), io.StringIO()
    code = 0
    own, really_leave = os.getpid(), os._exit

    def leave(code: int) -> None:  # as the programs do at their end
        if os.getpid() != own:
            really_leave(code)
        raise SystemExit(code)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "_exit", leave)
        patch.setattr(DataLoader, "__init__", partialmethod(_load_here, DataLoader.__init__))
        patch.setattr("advisor.cli.console.STARTED_S", time.monotonic())
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


def _load_here(
    loader: DataLoader[Any], init: Callable[..., None], *given: Any, **named: Any
) -> None:
    """Make a loader without processes of its own."""
    init(loader, *given, **{**named, "num_workers": 0})


@pytest.fixture(scope="session")
def finished(easy: Path, kept: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended before its time, because nothing was left to try."""
    out = tmp_path_factory.mktemp("finished") / "run"
    given = ["--time", "60s", "--input-px", "32", "--pilot", "off", "--no-control", "--quiet"]
    command = [sys.executable, "-c", "from advisor.cli.app import tl_auto; tl_auto()", "run"]
    command += [str(easy / "coloured"), "--out", str(out), "--cache-dir", str(kept), *given]
    done = run_here(command)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def quickly(request: pytest.FixtureRequest) -> Here:
    """Do in this process what another would, but let all calls of ``tl-auto run`` share a run."""

    def run(command: Sequence[object], **_: Any) -> subprocess.CompletedProcess[str]:
        said = [*map(str, command)]
        if "tl_auto" not in said[2] or said[3] != "run":
            return run_here(command)
        group = typer.main.get_command(auto_app)
        assert isinstance(group, TyperGroup)
        asked = group.commands["run"].make_context("run", said[4:])  # knows all options?
        shutil.copytree(request.getfixturevalue("finished"), asked.params["out"])
        return subprocess.CompletedProcess(said, 0, "", "")

    return run


@pytest.fixture
def here(quickly: Here, monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType], None]:
    """Let the processes that a script starts by ``subprocess.run`` be run in this one."""

    def patch(script: ModuleType) -> None:
        monkeypatch.setattr(script, "subprocess", SimpleNamespace(run=quickly))

    return patch


def rows_in(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
