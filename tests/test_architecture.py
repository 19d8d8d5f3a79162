"""The house: which room may know which, and how large a room may be."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(p for room in ("advisor", "strategies") for p in (ROOT / room).rglob("*.py"))

# From the bottom up; a module may import from its own level (unless it is alone there) and below.
LEVELS: tuple[tuple[str, ...], ...] = (
    ("strategies.core",),
    ("strategies.base",),
    (
        "strategies.linear_probe",
        "strategies.layer_svm",
        "strategies.partial_fine_tune",
        "strategies.full_fine_tune",
        "strategies.from_scratch",
    ),
    ("strategies.registry",),
    ("advisor.similarity", "advisor.probing", "advisor.scale"),
    ("advisor.types", "advisor.priors", "advisor.options"),
    ("advisor.moment_shift", "advisor.transferability"),
    ("advisor.kernel_distance", "advisor.head_evidence"),
    ("advisor.reference",),
    ("advisor.domain", "advisor.quadrant", "advisor.doubts", "advisor.evidence"),
    ("advisor.paired",),
    ("advisor.control", "advisor.curve", "advisor.neighbours", "advisor.gain"),
    (
        "advisor.profile",
        "advisor.checks",
        "advisor.data_checks",
        "advisor.picture_checks",
        "advisor.demo",
        "advisor.explain",
        "advisor.transfer_gain",
        "advisor.pilot",
        "advisor.transfer_checks",
        "advisor.risk",
        "advisor.rival",
        "advisor.remedies",
        "advisor.reasons",
        "advisor.compare",
        "advisor.clock",
        "advisor.devices",
        "advisor.interrupt",
        "advisor.events",
        "advisor.run_folder",
        "advisor.stored",
        "advisor.database",
        "advisor.artifacts",
        "advisor.pruning",
    ),
    ("advisor.gallery", "advisor.trials", "advisor.settings", "advisor.shared_folder"),
    ("advisor.control_fit",),
    ("advisor.contest", "advisor.live", "advisor.status", "advisor.predict", "advisor.export"),
    ("advisor.scoring",),
    ("advisor.cost", "advisor.ingredients"),
    ("advisor.search", "advisor.recommend", "advisor.report"),
    ("advisor.answers", "advisor.soup"),
    ("advisor.pipeline",),
    ("advisor.closing",),
    ("advisor.session",),
    ("advisor.joining",),
    ("advisor.cli", "advisor.cli_auto", "advisor.cli_cache", "advisor.cli_shared"),
)
COMMAND_LINE = ("advisor.cli", "advisor.cli_auto", "advisor.cli_cache", "advisor.cli_shared")
MAY_NOT_KNOW_ITS_NEIGHBOURS = {2}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def level_of(module: str) -> int | None:
    for number, rooms in enumerate(LEVELS):
        if any(module == room or module.startswith(room + ".") for room in rooms):
            return number
    return None


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_every_arrow_points_down(path: Path) -> None:
    module = module_name(path)
    if module in ("advisor", "strategies"):
        return
    own = level_of(module)
    assert own is not None, f"{module} stands on no level: add it to LEVELS"
    for imported in imports_of(path):
        level = level_of(imported)
        if level is None or imported == module:
            continue
        assert level <= own, f"{module} imports {imported}, which lies above it"
        assert not (level == own and own in MAY_NOT_KNOW_ITS_NEIGHBOURS), f"{module} -> {imported}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_file_is_over_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_only_the_command_line_imports_inside_functions(path: Path) -> None:
    if module_name(path) in COMMAND_LINE:
        return
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef):
            inside = [n for n in ast.walk(function) if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not inside, f"{function.name} imports"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_text_is_utf_8_wherever_this_runs(path: Path) -> None:
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        called = getattr(call.func, "attr", "") if isinstance(call, ast.Call) else ""
        if called in ("read_text", "write_text"):
            assert "encoding" in [k.arg for k in call.keywords], f"line {call.lineno}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_only_the_backbone_knows_timm(path: Path) -> None:
    # Its models, that is: mixing borrows its mixup and cutmix.
    if module_name(path) not in ("strategies.core.backbone", "strategies.core.mixing"):
        assert not [name for name in imports_of(path) if name.split(".")[0] == "timm"]


@pytest.mark.parametrize(
    "statement", ["import advisor", "import strategies", "import advisor.cli"]
)
def test_importing_costs_nothing(statement: str) -> None:
    heavy = ("torch", "timm", "optuna", "sklearn", "scipy")
    code = f"{statement}; import sys; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout.strip() == "[]"
