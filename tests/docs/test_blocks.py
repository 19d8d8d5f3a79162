"""Every command and every Python block of the README and the docs, run as a reader runs them.

Commands of tl-advise and tl-auto and Python blocks are executed page by page, in a folder with a
small dataset ``mydata``, a finished run ``runs/mine``, ``photo.jpg`` and ``more_photos``.
Environment variables keep the fits small. A block that cannot run here stands below a comment
``<!-- not run: reason -->``. ``make`` is run by .ci, scripts of the benchmarks by
tests/benchmarks.
"""

import re
import shlex
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from advisor.cli.app import advise_app, auto_app
from advisor.deploy import estimator
from advisor.tune import driver
from advisor.tune.driver import auto
from advisor.types.options import Options, RunOptions
from strategies import fine_tuning, from_scratch
from strategies.training.loop import ROUNDS
from tests.conftest import write_folder

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if p.parent.name != "benchmarks"),
]
ELSEWHERE = {
    ROOT / "docs/how-to/watch-a-run.md",  # tests/docs/test_watching.py
    ROOT / "docs/using-a-classifier.md",  # what real runs printed; tests/advisor/deploy
    ROOT / "docs/serving.md",  # has tests of its own
}
"""Pages whose blocks other tests run."""
APPS = {"tl-advise": advise_app, "tl-auto": auto_app}
BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?^( *)```(\w*)\n(.*?)^ *```$", re.M | re.S)
SMALL = {
    "TL_ADVISOR_INPUT_PX": "32",
    "TL_ADVISOR_STRATEGY": "linear_probe",
    "TL_ADVISOR_TRIALS": "1",
    "TL_ADVISOR_CONTROL": "false",
    "TL_ADVISOR_REPORT": "false",
    "TL_ADVISOR_DEVICE": "cpu",
}
FOUND = 3
"""Exit code of --fail-on."""


class Block(NamedTuple):
    """A fenced block of a page."""

    marked: bool
    language: str
    code: str


def blocks(page: Path) -> list[Block]:
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [Block(bool(mark), language, code) for mark, _, language, code in found]


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of every command of a page that is not marked."""
    for block in blocks(page):
        lines = [line.strip() for line in block.code.splitlines()]
        shown = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")] or lines
        for line in shown if not block.marked else ():
            if line.split(" ")[0] in APPS:
                words = shlex.split(line, comments=True)
                yield words[: words.index("|")] if "|" in words else words


def python_blocks(page: Path) -> list[str]:
    return [b.code for b in blocks(page) if b.language == "python" and not b.marked]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the pages name, and a cache."""
    folder = tmp_path_factory.mktemp("reader")
    write_folder(folder / "mydata", 14)
    (folder / "options.toml").write_text("max-images = 2000\n", encoding="utf-8")
    (folder / "more_photos").mkdir()
    for path in ("photo.jpg", "more_photos/1.jpg"):
        Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(folder / path)
    with pytest.MonkeyPatch.context() as patch:
        at(folder, patch)
        invoke(["tl-auto", "run", "./mydata", "--out", "runs/mine"])
    return folder


@pytest.fixture
def here(reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory of its own, with a copy of that folder."""
    shutil.copytree(reader, tmp_path / "here", ignore=shutil.ignore_patterns("cache"))
    at(tmp_path / "here", monkeypatch)
    monkeypatch.setenv("TL_ADVISOR_CACHE_DIR", str(reader / "cache"))
    return tmp_path / "here"


def at(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Work in a folder, with small fits."""
    for name, value in SMALL.items():
        patch.setenv(name, value)
    patch.setenv("TL_ADVISOR_CACHE_DIR", str(folder / "cache"))
    patch.chdir(folder)
    for module in (fine_tuning, from_scratch):
        patch.setattr(module, "default_steps", lambda n_train, batch_size: ROUNDS)


def invoke(words: list[str]) -> None:
    program, *arguments = words
    if "--out" in words:  # where an earlier command of the page wrote
        shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        if {"--set", "--config"} & set(words):  # hyperparameters of another strategy
            patch.delenv("TL_ADVISOR_STRATEGY")
        patch.setattr("advisor.cli.console.STARTED_S", time.monotonic())  # a process of its own
        result = CliRunner().invoke(APPS[program], arguments)
    allowed = (0, FOUND) if "--fail-on" in words else (0,)
    assert result.exit_code in allowed, f"{shlex.join(words)}\n{result.output}"


PAGES_WITH_COMMANDS = [page for page in PAGES if any(commands(page)) and page not in ELSEWHERE]


@pytest.mark.usefixtures("exported_once")
@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_commands_of_a_page_run(page: Path, here: Path) -> None:
    of_readme = [] if page == PAGES[0] else list(commands(PAGES[0]))
    for words in commands(page):
        if words in of_readme:  # its own test runs them
            continue
        invoke(words)
        if words[1] == "run" and "runs/mine" in words:
            assert (here / "runs/mine/classifier/classifier.json").exists()


COMMANDS_ELSEWHERE = {ROOT / "docs/using-a-classifier.md"}
"""Pages of which only the commands are run by other tests."""
PAGES_WITH_PYTHON = [
    p for p in PAGES if python_blocks(p) and p not in ELSEWHERE - COMMANDS_ELSEWHERE
]


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_python_blocks_of_a_page_run(
    page: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(data: Any, folder: Any, options: Options, run: RunOptions, **given: Any) -> Any:
        options = replace(options, input_px=32, device="cpu")
        if not run.advised_only:
            options = replace(options, strategy="linear_probe")
        run = replace(run, max_trials=1, control=False, soup=False, report=False)
        return auto(data, folder, options, run, **given)

    for module in (driver, estimator):
        monkeypatch.setattr(module, "auto", small)
    shutil.rmtree(here / "runs/mine") if any("auto(" in c for c in python_blocks(page)) else None
    paths = sorted((here / "mydata").rglob("*.png"))
    names = {"paths": paths[::2], "new_paths": paths[1::2]}
    values: dict[str, Any] = dict(names)
    values["labels"] = [path.parent.name for path in names["paths"]]
    values["new_labels"] = [path.parent.name for path in names["new_paths"]]
    for code in python_blocks(page):
        exec(compile(code, str(page), "exec"), values)
    if page.name == "README.md":
        assert (here / "mine").exists()
        assert values["advice"].data.name == "mydata"


def test_every_block_that_names_a_command_is_found() -> None:
    written = sum(
        len(re.findall(r"^ *(?:\$ )?tl-(?:advise|auto) ", page.read_text(encoding="utf-8"), re.M))
        for page in PAGES
    )
    marked = sum(
        len(re.findall(r"^ *(?:\$ )?tl-(?:advise|auto) ", block.code, re.M))
        for page in PAGES
        for block in blocks(page)
        if block.marked
    )
    assert sum(len(list(commands(page))) for page in PAGES) == written - marked > 30


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
