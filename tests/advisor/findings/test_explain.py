"""Every code that a check can emit has a page, and every page a check that emits it."""

import ast
import re
from pathlib import Path

import pytest

from advisor.findings.explain import PAGES, explanation, explanations
from strategies.core.errors import TransferError

ROOT = Path(__file__).resolve().parents[3]
CODE = re.compile(r"TL\d{3}")


def emitted() -> set[str]:
    """All codes that stand as a string of their own in the program."""
    codes = set()
    for path in (ROOT / "advisor").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and CODE.fullmatch(str(node.value)):
                codes.add(str(node.value))
    return codes


def test_codes_and_pages_are_the_same() -> None:
    assert len(emitted()) >= 17
    assert set(explanations()) == emitted()


@pytest.mark.parametrize("code", explanations())
def test_a_page_says_what_it_means_and_what_to_do(code: str) -> None:
    page = explanation(code)
    assert page.startswith(f"## {code}: ")
    assert "**Means.**" in page
    assert "**Do.**" in page


def test_pages_stand_in_the_order_of_their_codes() -> None:
    headings = re.findall(r"^## (TL\d{3})", PAGES.read_text(), re.MULTILINE)
    assert headings == sorted(set(headings))


def test_an_unknown_code_is_refused_with_the_nearest() -> None:
    with pytest.raises(TransferError, match="Did you mean TL009"):
        explanation("TL0009")
