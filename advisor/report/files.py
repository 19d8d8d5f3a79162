"""Writing of report files: the HTML page, and the model card of a run."""

from pathlib import Path

from advisor.report.card.model_card import model_card
from advisor.report.gallery import Gallery, with_mistakes
from advisor.report.html import load_scripts as load_scripts
from advisor.report.html import page
from advisor.types.advice import Advice
from advisor.types.outcome import Outcome
from strategies.core.atomic_files import write_text

CARD_NAME = "README.md"
PAGE_FILE, CARD_FILE = "report.html", f"classifier/{CARD_NAME}"


def write_page(
    path: Path, advice: Advice, gallery: Gallery, outcome: Outcome | None = None
) -> None:
    """Write the report as one HTML page.

    Raises
    ------
    StorageError
        If the file cannot be written.
    """
    write_text(path, page(advice, gallery, outcome))


def write_run_reports(outcome: Outcome, gallery: Gallery | None, n_workers: int) -> None:
    """Write the HTML page of a run, and the model card beside its classifier.

    Parameters
    ----------
    gallery
        Made without the test images. Of those, the page shows only the misclassified images
        that the evaluation on test names. None: only the model card is written.
    """
    write_text(outcome.folder / CARD_FILE, model_card(outcome))
    if gallery is None:
        return
    if outcome.test is not None:
        gallery = with_mistakes(gallery, outcome.test, n_workers)
    write_page(outcome.folder / PAGE_FILE, outcome.advice, gallery, outcome)
