"""What comes after a search within the time limit: the control, the judgement, the page."""

import time
from dataclasses import dataclass, replace

from advisor.clock import Clock
from advisor.control_fit import Control, fit_control
from advisor.gallery import Gallery, make_gallery
from advisor.pipeline import Prepared
from advisor.report.files import PAGE_FILE, write_page
from advisor.run_folder import RunFolder
from advisor.types import Advice, Ended, TrialRecord

CONTROL_SHARE = 0.1
"""Share of the time limit that the search leaves to the control."""
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


def draft_page(
    folder: RunFolder, advice: Advice, prepared: Prepared, seconds_left: float
) -> Draft:
    """Write the page of the advice into the run folder, and see how long that takes.

    What is made before most of the search needs no time set aside behind it. The map is left out
    if the search has no seconds left.

    Raises
    ------
    StorageError
        If the file cannot be written.
    """
    task, ctx = prepared.task.hide_test(), replace(prepared.ctx, deadline_s=None)
    gallery = Gallery(n_pictures=len(task.fit_split))
    if seconds_left > 0:
        gallery = make_gallery(advice, task, prepared.backbone, ctx)
    begun = time.monotonic()
    write_page(folder.path / PAGE_FILE, advice, gallery)
    return Draft(gallery, time.monotonic() - begun)


def make_control(
    best: tuple[TrialRecord, bool], prepared: Prepared, clock: Clock, ended: Ended
) -> Control | None:
    """Fit the control to the pictures that the best classifier was fitted to.

    It may use up what the search has left, unless that ended before its time.
    """
    record, refitted = best
    hidden = prepared.task.hide_test()
    task = hidden.with_val_in_train() if refitted else hidden
    deadline_s = clock.judging_begins_s()
    if ended != "time":
        deadline_s = min(deadline_s, time.monotonic() + clock.control_s)
    ctx = replace(prepared.ctx, deadline_s=deadline_s)
    return fit_control(record, task, prepared.backbone, ctx)
