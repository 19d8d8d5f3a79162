"""What a call of the library leaves as it was in the program that calls it."""

import gc
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import optuna
import pytest
import torch

from advisor import advise, auto, resume
from advisor.tune.interrupt import Interrupt
from advisor.tune.run_dir.directory import RunDir
from advisor.types.events import Event
from advisor.types.options import Options, RunOptions
from strategies.core import allocator
from strategies.core.progress import unlogged

TWO_TRIALS = RunOptions(time_s=600, max_trials=2, control=False, report=False)
COMMAND = (sys.executable, "-c", "from advisor.cli.app import tl_auto; tl_auto()")
PATIENCE_S = 300


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Let Ctrl-C interrupt, also where the tests were started in the background of a script.

    A shell without job control makes such processes ignore it, and Python then leaves it so.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def host_state() -> dict[str, Any]:
    """Return what belongs to the calling program, as comparable values."""
    loggers = [logging.root, *map(logging.getLogger, logging.root.manager.loggerDict)]
    return {
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "loggers": [(x.name, x.level, *x.handlers, *x.filters) for x in loggers if own(x)],
        "optuna": optuna.logging.get_verbosity(),
        "gc": (gc.isenabled(), gc.get_threshold()),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch": bytes(torch.random.get_rng_state().numpy()),
        "numpy": str(np.random.get_state()),  # noqa: NPY002
        "random": random.getstate(),
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "streams": (sys.stdout, sys.stderr, sys.excepthook, threading.excepthook),
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        # One filter stays: it silences Pillow's own modules, see `decoding.silence_pillow`.
        "warnings": [f for f in warnings.filters if getattr(f[3], "pattern", "") != r"PIL\."],
    }


def own(logger: logging.Logger) -> bool:
    return bool(logger.level or logger.handlers or logger.filters)


@pytest.fixture
def options(warm_cache: Path) -> Options:
    return Options(input_px=32, device="cpu", cache_dir=warm_cache)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set what a host may set to values that no library would choose."""

    def refuse(*_: object) -> bool:
        raise AssertionError("the allocator belongs to the calling program")

    monkeypatch.setattr(allocator.ctypes, "CDLL", refuse)
    before = optuna.logging.get_verbosity(), signal.getsignal(signal.SIGINT)
    optuna.create_study(storage="sqlite://")  # its first database makes the logger of alembic
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    signal.signal(signal.SIGINT, lambda number, frame: None)
    random.seed(17)
    yield
    optuna.logging.set_verbosity(before[0])
    signal.signal(signal.SIGINT, before[1])


def test_advice_and_a_run_leave_the_state_of_their_host_as_it_was(
    make_folder: Callable[..., Path],
    options: Options,
    tmp_path: Path,
    host: None,
    short_training_runs: None,
) -> None:
    data = make_folder("data", 12)
    before = host_state()
    advise(data, options)
    assert host_state() == before
    tuned = replace(options, strategy="full_fine_tune")
    auto(data, tmp_path / "run", tuned, RunOptions(time_s=600, max_trials=1, report=False))
    assert host_state() == before


def test_a_run_logs_nothing_about_the_studies_that_it_keeps_in_optuna(
    make_folder: Callable[..., Path],
    options: Options,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    logging.getLogger("optuna").addHandler(caplog.handler)  # it does not propagate
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)  # commands lower it for their process
    try:
        only = replace(options, strategy="linear_probe")
        auto(make_folder("data", 12), tmp_path / "run", only, TWO_TRIALS)
        assert caplog.messages == []
        optuna.create_study()
        assert len(caplog.messages) == 1
    finally:
        optuna.logging.set_verbosity(before)
        logging.getLogger("optuna").removeHandler(caplog.handler)


def test_messages_of_other_threads_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    logger = logging.getLogger("tests.unlogged")
    with unlogged(logger.name):
        logger.info("of this thread")
        other = threading.Thread(target=logger.info, args=("of another thread",))
        other.start()
        other.join()
    logger.info("afterwards")
    assert caplog.messages == ["of another thread", "afterwards"]


def test_ctrl_c_in_a_call_of_the_library_leaves_a_run_that_can_be_resumed(
    make_folder: Callable[..., Path], options: Options, tmp_path: Path
) -> None:
    only = replace(options, strategy="layer_svm")
    whole = auto(make_folder("data", 12), tmp_path / "whole", only, TWO_TRIALS)

    def press(event: Event) -> None:
        if event.kind == "begun" and event.number == 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        auto(tmp_path / "data", tmp_path / "run", only, TWO_TRIALS, on_event=press)
    assert not RunDir(tmp_path / "run").is_locked()
    found = resume(tmp_path / "run", time_s=600)
    assert found.ended == "trials"
    trials = [(t.number, t.hyperparameters, t.val_accuracy) for t in found.trials]
    assert trials == [(t.number, t.hyperparameters, t.val_accuracy) for t in whole.trials]


def test_ctrl_c_within_a_fit_is_not_taken_for_a_failed_trial(
    make_folder: Callable[..., Path],
    options: Options,
    tmp_path: Path,
    short_training_runs: None,
) -> None:
    def press(event: Event) -> None:
        if event.kind == "round" and event.step == 2:
            signal.raise_signal(signal.SIGINT)

    tuned = replace(options, strategy="full_fine_tune")
    with pytest.raises(KeyboardInterrupt):
        auto(make_folder("data", 12), tmp_path / "run", tuned, TWO_TRIALS, on_event=press)
    assert (tmp_path / "run" / "checkpoints" / "trial-0").exists()
    assert not (tmp_path / "run" / "trials.jsonl").exists()


def test_a_signal_handler_of_the_host_is_called_and_the_run_goes_on(
    make_folder: Callable[..., Path], options: Options, tmp_path: Path, host: None
) -> None:
    seen: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    signal.signal(signal.SIGINT, handle)

    def press(event: Event) -> None:
        if event.kind == "begun":
            signal.raise_signal(signal.SIGINT)

    only = replace(options, strategy="linear_probe")
    data = make_folder("data", 12)
    found = auto(data, tmp_path / "run", only, TWO_TRIALS, on_event=press)
    assert (found.ended, seen) == ("trials", [signal.SIGINT] * 2)


def test_an_interrupt_that_the_caller_gives_ends_the_search_with_an_outcome(
    make_folder: Callable[..., Path], options: Options, tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGINT)

    def press(event: Event) -> None:
        if event.kind == "begun" and event.number == 1:
            signal.raise_signal(signal.SIGINT)

    only = replace(options, strategy="layer_svm")
    data, run = make_folder("data", 12), RunOptions(time_s=600, max_trials=4, report=False)
    found = auto(data, tmp_path / "run", only, run, on_event=press, interrupt=Interrupt())
    assert found.ended == "interrupted"
    assert [t.reason for t in found.trials] == [None, "interrupted"]
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize(
    ("number", "code", "state"),
    [(signal.SIGINT, 130, "done"), (signal.SIGTERM, -signal.SIGTERM, "searching")],
)
def test_the_command_ends_with_an_outcome_at_ctrl_c_and_can_be_resumed_after_sigterm(
    number: int,
    code: int,
    state: str,
    make_folder: Callable[..., Path],
    tmp_path: Path,
    warm_cache: Path,
) -> None:
    run = tmp_path / "run"
    given = ["--cache-dir", str(warm_cache), "--input-px", "32", "--time", "1h"]
    given += ["--no-control", "--strategy", "layer_svm", "--no-report", "--quiet"]
    arguments = [*COMMAND, "run", str(make_folder("data", 12)), "--out", str(run), *given]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        wait_for(lambda: (run / "trials.jsonl").exists() or process.poll() is not None)
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == code
    assert RunDir(run).state()["phase"] == state
    if state == "done":
        assert RunDir(run).read("outcome.json")["ended"] == "interrupted"
        assert not (run / "report.html").exists()
    assert RunDir(run).best() is not None


def wait_for(condition: Callable[[], bool]) -> None:
    ends_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends_s
        time.sleep(0.05)
