"""Fixtures of searches: advice computed once per session, training runs of a few steps."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm

from advisor.advise import DEFAULTS, advise
from advisor.types.advice import Advice
from strategies import fine_tuning, from_scratch
from strategies.core.cache import ArrayCache
from strategies.core.context import RunContext
from strategies.data.dataset import Dataset, load_dataset
from strategies.models.backbone import Backbone
from strategies.training.loop import ROUNDS
from tests.advisor.searching import Runner, shortened
from tests.conftest import write_folder


@pytest.fixture(autouse=True)
def process_begins_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the time limit of a command that is run in this process count from the test's start."""
    monkeypatch.setattr("advisor.cli.console.STARTED_S", time.monotonic())


@pytest.fixture(scope="session")
def striped(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(write_folder(tmp_path_factory.mktemp("searched") / "data", 12, seed=2))


@pytest.fixture(scope="session")
def measured(striped: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Advice, Path]:
    cache = tmp_path_factory.mktemp("cache")
    advice = advise(striped.root, replace(DEFAULTS, input_px=64, cache_dir=cache))
    return shortened(advice), cache


@pytest.fixture
def short_training_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit training runs of the search space to a few steps."""
    for module in (fine_tuning, from_scratch):
        monkeypatch.setattr(module, "default_steps", lambda n_train, batch_size: ROUNDS)


@pytest.fixture(scope="session")
def make_runner(
    measured: tuple[Advice, Path], striped: Dataset, backbone: Backbone
) -> Callable[[Path], Runner]:
    """Return a factory of searches in a folder: ``make_runner(folder)``."""
    advice, cache = measured
    ctx = RunContext(ArrayCache(cache))
    return lambda folder: Runner(advice, striped, backbone, ctx, folder)


@pytest.fixture
def run(
    make_runner: Callable[[Path], Runner], tmp_path: Path, short_training_runs: None
) -> Runner:
    return make_runner(tmp_path / "run")


@pytest.fixture
def small_network(tmp_path: Path) -> str:
    """Return the name of a small network with random weights, in timm's format."""
    net = timm.create_model("test_resnet", pretrained=False)
    timm.models.save_for_hf(net, str(tmp_path / "network"), safe_serialization=True)
    return f"local-dir:{tmp_path / 'network'}"
