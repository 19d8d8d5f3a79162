"""Run driver: measure, search, evaluate on test and report, for a new or a resumed run."""

import contextlib
import hashlib
import logging
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from advisor.advise import Prepared, advise_on, prepare
from advisor.decide.cost import first_baseline_s
from advisor.decide.more_images import for_more_images
from advisor.decide.priors import load_priors
from advisor.findings.exports import JSON_FILE, findings_record
from advisor.report.files import write_run_reports
from advisor.report.from_json import read_advice
from advisor.report.live.show import showing
from advisor.report.outcome_json import outcome_record
from advisor.report.to_json import advice_record
from advisor.tune.all_images import learn_from_all
from advisor.tune.closing import ClosingResult, time_budget, tune, with_explanations
from advisor.tune.control import evaluate_with_control
from advisor.tune.fixed import check_fixed_names, checked_fixed, with_fixed
from advisor.tune.incumbent import Incumbent
from advisor.tune.interrupt import Interrupt
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.run_dir.images import write_images
from advisor.tune.run_dir.settings import Settings, absolute, settings_record, write_settings_file
from advisor.tune.run_dir.soup_candidates import SoupCandidates
from advisor.tune.scheduler import Scheduler, make_scheduler
from advisor.tune.search import Search, SearchResult
from advisor.tune.time_budget import MAX_CONTROL_SHARE, TimeBudget
from advisor.tune.trials.executor import LocalExecutor
from advisor.tune.trials.pruning import make_pruning
from advisor.tune.trials.ray_executor import check_gpus, storage_of, trial_executor
from advisor.tune.trials.study import Trials
from advisor.tune.trials.validation import Validation, make_validation, n_folds
from advisor.types.advice import Advice
from advisor.types.events import OnEvent
from advisor.types.options import AUTO, DEFAULTS, RUN_DEFAULTS, Options, RunOptions
from advisor.types.outcome import Outcome
from advisor.types.profile import Profile
from strategies.core.errors import (
    BackboneError,
    DataError,
    NotApplicable,
    OutOfTime,
    TransferError,
)
from strategies.core.progress import ignore
from strategies.data.dataset import Dataset
from strategies.registry import STRATEGIES

logger = logging.getLogger(__name__)


def auto(
    data: Path | str,
    out: Path | str,
    options: Options = DEFAULTS,
    run: RunOptions = RUN_DEFAULTS,
    *,
    on_event: OnEvent = ignore,
    interrupt: Interrupt | None = None,
    show_progress: bool = False,
    began_s: float | None = None,
) -> Outcome:
    """Tune what the advice recommends within a time limit, and write the best classifier.

    A run that ends early, by Ctrl-C or because the process was killed, can be continued with
    `resume`. Signal handlers, loggers, random generators and threads of the calling program stay
    as they are.

    Parameters
    ----------
    data, out
        Images, see `load_dataset`; the run directory, new or empty.
    options, run
        How to measure and to recommend; limits of the search.
    on_event
        Called when a trial begins, was validated, and ends.
    interrupt
        What handles Ctrl-C during the search, as in ``tl-auto run``: the first one ends the search
        and keeps the best classifier so far, the second one stops at once. None: Ctrl-C raises
        KeyboardInterrupt, or does what the calling program has set.
    show_progress
        Whether to show progress and trials, as in `advise`.
    began_s
        ``time.monotonic()`` from which the time limit counts; None: now.

    Raises
    ------
    TransferError
        If the data, the backbone or a setting cannot be used, or the time was too short.
    KeyboardInterrupt
        If Ctrl-C was pressed; with `interrupt`, if that was before there was a classifier, or
        twice.
    """
    began_s = time.monotonic() if began_s is None else began_s
    deadline_s = began_s + run.time_s
    _check_together(options, run)
    data = absolute(Path(data))
    settings = Settings(data, options, run)
    folder = RunDir.create(Path(out))
    with folder.locked(), showing(show_progress, options, on_event) as (options, on_event):
        folder.begin(settings_record(settings))
        try:
            session = begin_session(folder, deadline_s, began_s)
            prepared = prepare(data, options, deadline_s, keep_rest=True)
            write_settings_file(folder, settings, prepared.backbone)
            return run_session(folder, settings, prepared, session, on_event, interrupt)
        except (DataError, BackboneError, NotApplicable):
            if not (folder.path / "advice.json").exists():
                folder.abandon()  # the directory can be used again
            raise


def _check_together(options: Options, run: RunOptions) -> None:
    """Refuse options of the advice and of the run that contradict each other."""
    if run.advised_only and options.strategy != AUTO:
        raise TransferError(
            f"--strategy {options.strategy} and --advised-only cannot be used together. Each "
            "names the strategy; give one."
        )
    check_gpus(options, run)
    check_fixed_names(options, run)


@dataclass(frozen=True)
class Session:
    """The part of a run from its start or a resume up to its outcome or death.

    Attributes
    ----------
    start_s, deadline_s
        ``time.monotonic()`` of its start, and of the time at which the program must have ended.
    ends_at
        The deadline as ``time.time()``.
    used_before_s
        Seconds that earlier sessions used.
    is_judging
        Whether an earlier session may have read the test split.
    """

    start_s: float
    deadline_s: float
    ends_at: float
    used_before_s: float
    is_judging: bool


def begin_session(folder: RunDir, deadline_s: float, start_s: float | None = None) -> Session:
    """Begin a session of a run and log it; a run that was judging never searches again.

    Parameters
    ----------
    start_s, deadline_s
        ``time.monotonic()`` of its start (None: now), and of its end at the latest.
    """
    start_s = time.monotonic() if start_s is None else start_s
    used_before_s, started_at = folder.used_s(), time.time() - (time.monotonic() - start_s)
    ends_at = started_at + deadline_s - start_s
    is_judging = folder.state().get("phase") == "judging"
    folder.log_event("session", time=round(started_at, 3), ends_at=ends_at, process=os.getpid())
    folder.set_phase("judging" if is_judging else "measuring", ends_at)
    return Session(start_s, deadline_s, ends_at, used_before_s, is_judging)


def run_session(
    folder: RunDir,
    settings: Settings,
    prepared: Prepared,
    session: Session,
    on_event: OnEvent,
    interrupt: Interrupt | None,
) -> Outcome:
    """Run a new or resumed run up to its outcome. The caller must hold the run's lock."""
    run, ends_at = settings.run, session.ends_at
    check_split(folder, prepared.dataset)
    if not prepared.dataset.is_sampled:  # the search spaces depend on the number of images
        checked_fixed(prepared.options, run, prepared.dataset, prepared.backbone)
    advice = _load_or_make_advice(folder, prepared, run, session.deadline_s)
    prepared = learn_from_all(folder, prepared, advice.profile, by_time=run.max_trials is None)
    if not run.uses_ray:
        training = replace(prepared.ctx.training, n_gpus=run.gpus_per_trial)
        prepared = replace(prepared, ctx=replace(prepared.ctx, training=training))
    search = make_search(
        folder, settings, prepared, advice, session.deadline_s, on_event, interrupt or Interrupt()
    )
    with (
        contextlib.nullcontext() if interrupt is None else interrupt.handle_sigint(),
        trial_executor(search.executor, run) as executor,
    ):
        search = replace(search, trial_executor=executor)
        search.trials.requeue_dead(search.incumbent.trial)
        if not session.is_judging:  # test may have been read already: no trial may follow
            folder.set_phase("searching", ends_at)
        wanted = _wants_control(search.executor.budget, prepared, run)
        closing = tune(search, advice, prepared, wanted=wanted, with_report=run.report)
        folder.set_phase("judging", ends_at)
        found, began_s = _result(search), session.start_s - session.used_before_s
        outcome = judge(search, found, closing, advice, prepared, began_s)
        folder.write_trials(outcome.trials)
        folder.write("outcome.json", outcome_record(outcome))
        gallery = with_explanations(
            closing.gallery, outcome, found.classifier, prepared, search.executor.budget
        )
        write_run_reports(outcome, gallery, prepared.ctx.n_workers)
        executor.clear()
        folder.set_phase("done", ends_at)
        folder.log_event("done", seconds=outcome.seconds)
    return outcome


def judge(
    search: Search,
    found: SearchResult,
    closing: ClosingResult,
    advice: Advice,
    prepared: Prepared,
    start: float,
) -> Outcome:
    """Evaluate the best classifier once on test, if there is one; return the outcome."""
    test, judged = prepared.dataset.test, None
    if test:
        budget = search.executor.budget
        ctx = prepared.ctx.with_deadline(budget.explanation_begins_s())
        px = found.classifier.backbone.input_px
        judged = evaluate_with_control(
            found.classifier, closing.control, test, ctx, budget.seconds_at(px)
        )
    predicted = {} if judged is None else judged.predicted
    write_images(search.executor.folder, prepared.dataset, predicted)
    return Outcome(
        advice=advice,
        trials=found.trials,
        best=found.best,
        test=None if judged is None else judged.evaluation,
        transfer_gain=None if judged is None else judged.gain,
        refitted=found.refitted,
        folder=search.executor.folder.path,
        seconds=round(time.monotonic() - start, 3),
        n_train=len(prepared.dataset.train),
        ended=search.end_reason(),
        n_folds=len(search.executor.validation.folds),
        soup=closing.soup,
    )


def _wants_control(budget: TimeBudget, prepared: Prepared, run: RunOptions) -> bool:
    """Return whether there is to be a control; if it is left out, its reserve is released."""
    if not run.control or not prepared.dataset.test:
        return False
    if budget.affords_control():
        return True
    budget.release_control(is_fitted=False)
    prepared.ctx.reporter.on_note(
        "The control without pretrained weights is left out: it would take more than "
        f"{100 * MAX_CONTROL_SHARE:.0f}% of the time. Give more --time for it."
    )
    return False


def _result(search: Search) -> SearchResult:
    """Return the search's result; an interrupted search without one is a KeyboardInterrupt."""
    try:
        return search.result()
    except OutOfTime:
        if search.is_interrupted:
            raise KeyboardInterrupt from None
        raise


def _load_or_make_advice(
    folder: RunDir, prepared: Prepared, run: RunOptions, deadline_s: float
) -> Advice:
    """Return the advice that an earlier session wrote, or measure the dataset and write it.

    The advice is for the time that the first trial after the baseline will have.
    """
    if (folder.path / "advice.json").exists():
        return read_advice(folder.read("advice.json"))

    def reserve_s(profile: Profile) -> float:
        budget = time_budget(prepared, profile, run, deadline_s)
        if not budget.affords_control():
            budget.release_control(is_fitted=False)
        return deadline_s - budget.fit_ends_s() + first_baseline_s(profile)

    has_limit = run.max_trials is None or run.advised_only
    advice = advise_on(prepared, reserve_s=reserve_s if has_limit else None)
    folder.write(JSON_FILE, findings_record(advice.findings, advice.data))
    folder.write("advice.json", advice_record(advice))
    return advice


def make_search(
    folder: RunDir,
    settings: Settings,
    prepared: Prepared,
    advice: Advice,
    deadline_s: float,
    on_event: OnEvent,
    interrupt: Interrupt,
) -> Search:
    """Return the search of a run."""
    dataset, options, run = prepared.dataset, prepared.options, settings.run
    only = None if options.strategy == AUTO else options.strategy
    if prepared.measured is not None:
        check_split(folder, dataset, "all_images_sha256")
        ctx = prepared.ctx
        advice = for_more_images(advice, dataset, prepared.backbone, load_priors(), ctx)
    if run.advised_only:
        only = advice.best.strategy
    scheduler = make_scheduler(
        advice, len(dataset.val), only=only, max_trials=run.max_trials, prefer=options.prefer
    )
    fixed = checked_fixed(options, run, dataset, prepared.backbone)
    scheduler = with_fixed(scheduler, fixed, dataset, prepared.backbone)
    validation = _load_or_make_validation(
        folder, dataset.hide_test(), scheduler, options.seed, deadline_s
    )
    scheduler = replace(scheduler, n_val=validation.n, n_fits=len(validation.folds))
    names = ", ".join(c.strategy for c in scheduler.candidates)
    n_scored, n_fits = validation.n, len(validation.folds)
    logger.info("candidates: %s; scored on %d images, %d fits a trial", names, n_scored, n_fits)
    trials = Trials(
        folder.path / "study.db",
        {n: s.search_space(dataset, prepared.backbone) for n, s in STRATEGIES.items()},
        seed=options.seed,
        pruning=make_pruning(len(dataset.val), by_folds=len(validation.folds) > 1),
        fixed=fixed,
    )
    shared = storage_of(folder, run.storage_path) if run.uses_ray else folder
    executor = LocalExecutor(
        prepared.backbone,
        prepared.ctx.with_deadline(None),
        folder,
        validation,
        time_budget(prepared, advice.profile, run, deadline_s),
        interrupt,
        SoupCandidates(shared, len(validation.folds)) if run.soup else None,
    )
    return Search(trials, scheduler, executor, executor, Incumbent(folder, scheduler), on_event)


def _load_or_make_validation(
    folder: RunDir, dataset: Dataset, scheduler: Scheduler, seed: int, deadline_s: float
) -> Validation:
    """Return the folds of a run's trials; their number is decided once and written to run.json."""
    record = folder.settings()
    if "n_folds" not in record:
        # With --trials a run must be reproducible: the number of folds may not depend on time.
        left_s = 0.0 if scheduler.max_trials else deadline_s - time.monotonic()
        n = n_folds(dataset, scheduler.candidates, left_s)
        record = {**record, "n_folds": n}
        folder.write("run.json", record)
    return make_validation(dataset, record["n_folds"], seed)


def check_split(folder: RunDir, dataset: Dataset, key: str = "split_sha256") -> None:
    """Check that images, labels and splits are the same as at the start of the run.

    Parameters
    ----------
    key
        Where their digest is recorded in ``run.json``.

    Raises
    ------
    DataError
        If they have changed.
    """
    splits = (dataset.train, dataset.val, dataset.test or ())
    rows = [f"{p.digest} {p.label}" for split in splits for p in (*split, None) if p]
    digest = hashlib.sha256("\n".join([*rows, *dataset.classes]).encode()).hexdigest()
    record = folder.settings()
    known = record.get(key)
    if known is None:
        folder.write("run.json", {**record, key: digest})
    elif known != digest:
        raise DataError(
            f"{dataset.root} has changed since {folder.path} was started: images, labels or "
            "splits are not the same. Start a new run."
        )
