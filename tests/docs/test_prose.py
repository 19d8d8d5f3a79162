"""The documents are plain English: proselint, a vocabulary, and short sentences."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from proselint.checks import __register__ as CHECKS
from proselint.config import DEFAULT
from proselint.registry import CheckRegistry
from proselint.tools import LintFile

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted(p for p in ROOT.glob("*.md") if p.name != "CHANGELOG.md"),
    ROOT / "benchmarks/README.md",
    ROOT / "advisor/findings/findings.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "docs").rglob("*.ipynb")),
]
VOCABULARY = tomllib.loads(Path(__file__).with_name("vocabulary.toml").read_text("utf-8"))
OFF = ("typography", "annotations")
"""Checks of proselint that do not suit Markdown: curly quotes, and TODO."""
MAX_WORDS = 38
"""Words of a sentence. The mean of every page is below `MEAN_WORDS`."""
MEAN_WORDS = 19


def prose(text: str) -> str:
    """Return the sentences of a Markdown page: no code, tables, comments, links or numbers."""
    text = re.sub(r"^( *)```.*?^ *```$", "", text, flags=re.M | re.S)
    text = re.sub(r"<!--.*?-->|<[^>\n]+>|^!\[.*$|^:::.*$", "", text, flags=re.M | re.S)
    text = re.sub(r"^\s*\|.*$", "", text, flags=re.M)
    text = re.sub(r"`[^`]+`", "code", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r" \[[-+]?[\d.]+, [-+]?[\d.]+\]", "", text)  # intervals
    text = re.sub(r"^#+ .*$", "", text, flags=re.M)
    text = re.sub(r"^\s*(?:[-*]|\d+\.) ", "\n", text, flags=re.M)  # items are paragraphs
    return text.replace("**", "")


def sentences(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", prose(text)):
        one_line = " ".join(paragraph.split())
        yield from (s for s in re.split(r"(?<=[.:?!;]) (?=[\w\"(])", one_line) if s)


def read(page: Path) -> str:
    if page.suffix == ".md":
        return page.read_text(encoding="utf-8")
    cells = nbformat.read(page, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


@pytest.fixture(scope="module")
def registry() -> CheckRegistry:
    registry = CheckRegistry()
    registry.register_many(CHECKS)
    return registry


pages = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


@pages
def test_proselint_has_nothing_to_say(page: Path, registry: CheckRegistry) -> None:
    checks = {**DEFAULT["checks"], **dict.fromkeys(OFF, False)}
    file = LintFile(str(page), "\n".join(sentences(read(page))))
    found = file.lint({**DEFAULT, "checks": checks})
    messages = [result.check_result.message for result in found]
    assert not [message for message in messages if not re.search(r"'\d+ \d+'", message)]


@pages
def test_words_are_those_of_the_vocabulary(page: Path) -> None:
    text = " ".join(sentences(read(page)))
    found = {
        match[0]: use
        for group in VOCABULARY.values()
        for pattern, use in group.items()
        if (match := re.search(rf"\b(?:{pattern})\b", text, re.IGNORECASE))
    }
    assert not found


@pages
def test_sentences_are_short(page: Path) -> None:
    lengths = {s: len(re.findall(r"\w[\w'.,%-]*", s)) for s in sentences(read(page))}
    assert not {s: n for s, n in lengths.items() if n > MAX_WORDS}
    assert not lengths or sum(lengths.values()) / len(lengths) < MEAN_WORDS


def test_old_idiom_and_long_sentences_are_found(registry: CheckRegistry) -> None:
    page = "It has 20 images a class.\n\n```\nanew\n```\n\n- Utilize `anew` in the the house."
    assert list(sentences(page)) == ["It has 20 images a class.", "Utilize code in the the house."]
    patterns = [p for group in VOCABULARY.values() for p in group]
    hits = [p for p in patterns if re.search(rf"\b(?:{p})\b", prose(page), re.IGNORECASE)]
    assert len(hits) == 2
    assert LintFile("page", prose(page)).lint(DEFAULT)
