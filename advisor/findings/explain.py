"""Explanations of the findings: the pages that ``tl-advise --explain`` prints."""

import difflib
import re
from functools import cache
from pathlib import Path

from strategies.core.errors import TransferError

PAGES = Path(__file__).with_name("findings.md")
"""Markdown with one second-level heading per finding, after those on all findings;
the site shows it (``docs/hooks.py``)."""


def explanation(code: str) -> str:
    """Return the explanation of a finding, in Markdown.

    Raises
    ------
    TransferError
        If there is no finding with this code.
    """
    pages = explanations()
    page = pages.get(code.strip().upper())
    if page is None:
        near = difflib.get_close_matches(code.strip().upper(), pages, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise TransferError(
            f"--explain needs the code of a finding, not {code!r}.{meant} "
            f"The codes are {', '.join(pages)}."
        )
    return page


@cache
def explanations() -> dict[str, str]:
    """Return all explanations by code, in the order of the codes."""
    sections = re.split(r"^(?=## TL)", PAGES.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {section.split(maxsplit=2)[1].rstrip(":"): section.strip() for section in sections}
