"""Greedy model soup: average the best fine-tuning trials' weights; kept if it wins on validation.

The average starts with the best fine-tuning trial. The others are added in the order of validation
accuracy, and each stays in if the average does not get worse. Networks that were fine-tuned from
the same weights are in one basin of the loss, where their average is often better than each of
them and costs no more to use.

References
----------
M. Wortsman et al., Model soups: averaging weights of multiple fine-tuned models improves accuracy
without increasing inference time, ICML 2022, recipe 1.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from advisor.tune.incumbent import Incumbent
from advisor.tune.run_dir.soup_candidates import MOST, SoupCandidates
from advisor.tune.time_budget import SAFETY_FACTOR
from advisor.tune.trials.executor import LocalExecutor, out_of_memory_reason, reading_s
from advisor.types.outcome import Soup, TrialRecord
from strategies.core.errors import OutOfTime, StorageError
from strategies.core.metrics import Interval, proportion
from strategies.data.dataset import labels_of
from strategies.models.classifier import ImageClassifier
from strategies.models.network import scores_of
from strategies.training.lp_ft import calibrate
from strategies.training.weight_averaging import average_weights, can_be_averaged

NO_TIME = "there was no time to validate an average"
NO_WIN = "it did not beat the best trial by more than one validation image"


@dataclass(frozen=True)
class _Average:
    """An average of trials, its validation accuracy, and its classifier for the dataset itself."""

    trials: tuple[int, ...]
    val_accuracy: Interval
    classifier: ImageClassifier


def make_soup(
    executor: LocalExecutor, incumbent: Incumbent, done: Sequence[TrialRecord]
) -> Soup | None:
    """Average the best fine-tuning trials; keep the average if it wins by more than one image.

    A trial must beat the incumbent by the same margin; on a tie the single network is kept,
    because it is simpler. The best trial and the average are both selected on validation, so their
    validation accuracies are optimistic. As with single trials, the interval does not correct for
    this. The test split is evaluated once, later.

    Only an average that is kept is written to disk: a run that is killed here averages again.

    Returns
    -------
    The average that is the run's classifier, made now or by an earlier call. Otherwise the average
    that was tried and not kept, with the reason. None if none was kept and none could be tried:
    there is no best trial yet or no store of candidates, the run was interrupted, the search is
    over, the best trial is too accurate to be beaten by more than one image, or fewer than two
    trials can be averaged.

    Raises
    ------
    StorageError
        If the run directory cannot be written.
    """
    best, pool = incumbent.trial, executor.soup_candidates
    if best is None or best.val_accuracy is None:
        return None
    to_beat, on_disk = best.val_accuracy, _soup_on_disk(incumbent, done)
    is_over = executor.interrupt.requested or not incumbent.is_open()
    if pool is None or is_over or 1 - to_beat.mid <= incumbent.scheduler.one_image:
        return on_disk
    ranked = _compatible(executor, pool, done, best)
    if len(ranked) < 2:
        return on_disk
    tried, reason = _greedy_soup(executor, pool, ranked)
    if tried is not None and _save_if_better(executor, incumbent, tried, ranked[0]):
        return _soup_on_disk(incumbent, done)
    numbers = tried.trials if tried else tuple(r.number for r in ranked)
    found = tried.val_accuracy if tried else None
    return on_disk or Soup(numbers, found, to_beat, kept=False, reason=reason or NO_WIN)


def _soup_on_disk(incumbent: Incumbent, done: Sequence[TrialRecord]) -> Soup | None:
    """Return the record of the run's classifier if it is an average already, else None."""
    numbers, best = incumbent.averaged_trials, incumbent.trial
    alone = incumbent.scheduler.best(done)
    if not numbers or best is None or alone is None or alone.val_accuracy is None:
        return None
    return Soup(numbers, best.val_accuracy, alone.val_accuracy, kept=True)


def _compatible(
    executor: LocalExecutor,
    pool: SoupCandidates,
    done: Sequence[TrialRecord],
    incumbent: TrialRecord,
) -> list[TrialRecord]:
    """Return the trials that can be averaged, best first, but the incumbent before all others."""
    candidates = pool.best(done)[:MOST]
    first: ImageClassifier | None = None
    ranked = []
    # The sort is stable: after the incumbent the order is still that of validation accuracy.
    for record in sorted(candidates, key=lambda r: r.number != incumbent.number):
        try:
            found = pool.load(record.number, 0)
        except StorageError as error:  # a power failure may have damaged it: skip it
            executor.ctx.reporter.on_note(
                f"Trial {record.number} is left out of the soup: {error}"
            )
            continue
        first = first or found
        if can_be_averaged(first, found):
            ranked.append(record)
    return ranked


def _greedy_soup(
    executor: LocalExecutor, pool: SoupCandidates, ranked: Sequence[TrialRecord]
) -> tuple[_Average | None, str | None]:
    """Add one trial after the other; return the last average that was not worse.

    Returns
    -------
    average
        None if no average was validated or all were worse.
    reason
        The interruption or lack of memory that stopped the soup, even if there is an average.
        Otherwise why there is no average. None if there is one, also if the time ran out after it.
    """
    assert ranked[0].val_accuracy is not None
    members, accuracy = [ranked[0]], ranked[0].val_accuracy.mid
    best: _Average | None = None
    for step, record in enumerate(ranked[1:], start=1):
        executor.ctx.reporter.on_progress("averages", step, len(ranked) - 1)
        if executor.interrupt.requested:
            return best, "the run was interrupted"
        n_images = pool.n_images_read([*members, record], executor.validation)
        needed_s = SAFETY_FACTOR * executor.budget.s_per_image * n_images
        if executor.budget.soup_ends_s() - time.monotonic() < needed_s:
            return best, None if best else NO_TIME
        try:
            tried = _validate_average(executor, pool, tuple(r.number for r in [*members, record]))
        except OutOfTime:
            return best, None if best else NO_TIME
        except StorageError as error:
            executor.ctx.reporter.on_note(
                f"Trial {record.number} is left out of the soup: {error}"
            )
            continue
        except (MemoryError, RuntimeError) as error:
            return best, out_of_memory_reason(error)
        if tried.val_accuracy.mid >= accuracy:
            best, accuracy = tried, tried.val_accuracy.mid
            members.append(record)
    return best, None if best else "every average was worse on validation"


def _validate_average(
    executor: LocalExecutor, pool: SoupCandidates, numbers: tuple[int, ...]
) -> _Average:
    """Average the classifiers of some trials fold by fold, and score the average like a trial.

    Fold 0, the dataset itself, is evaluated last: its classifier is calibrated and returned.
    """
    ctx = executor.ctx.with_deadline(executor.budget.soup_ends_s())
    hits: list[bool] = []
    for number in reversed(range(len(executor.validation.folds))):
        fold = executor.validation.folds[number]
        members = [pool.load(n, number, ctx.device) for n in numbers]
        classifier = average_weights(members, fold, ctx)
        ctx.check_time()
        crops = executor.activation_store.eval_crops
        begun, saved_s = time.monotonic(), crops.saved_s
        scores = scores_of(classifier.network, fold.val, classifier.backbone, ctx, crops)
        took_s = time.monotonic() - begun
        took_s += reading_s(crops.saved_s - saved_s, len(fold.val), ctx.n_workers)
        executor.budget.observe_prediction(len(fold.val), took_s, classifier.backbone.input_px)
        hits += (scores.argmax(axis=1) == labels_of(fold.val)).tolist()
    calibrate(classifier.network, scores, executor.dataset)  # those of fold 0, evaluated last
    return _Average(numbers, proportion(float(np.mean(hits)), len(hits)), classifier)


def _save_if_better(
    executor: LocalExecutor, incumbent: Incumbent, tried: _Average, first: TrialRecord
) -> bool:
    """Save an average as the run's classifier if it beats the current one by more than one image.

    Return whether it was saved.
    """
    known = incumbent.trial
    if known is None or known.val_accuracy is None:
        return False
    if tried.val_accuracy.mid - known.val_accuracy.mid <= incumbent.scheduler.one_image:
        return False
    record = replace(first, val_accuracy=tried.val_accuracy)
    incumbent.replace(tried.classifier, record, averaged=tried.trials)
    executor.folder.log_event("soup", trials=tried.trials, val_accuracy=tried.val_accuracy.mid)
    return True
