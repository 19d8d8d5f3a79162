"""Search phase of a run, with draft report, control and soup, all inside the time limit."""

import time
from dataclasses import dataclass, replace

from advisor.advise import Prepared
from advisor.report.files import PAGE_FILE, load_scripts, write_page
from advisor.report.gallery import Gallery, make_gallery
from advisor.report.maps.mistakes import explain_mistakes
from advisor.tune.control import Control, fit_early_control, fit_final_control
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.search import Search
from advisor.tune.soup import make_soup
from advisor.tune.time_budget import TimeBudget, reliability_reserve_s
from advisor.tune.trials.reliability import add_reliability
from advisor.types.advice import Advice
from advisor.types.options import RunOptions
from advisor.types.outcome import Outcome, Soup
from advisor.types.profile import Profile
from strategies.models.classifier import ImageClassifier

CONTROL_SHARE = 0.1
"""Share of the time limit that is reserved for the control."""
MIN_S_FOR_MAP = 30.0
"""Seconds that the search must have left for the map of images to be computed. A map of a
thousand images takes about 8 s on a slow core, in which a short run rather learns."""
EXPLAIN_SHARE, EXPLAIN_IMAGES = 0.02, 300
"""Explaining the mistakes on test is reserved the time in which this many images are predicted,
and at most this share of the time limit."""
REPORT_S = 6.0
"""Seconds reserved for map and report on one core, until they have been made and timed once."""


@dataclass(frozen=True)
class ClosingResult:
    """What a run has besides its classifier once the search is over.

    Attributes
    ----------
    gallery
        Map and thumbnails of the report; None: there is no report.
    """

    gallery: Gallery | None
    control: Control | None
    soup: Soup | None


def time_budget(
    prepared: Prepared, profile: Profile, run: RunOptions, deadline_s: float
) -> TimeBudget:
    """Return the time budget of a run, with reserves by the speed that the advice measured."""
    dataset, s_per_image = prepared.dataset, profile.ms_per_image / 1000
    explains = run.report and bool(dataset.test)
    return TimeBudget(
        deadline_s,
        run.time_s,
        len(dataset.test or ()),
        len(dataset.val),
        {prepared.backbone.input_px: s_per_image},
        n_judged=1 + run.control,
        control_s=run.control * CONTROL_SHARE * run.time_s,
        report_s=run.report * REPORT_S,
        reliability_s=reliability_reserve_s(run.time_s),
        explain_s=explains * min(EXPLAIN_SHARE * run.time_s, EXPLAIN_IMAGES * s_per_image),
    )


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
    gallery: Gallery | None = None
    if with_report:
        gallery, budget.report_s = draft_report(folder, advice, prepared, budget.left_s())
    control = None
    if wanted and not search.is_interrupted:
        control = fit_early_control(folder, prepared, budget)
        budget.has_control = control is not None
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
    return ClosingResult(gallery, control, soup)


def draft_report(
    folder: RunDir, advice: Advice, prepared: Prepared, seconds_left: float
) -> tuple[Gallery, float]:
    """Write the report of the advice into the run directory, and measure how long that takes.

    What is computed before most of the search needs no reserve after it. The map is left out if
    there are not more than `MIN_S_FOR_MAP` seconds left.

    Returns
    -------
    Map and thumbnails, which the final report shows too, and the seconds that the page took
    without them. The final one takes no longer: the scripts are loaded by then.

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
    return gallery, time.monotonic() - begun


def with_explanations(
    gallery: Gallery | None,
    outcome: Outcome,
    classifier: ImageClassifier,
    prepared: Prepared,
    budget: TimeBudget,
) -> Gallery | None:
    """Add explanations of the mistakes on test that the evaluation names, as far as time allows.

    Of the test images only those are read again, after the evaluation.
    """
    if gallery is None or outcome.test is None:
        return gallery
    ctx, train = prepared.ctx.with_deadline(budget.explanation_ends_s()), prepared.dataset.train
    explained = explain_mistakes(classifier, outcome.test.mistakes, train, ctx)
    return replace(gallery, explained=explained)
