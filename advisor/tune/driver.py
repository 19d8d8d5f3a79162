"""Run driver: measure, search, evaluate on test and report, for a new or a resumed run."""

import hashlib
import os
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from advisor.advise import Prepared, advise_on, prepare
from advisor.report.files import write_run_reports
from advisor.report.from_json import read_advice
from advisor.report.outcome_json import outcome_record
from advisor.report.to_json import advice_record
from advisor.tune.closing import CONTROL_SHARE, REPORT_S, ClosingResult, tune
from advisor.tune.control import evaluate_with_control
from advisor.tune.distributed.devices import devices_of, workers_on
from advisor.tune.distributed.shared_folder import open_for_coordinator
from advisor.tune.incumbent import Incumbent
from advisor.tune.interrupt import Interrupt
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.run_dir.settings import (
    Settings,
    absolute,
    artifacts_name,
    settings_record,
)
from advisor.tune.run_dir.soup_candidates import SoupCandidates
from advisor.tune.scheduler import Scheduler, make_scheduler
from advisor.tune.search import Search, SearchResult
from advisor.tune.time_budget import MAX_CONTROL_SHARE, TimeBudget
from advisor.tune.trials.executor import LocalExecutor
from advisor.tune.trials.pruning import make_pruning
from advisor.tune.trials.study import COORDINATOR, Trials
from advisor.tune.trials.validation import Validation, make_validation, n_folds
from advisor.types.advice import Advice
from advisor.types.events import OnEvent, ignore
from advisor.types.options import AUTO, DEFAULTS, RUN_DEFAULTS, Options, RunOptions
from advisor.types.outcome import Outcome
from strategies.core.errors import (
    BackboneError,
    DataError,
    NotApplicable,
    OutOfTime,
    TransferError,
)
from strategies.data.dataset import Dataset
from strategies.registry import get_strategy, search_spaces


def auto(
    data: Path | str,
    out: Path | str,
    options: Options = DEFAULTS,
    run: RunOptions = RUN_DEFAULTS,
    *,
    on_event: OnEvent = ignore,
) -> Outcome:
    """Tune what the advice recommends within a time limit, and write the best classifier.

    Parameters
    ----------
    data, out
        Images, see `load_dataset`; the run directory, new or empty.
    options, run
        How to measure and to recommend; limits of the search and the processes that share it.

    Raises
    ------
    TransferError
        If the data, the backbone or a setting cannot be used, or the time was too short.
    KeyboardInterrupt
        If Ctrl-C was pressed before there was a classifier, or twice.
    """
    deadline_s = time.monotonic() + run.time_s
    run = replace(run, artifacts=artifacts_name(run.artifacts, run.storage))
    prefix = f"{Path(out).name}-{uuid.uuid4().hex[:8]}/" if run.storage else ""
    data = absolute(Path(data))
    settings = Settings(data, prefix, options, run)
    record = settings_record(settings)
    own, *_ = own_and_worker_devices(settings)
    _note_unused_ddp(settings)
    folder = RunDir.create(Path(out))
    with folder.locked():
        folder = open_for_coordinator(folder, settings)
        folder.begin(record)
        try:
            session = begin_session(folder, deadline_s)
            prepared = prepare(data, replace(options, device=own), deadline_s, run.ddp)
            return run_session(folder, settings, prepared, session, on_event)
        except (DataError, BackboneError, NotApplicable):
            if not (folder.path / "advice.json").exists():
                folder.abandon()  # the directory can be used again
            raise


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


def begin_session(folder: RunDir, deadline_s: float) -> Session:
    """Begin a session of a run and log it."""
    used_before_s, start_s = folder.used_s(), time.monotonic()
    ends_at = time.time() + deadline_s - start_s
    is_judging = folder.state().get("phase") == "judging"
    folder.log_event("session", ends_at=ends_at, process=os.getpid())
    folder.set_phase("measuring", ends_at)
    return Session(start_s, deadline_s, ends_at, used_before_s, is_judging)


def run_session(
    folder: RunDir, settings: Settings, prepared: Prepared, session: Session, on_event: OnEvent
) -> Outcome:
    """Run a new or resumed run up to its outcome. The caller must hold the run's lock."""
    run, on_note, ends_at = settings.run, settings.options.on_note, session.ends_at
    if run.artifacts:
        on_note(f"Other machines can join with: {folder.join_command()}")
    check_split(folder, prepared.dataset)
    advice = _load_or_make_advice(folder, prepared, run)
    interrupt = Interrupt()
    search = make_search(
        folder, settings, prepared, advice, session.deadline_s, COORDINATOR, interrupt, on_event
    )
    # After the search workers have nothing to do.
    others = [] if session.is_judging else own_and_worker_devices(settings)[1:]
    with (
        interrupt.handle_sigint(),
        workers_on(folder.path, others, run.storage, on_note),
    ):
        with search.incumbent.locked():
            search.trials.requeue_dead(own=True, kept=search.incumbent.trial)
        if not session.is_judging:  # test may have been read already: no trial may follow
            folder.set_phase("searching", ends_at)
        wanted = _wants_control(search.executor.budget, prepared, run)
        closing = tune(search, advice, prepared, wanted=wanted)
        with search.incumbent.locked():
            folder.set_phase("judging", ends_at)
        outcome = judge(search, closing, advice, prepared, session.start_s - session.used_before_s)
        folder.write_trials(outcome.trials)
        folder.write("outcome.json", outcome_record(outcome))
        write_run_reports(outcome, closing.draft.gallery, prepared.ctx.n_workers)
        folder.clear_checkpoints()
        if search.executor.soup_candidates:
            search.executor.soup_candidates.clear()
        folder.set_phase("done", ends_at)
        folder.log_event("done", seconds=outcome.seconds)
    return outcome


def judge(
    search: Search, closing: ClosingResult, advice: Advice, prepared: Prepared, start: float
) -> Outcome:
    """Evaluate the best classifier once on test, if there is one; return the outcome."""
    found, test = _result(search), prepared.dataset.test
    evaluation, gain = None, None
    if test:
        budget = search.executor.budget
        ctx = prepared.ctx.with_deadline(budget.report_begins_s())
        evaluation, gain = evaluate_with_control(
            found.classifier, closing.control, test, ctx, budget.s_per_image
        )
    return Outcome(
        advice=advice,
        trials=found.trials,
        best=found.best,
        test=evaluation,
        transfer_gain=gain,
        refitted=found.refitted,
        folder=search.executor.folder.path,
        seconds=round(time.monotonic() - start, 3),
        ended=search.end_reason(),
        n_folds=len(search.executor.validation.folds),
        soup=closing.soup,
    )


def _wants_control(budget: TimeBudget, prepared: Prepared, run: RunOptions) -> bool:
    """Return whether there is to be a control; if it is left out, its reserve is released."""
    if not run.control or not prepared.dataset.test:
        return False
    if budget.affords_control(run.time_s):
        return True
    budget.release_control(is_fitted=False)
    prepared.ctx.reporter.on_note(
        "The control without pretrained weights is left out: it would take more than "
        f"{100 * MAX_CONTROL_SHARE:.0f}% of the time. Give more --time for it."
    )
    return False


def own_and_worker_devices(settings: Settings) -> tuple[str, ...]:
    """Return this process's device first, then one device for each worker process."""
    options, run = settings.options, settings.run
    if run.devices is not None and options.device != AUTO:
        raise TransferError("--device and --devices were both given. Give only one of them.")
    if run.devices is not None and run.ddp > 1:
        raise TransferError(
            "--ddp and --devices were both given. GPUs can train data-parallel (--ddp) or run a "
            "trial each (--devices). Give only one of them."
        )
    return devices_of(run.devices, torch.cuda.device_count()) or (options.device,)


def _note_unused_ddp(settings: Settings) -> None:
    """Note that --ddp has no effect on a strategy that trains no network."""
    name = settings.options.strategy
    if settings.run.ddp > 1 and name != AUTO and not get_strategy(name).trains_network:
        settings.options.on_note(f"--ddp has no effect: {name} trains no network.")


def _result(search: Search) -> SearchResult:
    """Return the search's result; an interrupted search without one is a KeyboardInterrupt."""
    try:
        return search.result()
    except OutOfTime:
        if search.is_interrupted:
            raise KeyboardInterrupt from None
        raise


def _load_or_make_advice(folder: RunDir, prepared: Prepared, run: RunOptions) -> Advice:
    """Return the advice that an earlier session wrote, or measure the dataset and write it.

    The advice is for the time that the search will have.
    """
    if (folder.path / "advice.json").exists():
        return read_advice(folder.read("advice.json"))
    after_s = REPORT_S + run.control * CONTROL_SHARE * run.time_s
    advice = advise_on(prepared, reserve_s=None if run.max_trials else after_s)
    folder.write("advice.json", advice_record(advice))
    return advice


def make_search(
    folder: RunDir,
    settings: Settings,
    prepared: Prepared,
    advice: Advice,
    deadline_s: float,
    owner: str,
    interrupt: Interrupt,
    on_event: OnEvent,
) -> Search:
    """Return a `Search`, with which one process takes part in a run."""
    dataset, options, run = prepared.dataset, prepared.options, settings.run
    by_px = {prepared.backbone.input_px: advice.profile.ms_per_image / 1000}
    only = None if options.strategy == AUTO else options.strategy
    scheduler = make_scheduler(
        advice, len(dataset.val), only=only, max_trials=run.max_trials, prefer=options.prefer
    )
    validation = _load_or_make_validation(
        folder, dataset.hide_test(), scheduler, options.seed, deadline_s
    )
    scheduler = replace(scheduler, n_val=validation.n, n_fits=len(validation.folds))
    url = run.storage or f"sqlite:///{(folder.path / 'study.db').resolve()}"
    trials = Trials(
        url,
        search_spaces(dataset, prepared.backbone),
        prefix=settings.prefix,
        seed=options.seed,
        owner=owner,
        heartbeat_s=run.heartbeat_s,
        pruning=make_pruning(len(dataset.val), by_folds=len(validation.folds) > 1),
    )
    n_test = (1 + run.control) * len(dataset.test or ())
    control_s = run.control * CONTROL_SHARE * run.time_s
    budget = TimeBudget(deadline_s, n_test, len(dataset.val), by_px, control_s, REPORT_S)
    executor = LocalExecutor(
        prepared.backbone,
        prepared.ctx.with_deadline(None),
        folder,
        trials,
        validation,
        budget,
        interrupt,
        SoupCandidates(folder, len(validation.folds)) if run.soup else None,
    )
    incumbent = Incumbent(folder, trials.lock, scheduler)
    return Search(trials, scheduler, executor, incumbent, on_event)


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


def check_split(folder: RunDir, dataset: Dataset) -> None:
    """Check that images, labels and splits are the same as at the start of the run.

    Raises
    ------
    DataError
        If they have changed.
    """
    splits = (dataset.train, dataset.val, dataset.test or ())
    rows = [f"{p.digest} {p.label}" for split in splits for p in (*split, None) if p]
    digest = hashlib.sha256("\n".join([*rows, *dataset.classes]).encode()).hexdigest()
    record = folder.settings()
    known = record.get("split_sha256")
    if known is None:
        folder.write("run.json", {**record, "split_sha256": digest})
    elif known != digest:
        raise DataError(
            f"{dataset.root} has changed since {folder.path} was started: images, labels or "
            "splits are not the same. Start a new run."
        )
