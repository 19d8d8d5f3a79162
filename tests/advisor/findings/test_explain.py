"""Every code that a rule emits has an explanation, and every explanation a rule."""

import ast
import re
from pathlib import Path

import pytest

from advisor.findings.explain import PAGES, explanation, explanations
from strategies.core.errors import TransferError

ROOT = Path(__file__).resolve().parents[3]
CODE = re.compile(r"TL\d{3}")


def emitted() -> set[str]:
    """All codes that are string constants in the program."""
    codes = set()
    for path in (ROOT / "advisor").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and CODE.fullmatch(str(node.value)):
                codes.add(str(node.value))
    return codes


def test_emitted_codes_and_explanations_are_the_same() -> None:
    assert len(emitted()) >= 17
    assert set(explanations()) == emitted()


@pytest.mark.parametrize("code", explanations())
def test_an_explanation_has_a_meaning_and_an_action(code: str) -> None:
    page = explanation(code)
    assert page.startswith(f"## {code}: ")
    assert "**Means.**" in page
    assert "**Do.**" in page


def test_explanations_are_in_the_order_of_their_codes() -> None:
    headings = re.findall(r"^## (TL\d{3})", PAGES.read_text(), re.MULTILINE)
    assert headings == sorted(set(headings))


def test_an_unknown_code_is_an_error_that_suggests_the_nearest() -> None:
    with pytest.raises(TransferError, match="Did you mean TL009"):
        explanation("TL0009")
