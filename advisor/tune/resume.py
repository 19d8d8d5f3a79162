"""Resume a run that was killed or interrupted."""

import time
from dataclasses import replace
from pathlib import Path

from advisor.advise import prepare
from advisor.report.live.show import showing
from advisor.tune.driver import begin_session, run_session
from advisor.tune.interrupt import Interrupt
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.run_dir.settings import read_settings
from advisor.tune.trials.ray_executor import check_gpus
from advisor.types.events import OnEvent
from advisor.types.outcome import Outcome
from strategies.core.errors import StorageError
from strategies.core.progress import OnNote, OnProgress, ignore


def resume(
    run: Path | str,
    *,
    time_s: float | None = None,
    on_progress: OnProgress = ignore,
    on_note: OnNote = ignore,
    on_event: OnEvent = ignore,
    interrupt: Interrupt | None = None,
    show_progress: bool = False,
) -> Outcome:
    """Resume a run that was killed: finished trials are kept, a started one continues.

    Parameters
    ----------
    run
        The run directory.
    time_s
        Time limit in seconds from now on; None: what was left of the run's own limit.
    on_progress, on_note
        As in `Options`.
    on_event, interrupt, show_progress
        As in `auto`.

    Raises
    ------
    StorageError
        If there is no run, it is finished, or another process holds it.
    TransferError
        If the data or the backbone have changed.
    """
    start = time.monotonic()
    folder = RunDir.open(Path(run))
    with folder.locked():
        if folder.is_done():
            raise StorageError(f"{run} is finished: its outcome is in outcome.json.")
        settings = read_settings(folder)
        options = replace(settings.options, on_progress=on_progress, on_note=on_note)
        settings = replace(settings, options=options)
        left_s = settings.run.time_s - folder.used_s() if time_s is None else time_s
        check_gpus(options, settings.run)
        session = begin_session(folder, start + left_s, start)
        with showing(show_progress, options, on_event) as (options, on_event):
            prepared = prepare(settings.data, options, session.deadline_s, keep_rest=True)
            return run_session(folder, settings, prepared, session, on_event, interrupt)
