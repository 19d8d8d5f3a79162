"""A run from its start, or from where it was killed, to its outcome."""

import hashlib
import os
import time
import uuid
from dataclasses import asdict, replace
from pathlib import Path

import torch

from advisor.advise import Prepared, advise_on, prepare
from advisor.report.files import write_run_reports
from advisor.report.from_json import read_advice
from advisor.report.outcome_json import outcome_record
from advisor.report.to_json import advice_record
from advisor.tune.closing import CONTROL_SHARE, PAGE_S, Found, search_with_control
from advisor.tune.control import judge_both
from advisor.tune.distributed.devices import devices_of, workers_on
from advisor.tune.distributed.shared_folder import share
from advisor.tune.interrupt import Interrupt
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.run_dir.settings import (
    Settings,
    absolute,
    artifacts_name,
    options_record,
    versions,
    without_password,
)
from advisor.tune.run_dir.soup_candidates import SoupCandidates
from advisor.tune.scheduler import Scheduler, make_scheduler
from advisor.tune.search import Search, SearchResult
from advisor.tune.study import COORDINATOR, Trials
from advisor.tune.time_budget import TimeBudget
from advisor.tune.validation import Validation, make_validation, n_folds
from advisor.types.advice import Advice
from advisor.types.events import OnEvent, ignore
from advisor.types.options import AUTO, DEFAULTS, Options
from advisor.types.outcome import Outcome
from strategies.core.errors import (
    BackboneError,
    DataError,
    NotApplicable,
    OutOfTime,
    TransferError,
)
from strategies.data.dataset import Dataset
from strategies.models.backbone import input_sizes
from strategies.registry import STRATEGIES, get_strategy

HEARTBEAT_S = 10


def auto(
    data: Path | str,
    out: Path | str,
    options: Options = DEFAULTS,
    *,
    time_s: float = 600.0,
    max_trials: int | None = None,
    storage: str | None = None,
    heartbeat_s: int = HEARTBEAT_S,
    control: bool = True,
    soup: bool = True,
    devices: str | None = None,
    artifacts: str | None = None,
    on_event: OnEvent = ignore,
) -> Outcome:
    """Take the advice: tune it within a time limit and leave a classifier in a run folder.

    Parameters
    ----------
    out
        The run folder: new or empty.
    time_s, max_trials
        Wall-clock limit of everything: measuring, tuning, judging, saving.
    storage, heartbeat_s
        A database for the trials that other machines reach; None: a file in the run folder. After
        six missed heartbeats a worker is presumed dead, and another takes up its trial.
    control, soup
        Whether a control without pretrained weights is fitted, and weights are averaged.
    devices, artifacts
        "all" GPUs of this machine, or names with commas between them; a folder, or
        ``s3://BUCKET/PREFIX``, for machines that do not see the run folder.

    Raises
    ------
    TransferError
        If the data, the backbone or a setting cannot be used, or the time was too short.
    KeyboardInterrupt
        If Ctrl-C was pressed before there was a classifier, or twice.
    """
    deadline_s = time.monotonic() + time_s
    settings = Settings(
        absolute(Path(data)),
        options_record(options),
        time_s,
        max_trials,
        without_password(storage),
        f"{Path(out).name}-{uuid.uuid4().hex[:8]}/" if storage else "",
        heartbeat_s,
        control,
        devices,
        artifacts_name(artifacts, storage),
        soup,
    )
    _devices(settings, options)
    _note_of_ddp(options)
    folder = RunDir.create(Path(out))
    with folder.locked():
        folder = share(folder, settings, storage)
        folder.begin({**asdict(settings), "versions": versions()})
        return _first_session(folder, settings, options, deadline_s, storage, on_event)


def _first_session(
    folder: RunDir,
    settings: Settings,
    options: Options,
    deadline_s: float,
    storage: str | None,
    on_event: OnEvent,
) -> Outcome:
    """Carry a new run to its outcome; leave an empty folder where it could not even begin."""
    try:
        return run_session(folder, settings, options, deadline_s, storage, on_event)
    except (DataError, BackboneError, NotApplicable):
        if not (folder.path / "advice.json").exists():
            folder.abandon()
        raise


def run_session(
    folder: RunDir,
    settings: Settings,
    options: Options,
    deadline_s: float,
    storage: str | None,
    on_event: OnEvent,
) -> Outcome:
    """Carry a run to its outcome; the caller holds its lock."""
    used_before_s, start = folder.used_s(), time.monotonic()
    ends_at = time.time() + deadline_s - start
    was_judging = folder.state().get("phase") == "judging"
    folder.note("session", ends_at=ends_at, process=os.getpid())
    folder.enter("measuring", ends_at)
    if settings.artifacts:
        options.on_note(f"Other machines help by: {folder.invitation()}")
    own, *others = _devices(settings, options)
    prepared = prepare(Path(settings.data), replace(options, device=own), deadline_s)
    check_split(folder, prepared.dataset)
    advice = _advice(folder, prepared)
    interrupt = Interrupt()
    search = make_search(
        folder, settings, prepared, advice, deadline_s, storage, COORDINATOR, interrupt, on_event
    )
    helpers = [] if was_judging else others  # then nothing is left to help with
    with (
        interrupt.watching(),
        workers_on(folder.path, helpers, storage, options.on_note),
    ):
        with search.trials.lock.held():
            best = folder.best()
            search.trials.requeue_dead(own=True, kept=best and best[0])
        if not was_judging:  # else test may have been read already: the search is over
            folder.enter("searching", ends_at)
        wanted = settings.control and bool(prepared.dataset.test)
        closing = search_with_control(search, advice, prepared, wanted=wanted)
        with search.trials.lock.held():
            folder.enter("judging", ends_at)
        outcome = _outcome(search, closing, advice, prepared, start - used_before_s)
        folder.write_trials(outcome.trials)
        folder.write("outcome.json", outcome_record(outcome))
        write_run_reports(outcome, closing.draft.gallery, prepared.ctx.n_workers)
        folder.clear_checkpoints()
        if search.soup_candidates:
            search.soup_candidates.clear()
        folder.enter("done", ends_at)
        folder.note("done", seconds=outcome.seconds)
    return outcome


def _outcome(
    search: Search, closing: Found, advice: Advice, prepared: Prepared, start: float
) -> Outcome:
    """Judge what was found on test, if there is one: nothing has seen it before."""
    found, test = _result(search), prepared.dataset.test
    judged, gain = None, None
    if test:
        judging = replace(prepared.ctx, deadline_s=search.budget.page_begins_s())
        judged, gain = judge_both(found.classifier, closing.control, test, judging)
    return Outcome(
        advice=advice,
        trials=found.trials,
        best=found.best,
        test=judged,
        transfer_gain=gain,
        refitted=found.refitted,
        folder=search.folder.path,
        seconds=round(time.monotonic() - start, 3),
        ended=search.ended(),
        n_folds=len(search.validation.folds),
        soup=closing.soup,
    )


def _devices(settings: Settings, options: Options) -> tuple[str, ...]:
    """Return this process's device, and those of its workers."""
    if settings.devices is not None and options.device != AUTO:
        raise TransferError("--device and --devices were both given. Leave one of them out.")
    if settings.devices is not None and options.ddp > 1:
        raise TransferError(
            "--ddp and --devices were both given. A GPU can share a batch, or run a trial of its "
            "own: leave one of them out."
        )
    return devices_of(settings.devices, torch.cuda.device_count()) or (options.device,)


def _note_of_ddp(options: Options) -> None:
    """Say where sharing batches is without effect."""
    name = options.strategy
    if options.ddp > 1 and name != AUTO and not get_strategy(name).selects_on_val:
        options.on_note(f"--ddp is without effect: {name} trains no network.")


def _result(search: Search) -> SearchResult:
    try:
        return search.result()
    except OutOfTime:
        if search.interrupt.asked:
            raise KeyboardInterrupt from None
        raise


def _advice(folder: RunDir, prepared: Prepared) -> Advice:
    """Return the advice of an earlier session, or measure."""
    if (folder.path / "advice.json").exists():
        return read_advice(folder.read("advice.json"))
    advice = advise_on(prepared)
    folder.write("advice.json", advice_record(advice))
    return advice


def make_search(
    folder: RunDir,
    settings: Settings,
    prepared: Prepared,
    advice: Advice,
    deadline_s: float,
    storage: str | None,
    owner: str,
    interrupt: Interrupt,
    on_event: OnEvent,
) -> Search:
    """Return what one process needs to take part in the search of a run."""
    dataset, options = prepared.dataset, prepared.options
    by_px = {prepared.backbone.input_px: advice.profile.ms_per_image / 1000}
    only = None if options.strategy == AUTO else options.strategy
    sizes, limit = input_sizes(prepared.backbone), settings.max_trials
    scheduler = make_scheduler(
        advice, len(dataset.val), only=only, max_trials=limit, prefer=options.prefer, sizes=sizes
    )
    validation = _validation(folder, dataset.hide_test(), scheduler, options.seed, deadline_s)
    scheduler = replace(scheduler, n_val=validation.n, n_fits=len(validation.folds))
    url = storage or settings.storage or f"sqlite:///{(folder.path / 'study.db').resolve()}"
    trials = Trials(
        url,
        list(STRATEGIES),
        prefix=settings.prefix,
        seed=options.seed,
        owner=owner,
        heartbeat_s=settings.heartbeat_s,
        n_val=len(dataset.val),
        by_folds=len(validation.folds) > 1,
    )
    n_judged = (1 + settings.control) * len(dataset.test or ())
    control_s = settings.control * CONTROL_SHARE * settings.time_s
    budget = TimeBudget(deadline_s, n_judged, len(dataset.val), by_px, control_s, PAGE_S)
    return Search(
        dataset.hide_test(),
        prepared.backbone,
        replace(prepared.ctx, deadline_s=None),
        folder,
        trials,
        scheduler,
        budget,
        interrupt,
        on_event,
        validation,
        SoupCandidates(folder, len(validation.folds)) if settings.soup else None,
    )


def _validation(
    folder: RunDir, dataset: Dataset, scheduler: Scheduler, seed: int, deadline_s: float
) -> Validation:
    """Decide once in a run how its trials are scored."""
    record = folder.settings()
    if "n_folds" not in record:
        # A number of trials promises the same ones again: then no clock may decide.
        left_s = 0.0 if scheduler.max_trials else deadline_s - time.monotonic()
        n = n_folds(dataset, scheduler.candidates, left_s)
        record = {**record, "n_folds": n}
        folder.write("run.json", record)
    return make_validation(dataset, record["n_folds"], seed)


def check_split(folder: RunDir, dataset: Dataset) -> None:
    """Refuse to go on where the images are no longer those that the run began with."""
    splits = (dataset.train, dataset.val, dataset.test or ())
    rows = [f"{p.digest} {p.label}" for split in splits for p in (*split, None) if p]
    digest = hashlib.sha256("\n".join([*rows, *dataset.classes]).encode()).hexdigest()
    record = folder.settings()
    known = record.get("split_sha256")
    if known is None:
        folder.write("run.json", {**record, "split_sha256": digest})
    elif known != digest:
        raise DataError(
            f"{dataset.root} is no longer what {folder.path} was started with: images, labels or "
            "splits have changed. Start a new run."
        )
