"""What every finding means: the pages that ``tl-advise --explain`` prints."""

import difflib
import re
from functools import cache
from pathlib import Path

from strategies.core.errors import TransferError

PAGES = Path(__file__).with_name("findings.md")
"""One file, also part of the documentation; a second-level heading starts every finding."""


def explanation(code: str) -> str:
    """Return the page of a finding in Markdown.

    Raises
    ------
    TransferError
        If there is no such code.
    """
    pages = explanations()
    page = pages.get(code.strip().upper())
    if page is None:
        near = difflib.get_close_matches(code.strip().upper(), pages, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise TransferError(
            f"--explain {code!r} is no code of a finding.{meant} The codes are {', '.join(pages)}."
        )
    return page


@cache
def explanations() -> dict[str, str]:
    """Return all pages by code, in order."""
    sections = re.split(r"^(?=## )", PAGES.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {section.split(maxsplit=2)[1].rstrip(":"): section.strip() for section in sections}
