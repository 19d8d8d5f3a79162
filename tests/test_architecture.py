"""Rules on code size, imports and documentation that import-linter does not check."""

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from advisor.decide.quadrant import RULES
from strategies.registry import STRATEGIES

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(p for package in ("advisor", "strategies") for p in (ROOT / package).rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_MODULES = 14
MAX_PARAMETERS = 8
STRATEGY_FILES = {f"strategies.{name}" for name in STRATEGIES}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, node.name


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_functions_take_at_most_eight_parameters(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name != "load_dataset":
            given = node.args
            names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            assert len([n for n in names if n not in ("self", "cls")]) <= MAX_PARAMETERS, node.name


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_only_the_registry_imports_the_file_of_a_strategy(path: Path) -> None:
    if module_name(path) != "strategies.registry":
        assert not STRATEGY_FILES & set(imports_of(path))


def test_the_advisor_names_strategies_only_in_the_table_of_the_rule_of_thumb() -> None:
    named = [
        (path.name, node.value)
        for path in FILES
        if module_name(path).startswith("advisor")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in STRATEGIES
    ]
    assert sorted(named) == sorted(("quadrant.py", strategy) for strategy in RULES.values())


def test_no_folder_holds_more_than_fourteen_modules() -> None:
    assert max(Counter(path.parent for path in FILES).values()) <= MAX_MODULES
    beside = {p.name for p in (ROOT / "advisor").glob("*.py")}
    assert beside == {"__init__.py", "advise.py"}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_only_the_command_line_imports_inside_functions(path: Path) -> None:
    if module_name(path).startswith("advisor.cli"):
        return
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(function, ast.FunctionDef):
            inside = [n for n in ast.walk(function) if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not inside, f"{function.name} imports"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_text_files_are_read_and_written_as_utf_8(path: Path) -> None:
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        called = getattr(call.func, "attr", "") if isinstance(call, ast.Call) else ""
        if called in ("read_text", "write_text"):
            assert "encoding" in [k.arg for k in call.keywords], f"line {call.lineno}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_module_imports_timm_before_it_is_needed(path: Path) -> None:
    assert not [name for name in imports_of(path) if name.split(".")[0] == "timm"]


@pytest.mark.parametrize(
    "statement", ["import advisor", "import strategies", "import advisor.cli.app"]
)
def test_importing_a_package_imports_no_heavy_library(statement: str) -> None:
    heavy = ("torch", "timm", "optuna", "sklearn", "scipy")
    code = f"{statement}; import sys; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout.strip() == "[]"


def test_importing_the_advisor_imports_only_what_an_advice_of_the_default_backbone_needs() -> None:
    unused = ("timm", "torchvision", "torch._dynamo", "triton", "scipy.stats", "sklearn", "pandas")
    unused += ("sqlalchemy", "huggingface_hub", "vl_convert", "jinja2")
    code = f"import advisor.advise, sys; print([m for m in {unused} if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout.strip() == "[]"


PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "benchmarks/README.md",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_documents_name_files_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    folders = "advisor|strategies|tests|benchmarks|docs"
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
        assert (page.parent / target).exists(), target
    text = re.sub(r"\]\([^)]*\)", "]", text)
    for name in re.findall(rf"(?<![\w/.-])(?:{folders})/[\w./-]*\w\.\w+", text):
        assert (ROOT / name).exists(), name
    dotted = re.findall(
        r"^from ((?:advisor|strategies)[\w.]*) import|^::: ([\w.]+)\.\w+$", text, re.M
    )
    for name in re.findall(r"^::: ([\w.]+)$", text, re.M):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
    for module in filter(None, (a or b for a, b in dotted)):
        place = ROOT / module.replace(".", "/")
        assert place.is_dir() or place.with_suffix(".py").exists(), module
