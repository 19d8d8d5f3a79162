"""Search phase of a run, with draft report, control and soup, all inside the time limit."""

import time
from dataclasses import dataclass

from advisor.advise import Prepared
from advisor.report.files import PAGE_FILE, load_scripts, write_page
from advisor.report.gallery import Gallery, make_gallery
from advisor.tune.control import Control, fit_early_control, fit_final_control
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.search import Search
from advisor.tune.soup import make_soup
from advisor.tune.trials.reliability import add_reliability
from advisor.types.advice import Advice
from advisor.types.outcome import Soup

CONTROL_SHARE = 0.1
"""Share of the time limit that is reserved for the control."""
MIN_S_FOR_MAP = 30.0
"""Seconds that the search must have left for the map of images to be computed. A map of a
thousand images takes about 8 s on a slow core, in which a short run rather learns."""
REPORT_S = 6.0
"""Seconds reserved for map and report on one core, until they have been made and timed once."""


@dataclass(frozen=True)
class ReportDraft:
    """The HTML report of a run before there is an outcome: it shows the advice alone.

    Attributes
    ----------
    gallery
        Its map and thumbnails, which the final report shows too; None: there is no report.
    seconds
        Seconds that the report took, without the map. The final report takes no longer, as the
        scripts are loaded by then.
    """

    gallery: Gallery | None
    seconds: float


@dataclass(frozen=True)
class ClosingResult:
    """What a run has besides its classifier once the search is over."""

    draft: ReportDraft
    control: Control | None
    soup: Soup | None


def tune(
    search: Search, advice: Advice, prepared: Prepared, *, wanted: bool, with_report: bool = True
) -> ClosingResult:
    """Search until the time is up; after the first classifier draft the report and the control.

    Both are timed or finished early, so that the reserves for them shrink to what they cost.

    Parameters
    ----------
    wanted
        Whether a control is to be fitted.
    with_report
        Whether an HTML page is to be written.
    """
    folder, budget = search.executor.folder, search.executor.budget
    if search.scheduler.max_trials is None:  # else a run must not depend on the time
        search.fit_on_measured()
    search.compute_features()
    search.run(stop_at_first=True)
    search.fit_on_measured()
    draft = ReportDraft(None, 0.0)
    if with_report:
        draft = draft_report(folder, advice, prepared, budget.left_s())
    budget.observe_report(draft.seconds)
    control = None
    if wanted and not search.is_interrupted:
        control = fit_early_control(folder, prepared, budget)
        budget.early_control(is_fitted=control is not None)
    search.run()
    search.fit_fallback()
    soup = make_soup(search.executor, search.incumbent, search.trials.snapshot().done)
    n_done = len(search.trials.snapshot().done)
    if wanted and not search.is_interrupted:
        control = fit_final_control(folder, prepared, budget, search.end_reason(), control)
        budget.release_control(is_fitted=control is not None)
        search.run()
    if len(search.trials.snapshot().done) > n_done:
        soup = make_soup(search.executor, search.incumbent, search.trials.snapshot().done)
    ends_s = budget.test_begins_s()
    if search.is_interrupted:  # whoever pressed Ctrl-C wants the end soon
        ends_s = min(ends_s, time.monotonic() + budget.reliability_s)
    add_reliability(search.executor, search.incumbent, ends_s)
    return ClosingResult(draft, control, soup)


def draft_report(
    folder: RunDir, advice: Advice, prepared: Prepared, seconds_left: float
) -> ReportDraft:
    """Write the report of the advice into the run directory, and measure how long that takes.

    What is computed before most of the search needs no reserve after it. The map is left out if
    there are not more than `MIN_S_FOR_MAP` seconds left.

    Raises
    ------
    StorageError
        If the file cannot be written.
    """
    measured, ctx = prepared.measured or prepared.dataset, prepared.ctx.with_deadline(None)
    dataset = measured.hide_test()
    gallery = Gallery(n_images=len(dataset.fit_split))
    if seconds_left > MIN_S_FOR_MAP:
        gallery = make_gallery(advice, dataset, prepared.backbone, ctx)
    load_scripts()
    begun = time.monotonic()
    write_page(folder.path / PAGE_FILE, advice, gallery)
    return ReportDraft(gallery, time.monotonic() - begun)
