"""The callbacks of docs/how-to/watch-a-run.md, as a reader copies them."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from advisor.tune import driver
from advisor.types.options import Options, RunOptions
from advisor.types.outcome import Outcome
from strategies import fine_tuning, from_scratch
from strategies.training.loop import ROUNDS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "watch-a-run.md"
MAX_LINES = 40


def block(heading: str) -> str:
    """Return the code below a heading."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def run_block(
    make_folder: Callable[..., Path], warm_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Outcome]:
    """Run a block of the page on a small dataset, with small options, in an empty folder."""
    for module in (fine_tuning, from_scratch):
        monkeypatch.setattr(module, "default_steps", lambda n_train, batch_size: ROUNDS)
    monkeypatch.chdir(make_folder("mydata", 12).parent)
    auto = driver.auto
    options = Options(
        input_px=32,
        strategy="full_fine_tune",
        device="cpu",
        cache_dir=warm_cache,
    )
    small = RunOptions(max_trials=2, control=False, soup=False, report=False)

    def run(code: str) -> Outcome:
        monkeypatch.setattr(driver, "auto", lambda *a, **k: auto(*a, options, small, **k))
        names: dict[str, Any] = {}
        exec(compile(code, str(PAGE), "exec"), names)
        outcome: Outcome = names["outcome"]
        return outcome

    return run


@pytest.mark.parametrize("heading", ["MLflow", "Weights & Biases"])
def test_a_callback_is_short(heading: str) -> None:
    assert len(block(heading).splitlines()) <= MAX_LINES


def test_mlflow_has_a_run_for_every_trial(
    run_block: Callable[[str], Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # else it asks for a database
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    outcome = run_block(block("MLflow"))
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("mydata")
    runs = client.search_runs([experiment.experiment_id])
    by_name = {run.info.run_name: run for run in runs}
    assert by_name.keys() == {f"{t.strategy} {t.number}" for t in outcome.trials}
    for trial in outcome.trials:
        run = by_name[f"{trial.strategy} {trial.number}"]
        assert trial.val_accuracy is not None
        assert run.info.status == "FINISHED"
        assert run.data.metrics["val_accuracy"] == trial.val_accuracy.mid
        assert float(run.data.params["lr"]) == trial.hyperparameters["lr"]
        history = client.get_metric_history(run.info.run_id, "val_accuracy_by_round")
        assert [point.step for point in history] == list(range(1, len(history) + 1))
        assert len(history) > 1


class FakeWandb(ModuleType):
    """Takes the place of wandb: records runs and what they are told."""

    class Run:
        def __init__(self, given: dict[str, Any]) -> None:
            self.given, self.logged = given, list[tuple[int, float]]()
            self.summary: dict[str, Any] = {}
            self.exit_code: int | None = None

        def log(self, values: dict[str, float], *, step: int) -> None:
            assert self.exit_code is None
            self.logged.append((step, values["val_accuracy"]))

        def finish(self, *, exit_code: int) -> None:
            self.exit_code = exit_code

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: list[FakeWandb.Run] = []

    def init(self, **given: Any) -> "FakeWandb.Run":
        self.runs.append(self.Run(given))
        return self.runs[-1]


def test_wandb_has_a_run_for_every_trial(
    run_block: Callable[[str], Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    outcome = run_block(block("Weights & Biases"))
    assert len(wandb.runs) == len(outcome.trials) == 2
    for run, trial in zip(wandb.runs, outcome.trials, strict=True):
        assert trial.val_accuracy is not None
        assert run.given["project"] == "mydata"
        assert run.given["config"]["lr"] == trial.hyperparameters["lr"]
        assert run.summary["val_accuracy"] == trial.val_accuracy.mid
        assert [step for step, _ in run.logged] == list(range(1, len(run.logged) + 1))
        assert run.exit_code == 0
