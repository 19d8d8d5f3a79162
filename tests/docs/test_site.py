"""What docs/hooks.py writes into the pages of the site, and that the site builds."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import typer

from advisor.cli.app import advise_app, auto_app

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page(hooks: ModuleType, name: str) -> str:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    shown: str = hooks.on_page_markdown(text, SimpleNamespace(file=SimpleNamespace(src_uri=name)))
    return shown


def test_every_option_of_every_command_is_listed(hooks: ModuleType) -> None:
    text = page(hooks, "reference/commands.md")
    sections = {s.split("\n", 1)[0]: s for s in re.split(r"^## ", text, flags=re.M)[1:]}
    of = {"tl-advise": typer.main.get_command(advise_app)}
    inner = typer.main.get_command(auto_app).commands  # type: ignore[attr-defined]
    of |= {f"tl-auto {name}": command for name, command in inner.items()}
    for name, command in of.items():
        for option in command.params:
            if option.param_type_name == "option" and not option.hidden and option.help:
                assert f"`{option.opts[0]}`" in sections[name], (name, option.name)
    assert "| `--seed` | Random seed of splits, folds and training. | `0` |" in text


def test_every_field_of_the_advice_is_listed(hooks: ModuleType) -> None:
    text = page(hooks, "reference/json.md")
    assert "| `recommendations` | list of [recommendation](#recommendation) |" in text
    assert "\n## recommendation\n" in text


def test_pages_of_the_repository_are_shown_with_links_that_lead_somewhere(
    hooks: ModuleType,
) -> None:
    assert "## TL003" in page(hooks, "reference/findings.md")
    text = page(hooks, "benchmarks/index.md")
    assert "](regret.md#at-96-px)" in text
    assert "../docs" not in text
    assert page(hooks, "index.md") == (ROOT / "docs/index.md").read_text(encoding="utf-8")


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for module in ("material", "mkdocs_jupyter", "mkdocstrings"):
        pytest.importorskip(module, reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "reference/python/index.html").exists()
