"""What comes after a search within the time limit: the control, the judgement, the page."""

import time
from dataclasses import dataclass, replace

from advisor.advise import Prepared
from advisor.report.files import PAGE_FILE, load_scripts, write_page
from advisor.report.gallery import Gallery, make_gallery
from advisor.tune.control import Control, early_control, last_control
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.search import Search
from advisor.tune.soup import make_soup
from advisor.types.advice import Advice
from advisor.types.outcome import Soup

CONTROL_SHARE = 0.1
"""Share of the time limit that the search leaves to the control."""
MAP_S = 8.0
"""A map of a thousand images is left out if the search has less time than this: it takes as long
on a slow core."""
PAGE_S = 6.0
"""Seconds for map and page on one core, until they have been made once."""


@dataclass(frozen=True)
class Draft:
    """The page of a run before there is an outcome: the advice alone.

    Attributes
    ----------
    gallery
        Its map and thumbnails, which the last page shows too.
    seconds
        How long the page itself took: the last one takes no longer, as its scripts are at hand.
    """

    gallery: Gallery
    seconds: float


@dataclass(frozen=True)
class Found:
    """What there is beside the classifier once a search is over."""

    draft: Draft
    control: Control | None
    soup: Soup | None


def search_with_control(
    search: Search, advice: Advice, prepared: Prepared, *, wanted: bool
) -> Found:
    """Search until the time is up; on the way draft the page and fit the control, if it is wanted.

    What both turn out to cost is all that is set aside for them.
    """
    folder, budget = search.folder, search.budget
    search.run(until_found=True)
    draft = draft_page(folder, advice, prepared, budget.left_s())
    budget.page_s = draft.seconds
    control = None
    if wanted and not search.interrupt.asked:
        control = early_control(folder, prepared, budget)
        budget.has_control = control is not None
    search.run()
    soup = make_soup(search)
    n_done = len(search.trials.snapshot().done)
    if wanted and not search.interrupt.asked:
        control = last_control(folder, prepared, budget, search.ended(), control)
        budget.control_s = 0.0  # what the control left over is searched with
        if control is None:
            budget.n_test //= 2  # nothing but the classifier will be judged
        search.run()
    if len(search.trials.snapshot().done) > n_done:
        soup = make_soup(search)
    return Found(draft, control, soup)


def draft_page(folder: RunDir, advice: Advice, prepared: Prepared, seconds_left: float) -> Draft:
    """Write the page of the advice into the run folder, and see how long that takes.

    What is made before most of the search needs no time set aside behind it. The map is left out
    in a hurry (`MAP_S`).

    Raises
    ------
    StorageError
        If the file cannot be written.
    """
    dataset, ctx = prepared.dataset.hide_test(), replace(prepared.ctx, deadline_s=None)
    gallery = Gallery(n_images=len(dataset.fit_split))
    if seconds_left > MAP_S:
        gallery = make_gallery(advice, dataset, prepared.backbone, ctx)
    load_scripts()
    begun = time.monotonic()
    write_page(folder.path / PAGE_FILE, advice, gallery)
    return Draft(gallery, time.monotonic() - begun)
