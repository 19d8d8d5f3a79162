"""No number of the README, the results or the explanations that no page of measurements holds."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MEASURED = "\n".join(
    p.read_text(encoding="utf-8") for p in sorted((ROOT / "docs/benchmarks").glob("*.md"))
)
PAGES = [
    ROOT / "README.md",
    ROOT / "benchmarks/README.md",
    *sorted((ROOT / "docs/explanation").glob("*.md")),
]
INTERVAL = re.compile(r"[-+]?\d+\.\d+ \[[-+]?[\d.]+, [-+]?[\d.]+\]")
RESULT = re.compile(r"(?<![\w.])(?:\d+\.\d+|\d+ of \d+)(?![\w.]|, \d)")
NOT_MEASURED = {"3.11", "2.0"}
"""Versions."""


def text_of(page: Path) -> str:
    """Return a page without code, links and pictures."""
    text = re.sub(r"```.*?```|<picture>.*?</picture>", "", page.read_text("utf-8"), flags=re.S)
    return re.sub(r"`[^`]*`|\]\([^)]*\)|^!\[.*$", " ", text, flags=re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_numbers_are_those_of_the_measurements(page: Path) -> None:
    text = text_of(page)
    found = {*INTERVAL.findall(text), *RESULT.findall(text)} - NOT_MEASURED
    as_number = r"(?<![\d.]){}(?![\d.]*\d)"
    assert not {n for n in found if not re.search(as_number.format(re.escape(n)), MEASURED)}


def test_every_result_links_to_its_page() -> None:
    text = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "](../docs" in line]
    assert len(rows) > 20
    for row in rows:
        for shown, target in re.findall(r"\[([^\]]*(?:\[[^\]]*\][^\]]*)?)\]\((\S+?)\)", row):
            page = (ROOT / "benchmarks" / target.split("#")[0]).resolve()
            measured = page.read_text(encoding="utf-8")
            for number in INTERVAL.findall(shown) or RESULT.findall(shown):
                assert number in measured, (number, target)
