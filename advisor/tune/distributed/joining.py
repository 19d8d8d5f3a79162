"""Joining a run that another process holds."""

import math
import os
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from advisor.advise import prepare
from advisor.report.from_json import read_advice
from advisor.tune.distributed.shared_folder import visit
from advisor.tune.driver import check_split, make_search
from advisor.tune.interrupt import Interrupt
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.run_dir.settings import read_settings
from advisor.types.events import OnEvent, ignore
from strategies.core.progress import OnProgress


def join(
    run: Path | str,
    *,
    device: str | None = None,
    storage: str | None = None,
    artifacts: str | None = None,
    data: Path | None = None,
    cache_dir: Path | None = None,
    on_progress: OnProgress | None = None,
    on_event: OnEvent = ignore,
) -> bool:
    """Help a run that another process holds, until nothing is left to try.

    The images and the database must be the same as there, and the run folder too, unless
    machines share an artifact store. Their clocks are taken to agree.

    Parameters
    ----------
    run
        The run folder, or the name of a run in the database.
    device
        Where this process computes; None: as the run does.
    storage, artifacts
        Where database and artifact store are, seen from here; None: as the run folder says.
    data, cache_dir
        Where the images are, and features are kept; None: as the run does.

    Returns
    -------
    Whether the run was still searching when this process was ready.
    """
    with visit(str(run), storage, artifacts) as folder:
        settings = read_settings(folder)
        options = settings.options_of(on_progress)
        options = replace(
            options,
            device=device or options.device,
            cache_dir=cache_dir or options.cache_dir,
        )
        prepared = prepare(data or Path(settings.data), options)
        state = _state_after_measuring(folder)
        if state["phase"] != "searching":
            return False
        check_split(folder, prepared.dataset)
        deadline_s = time.monotonic() + state["ends_at"] - time.time()
        advice = read_advice(folder.read("advice.json"))
        owner = f"{socket.gethostname()}-{os.getpid()}"
        interrupt = Interrupt()
        search = make_search(
            folder, settings, prepared, advice, deadline_s, storage, owner, interrupt, on_event
        )
        with interrupt.watching():
            search.run()
    if interrupt.asked:
        raise KeyboardInterrupt
    return True


def _state_after_measuring(folder: RunDir) -> dict[str, Any]:
    """Wait until a run has been measured; a run whose time is up counts as judged."""
    while (state := folder.state()).get("phase", "measuring") == "measuring":
        if time.time() > state.get("ends_at", math.inf):
            return {**state, "phase": "judging"}
        time.sleep(0.5)
    return state
