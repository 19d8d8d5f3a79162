"""Advice with its report as an HTML page.

Not part of `advisor.advise`: the libraries that draw the page take time to import.
"""

from pathlib import Path

from advisor.advise import Prepared, advise_on, prepare
from advisor.report.files import write_page
from advisor.report.gallery import make_gallery
from advisor.types.advice import Advice
from advisor.types.options import Options


def advise_with_page(data: Path, options: Options, time_s: float | None, html: Path) -> Advice:
    """Recommend a strategy, and write the report to a file as one HTML page."""
    prepared = prepare(data, options)
    advice = advise_on(prepared, time_s)
    write_report(prepared, advice, html)
    return advice


def write_report(prepared: Prepared, advice: Advice, html: Path) -> None:
    """Write the report of an advice to a file as one HTML page."""
    hidden = prepared.dataset.hide_test()
    write_page(html, advice, make_gallery(advice, hidden, prepared.backbone, prepared.ctx))
