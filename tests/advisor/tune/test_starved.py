"""A run that gets a tenth of the time of a core, because other processes take the rest."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from strategies.models.classifier import ImageClassifier

LIMIT_S, TOLERANCE = 180, 0.1
ON_S, OFF_S = 0.1, 0.9
"""Seconds for which the process runs, and for which it is stopped, in turn."""
RUN = "from advisor.cli.app import tl_auto; tl_auto()"


def starve(process: "subprocess.Popen[bytes]", ended: threading.Event) -> None:
    """Stop and continue a process in turn until an event is set."""
    while not ended.is_set():
        for signal_number, seconds in ((signal.SIGSTOP, OFF_S), (signal.SIGCONT, ON_S)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal_number)
            ended.wait(seconds)


@pytest.mark.slow
def test_a_starved_run_ends_in_time_with_a_classifier(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    data, out = make_folder("data", 30), tmp_path / "out"
    given = [str(data), "--out", str(out), "--time", f"{LIMIT_S}s", "--input-px", "64"]
    command = [sys.executable, "-c", RUN, "run", *given, "--cache-dir", str(tmp_path / "cache")]
    start, ended = time.monotonic(), threading.Event()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    thread = threading.Thread(target=starve, args=(process, ended))
    thread.start()
    try:
        code = process.wait(timeout=2 * LIMIT_S)
    finally:
        ended.set()
        thread.join()
        process.kill()
        process.wait()
    assert code == 0
    assert time.monotonic() - start <= (1 + TOLERANCE) * LIMIT_S
    images = sorted(data.rglob("*.png"))[:3]
    assert ImageClassifier.load(out / "classifier").predict_proba(images).shape == (3, 3)
