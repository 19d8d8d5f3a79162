"""Worker process: join the search of a run that another process coordinates."""

import math
import os
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from advisor.advise import prepare
from advisor.report.from_json import read_advice
from advisor.tune.distributed.shared_folder import open_for_worker
from advisor.tune.driver import check_split, make_search
from advisor.tune.interrupt import Interrupt
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.run_dir.settings import read_settings
from advisor.types.events import OnEvent, ignore
from advisor.types.options import WORKER_DEFAULTS, WorkerOptions
from strategies.core.progress import OnProgress


def join(
    run: Path | str,
    given: WorkerOptions = WORKER_DEFAULTS,
    *,
    on_progress: OnProgress | None = None,
    on_event: OnEvent = ignore,
) -> bool:
    """Run trials of a run that another process coordinates, until nothing is left to try.

    Both must use the same images and the same database, and the same run directory unless they
    share an artifact store. Their system clocks are assumed to agree.

    Parameters
    ----------
    run
        The run directory, or the name of a run in the database.
    given
        What differs from the run on this machine.

    Returns
    -------
    Whether the run was still searching when this process was ready.
    """
    with open_for_worker(str(run), given.storage, given.artifacts) as folder:
        settings = read_settings(folder).with_storage(given.storage)
        options = replace(
            settings.options,
            device=given.device or settings.options.device,
            cache_dir=given.cache_dir or settings.options.cache_dir,
            on_progress=on_progress,
        )
        prepared = prepare(given.data or settings.data, options, ddp=settings.run.ddp)
        state = _wait_until_measured(folder)
        if state["phase"] != "searching":
            return False
        check_split(folder, prepared.dataset)
        deadline_s = time.monotonic() + state["ends_at"] - time.time()
        advice = read_advice(folder.read("advice.json"))
        owner = f"{socket.gethostname()}-{os.getpid()}"
        interrupt = Interrupt()
        search = make_search(
            folder, settings, prepared, advice, deadline_s, owner, interrupt, on_event
        )
        with interrupt.handle_sigint():
            search.run()
    if interrupt.requested:
        raise KeyboardInterrupt
    return True


def _wait_until_measured(folder: RunDir) -> dict[str, Any]:
    """Wait until the advice of a run is there; return its state ("judging" if its time is up)."""
    while (state := folder.state()).get("phase", "measuring") == "measuring":
        if time.time() > state.get("ends_at", math.inf):
            return {**state, "phase": "judging"}
        time.sleep(0.5)
    return state
