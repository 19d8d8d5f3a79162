"""After a search: the weights of its best training runs averaged, if that wins on val.

A greedy soup: the best training first, then every other in the order of validation accuracy stays in if
the average does not get worse by it. Trained from one start, fine-tuned networks lie in one basin,
where their average is often better than each and costs no more to use.

References
----------
M. Wortsman et al., Model soups: averaging weights of multiple fine-tuned models improves accuracy
without increasing inference time, ICML 2022, recipe 1.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from advisor.tune.distributed.database import retry_if_lock_lost
from advisor.tune.run_dir.soup_candidates import MOST, SoupCandidates
from advisor.tune.search import Search, out_of_memory
from advisor.tune.time_budget import FACTOR
from advisor.types.outcome import Soup, TrialRecord
from strategies.core.errors import OutOfTime, StorageError
from strategies.core.metrics import Interval, proportion
from strategies.data.dataset import labels_of
from strategies.models.classifier import ImageClassifier
from strategies.models.network import scores_of
from strategies.training.lp_ft import calibrate
from strategies.training.weight_averaging import averaged, can_be_averaged

NO_TIME = "no time was left to judge an average"
NO_WIN = "it did not win by more than one validation image"


@dataclass(frozen=True)
class _Tried:
    """An average: of which trials, how good on validation, and the classifier of the dataset itself."""

    trials: tuple[int, ...]
    val_accuracy: Interval
    classifier: ImageClassifier


def make_soup(search: Search) -> Soup | None:
    """Average the best training runs; keep the average if it beats the best trial by over one image.

    That is what a trial must win by too: a tie goes to the simpler, which is the one network.
    Chosen on validation, both flatter themselves there (a maximum of few, with what was put in chosen
    on the same images); the interval is that of a classifier judged once, as for trials. Test,
    read once and later, does not know of the choice.

    Nothing of it is remembered but what is kept: a run that is killed here does it again.

    Returns
    -------
    None where there are no two training runs that can be averaged, or nothing could win any more.

    Raises
    ------
    StorageError
        If the run folder cannot be written.
    """
    pool, leader = search.soup_candidates, search.folder.best()
    if leader is None or leader[0].val_accuracy is None:
        return None
    done = search.trials.snapshot().done
    now, kept = leader[0].val_accuracy, _kept(search, done)
    over = search.interrupt.asked or not search.is_open()
    if pool is None or over or 1 - now.mid <= search.scheduler.one_image:
        return kept
    ranked = _ranked(search, pool, done, leader[0])
    if len(ranked) < 2:
        return kept
    tried, reason = _greedy(search, pool, ranked)
    if tried is not None and retry_if_lock_lost(partial(_keep, search, tried, ranked[0])):
        return _kept(search, done)
    numbers = tried.trials if tried else tuple(r.number for r in ranked)
    found = tried.val_accuracy if tried else None
    return kept or Soup(numbers, found, now, kept=False, reason=reason or NO_WIN)


def _kept(search: Search, done: Sequence[TrialRecord]) -> Soup | None:
    """Return what is told of the classifier on disk, if it is an average already."""
    numbers, best = search.folder.averaged(), search.folder.best()
    alone = search.scheduler.best(done)
    if not numbers or best is None or alone is None or alone.val_accuracy is None:
        return None
    return Soup(numbers, best[0].val_accuracy, alone.val_accuracy, kept=True)


def _ranked(
    search: Search, pool: SoupCandidates, done: Sequence[TrialRecord], leader: TrialRecord
) -> list[TrialRecord]:
    """Return training runs that fit together: the leader, if it is one, and then the best on val."""
    here = pool.best(done)[:MOST]
    first: ImageClassifier | None = None
    ranked = []
    for record in sorted(
        here, key=lambda r: r.number != leader.number
    ):  # stable: by validation else
        try:
            found = pool.load(record.number, 0)
        except StorageError as error:  # a power cut may have spoilt it: one less to try
            search.ctx.on_note(f"Trial {record.number} is left out of averages: {error}")
            continue
        first = first or found
        if can_be_averaged(first, found):
            ranked.append(record)
    return ranked


def _greedy(
    search: Search, pool: SoupCandidates, ranked: Sequence[TrialRecord]
) -> tuple[_Tried | None, str | None]:
    """Put in one training after the other; return the last average that was not worse.

    And why it went no further, if not because all had been tried.
    """
    assert ranked[0].val_accuracy is not None
    members, accuracy = [ranked[0]], ranked[0].val_accuracy.mid
    best: _Tried | None = None
    for step, record in enumerate(ranked[1:], start=1):
        search.ctx.on_progress("averages", step, len(ranked) - 1)
        if search.interrupt.asked:
            return best, "the run was interrupted"
        n_images = pool.n_looked_at([*members, record], search.validation)
        needed_s = FACTOR * search.budget.s_per_image * n_images
        if search.budget.soup_ends_s() - time.monotonic() < needed_s:
            return best, None if best else NO_TIME
        try:
            tried = _judge(search, pool, tuple(r.number for r in [*members, record]))
        except OutOfTime:
            return best, None if best else NO_TIME
        except StorageError as error:
            search.ctx.on_note(f"Trial {record.number} is left out of averages: {error}")
            continue
        except (MemoryError, RuntimeError) as error:
            return best, out_of_memory(error)
        if tried.val_accuracy.mid >= accuracy:
            best, accuracy = tried, tried.val_accuracy.mid
            members.append(record)
    return best, None if best else "every average was worse on validation"


def _judge(search: Search, pool: SoupCandidates, numbers: tuple[int, ...]) -> _Tried:
    """Average some trials, on every fold what they learnt there, and judge that as trials are."""
    ctx = replace(search.ctx, deadline_s=search.budget.soup_ends_s())
    hits: list[bool] = []
    for number in reversed(range(len(search.validation.folds))):
        fold = search.validation.folds[number]
        members = [pool.load(n, number, ctx.device) for n in numbers]
        classifier = averaged(members, fold, ctx)
        ctx.check_time()
        begun = time.monotonic()
        scores = scores_of(classifier.network, fold.val, classifier.backbone, ctx)
        took_s = time.monotonic() - begun
        search.budget.saw(len(fold.val), took_s, classifier.backbone.input_px)
        hits += (scores.argmax(axis=1) == labels_of(fold.val)).tolist()
    calibrate(classifier.network, scores, search.dataset)  # the last fold is the dataset itself
    return _Tried(numbers, proportion(float(np.mean(hits)), len(hits)), classifier)


def _keep(search: Search, tried: _Tried, first: TrialRecord) -> bool:
    """Make an average the classifier of the run, if it beats the best one by over one image."""
    with search.trials.lock.held():
        known = search.folder.best()
        if not search.is_open() or known is None or known[0].val_accuracy is None:
            return False
        gap = tried.val_accuracy.mid - known[0].val_accuracy.mid
        if gap <= search.scheduler.one_image:
            return False
        search.trials.lock.check()
        record = replace(first, val_accuracy=tried.val_accuracy)
        search.folder.keep(tried.classifier, record, refitted=False, averaged=tried.trials)
    search.folder.note("soup", trials=tried.trials, val_accuracy=tried.val_accuracy.mid)
    return True
