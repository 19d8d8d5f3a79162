"""A finished run on striped images, made once per session."""

import contextlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from advisor.tune.driver import auto
from advisor.types.options import Options, RunOptions
from tests.conftest import write_folder

TlAuto = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def run_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("deployed") / "data", 16, seed=5)


@pytest.fixture(scope="session")
def finished(run_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run."""
    folder = run_data.parent / "run"
    cache = tmp_path_factory.mktemp("cache")
    options = Options(input_px=64, cache_dir=cache, strategy="linear_probe")
    auto(run_data, folder, options, RunOptions(300.0, max_trials=1, control=False, soup=False))
    return folder


@pytest.fixture
def tl_auto(tmp_path: Path) -> TlAuto:
    """Return a function that runs ``tl-auto`` in a process of its own, 80 columns wide."""

    def run(*arguments: object, exits: int = 0) -> subprocess.CompletedProcess[str]:
        code = "from advisor.cli.app import tl_auto; tl_auto()"
        given = [*map(str, arguments), "--cache-dir", str(tmp_path / "cache")]
        found = subprocess.run(
            [sys.executable, "-c", code, *given],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "80"},
        )
        assert found.returncode == exits, found.stderr
        return found

    return run


@pytest.fixture
def on_terminal(tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs ``tl-auto`` on a terminal of 80 columns; what it shows.

    That is what it prints to stdout, and with `progress` also what it prints to stderr.
    """

    def shown(*arguments: object, progress: bool = False) -> str:
        reader, writer = pty.openpty()
        code = "from advisor.cli.app import tl_auto; tl_auto()"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm" if progress else "dumb"}
        environment["TL_ADVISOR_CACHE_DIR"] = str(tmp_path / "cache")
        errors = writer if progress else subprocess.DEVNULL
        with subprocess.Popen(command, stdout=writer, stderr=errors, env=environment) as process:
            os.close(writer)
            parts = []
            with contextlib.suppress(OSError):  # Linux: the other end is closed
                while part := os.read(reader, 4096):
                    parts.append(part)
        os.close(reader)
        assert process.returncode == 0
        return b"".join(parts).decode()

    return shown


def json_of(found: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(found.stdout)
