"""Reports as files: the page of an advice, and what a run leaves for its reader."""

from dataclasses import replace
from pathlib import Path

from advisor.gallery import make_gallery
from advisor.report.as_markdown import model_card
from advisor.report.html import page
from advisor.types import Advice, Outcome
from strategies.core.backbone import Backbone
from strategies.core.classifier import write_text
from strategies.core.run import RunContext
from strategies.core.task import ImageTask

PAGE_FILE, CARD_FILE = "report.html", "classifier/README.md"


def write_page(
    path: Path,
    advice: Advice,
    task: ImageTask,
    backbone: Backbone,
    ctx: RunContext,
    outcome: Outcome | None = None,
) -> None:
    """Write the report as one page.

    Parameters
    ----------
    task
        What the advice was made from: without its test pictures. Of those, a page shows only the
        mistakes that the outcome's judgement names.

    Raises
    ------
    StorageError
        If the file cannot be written.
    """
    judged = None if outcome is None else outcome.test
    gallery = make_gallery(advice, task, backbone, ctx, judged)
    write_text(path, page(advice, gallery, outcome))


def write_run_reports(
    outcome: Outcome, task: ImageTask, backbone: Backbone, ctx: RunContext
) -> None:
    """Write the page of a run, and the model card beside its classifier.

    The deadline of `ctx` is that of the search: what was found is told even when it has passed.
    """
    ctx = replace(ctx, deadline_s=None)
    write_text(outcome.folder / CARD_FILE, model_card(outcome))
    write_page(outcome.folder / PAGE_FILE, outcome.advice, task, backbone, ctx, outcome)
