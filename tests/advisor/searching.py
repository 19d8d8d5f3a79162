"""Runner of short hyperparameter searches for tests."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna

from advisor.tune.fixed import Fixed, with_fixed
from advisor.tune.incumbent import Incumbent
from advisor.tune.interrupt import Interrupt
from advisor.tune.run_dir.directory import RunDir
from advisor.tune.run_dir.soup_candidates import SoupCandidates
from advisor.tune.scheduler import make_scheduler
from advisor.tune.search import Search, SearchResult
from advisor.tune.time_budget import TimeBudget
from advisor.tune.trials.executor import LocalExecutor
from advisor.tune.trials.pruning import make_pruning
from advisor.tune.trials.study import Trials
from advisor.tune.trials.validation import make_validation
from advisor.types.advice import Advice, Recommendation
from advisor.types.events import Event
from strategies.core.context import RunContext
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.registry import STRATEGIES
from strategies.training.loop import ROUNDS


def shortened(advice: Advice) -> Advice:
    """Return the advice with the minimum number of steps in every training run."""
    assert advice.frontier is not None
    frontier = replace(advice.frontier, options=tuple(map(_short, advice.frontier.options)))
    ranked = tuple(map(_short, advice.recommendations))
    return replace(advice, recommendations=ranked, frontier=frontier)


def _short(r: Recommendation) -> Recommendation:
    if "steps" not in r.hyperparameters:
        return r
    return replace(r, hyperparameters={**r.hyperparameters, "steps": ROUNDS})


class Runner:
    """Runs searches in one run folder, as one driver after the other would."""

    def __init__(
        self, advice: Advice, dataset: Dataset, backbone: Backbone, ctx: RunContext, folder: Path
    ) -> None:
        self.advice, self.dataset, self.backbone, self.ctx = advice, dataset, backbone, ctx
        self.folder = RunDir.create(folder)
        self.deadline_s = math.inf
        self.n_folds = 1
        self.soup = False
        self.fixed: Fixed = {}
        self.events: list[Event] = []

    def prepare(self, max_trials: int | None = None, only: str | None = None) -> Search:
        n_val = len(self.dataset.val)
        scheduler = make_scheduler(
            self.advice, max(n_val, 1), only=only, max_trials=max_trials, prefer="balanced"
        )
        scheduler = with_fixed(scheduler, self.fixed, self.dataset, self.backbone)
        self.folder.set_phase("searching", math.inf)
        trials = Trials(
            self.folder.path / "study.db",
            {n: s.search_space(self.dataset, self.backbone) for n, s in STRATEGIES.items()},
            pruning=make_pruning(n_val, by_folds=self.n_folds > 1),
            fixed=self.fixed,
        )
        executor = LocalExecutor(
            self.backbone,
            self.ctx,
            self.folder,
            make_validation(self.dataset.hide_test(), self.n_folds, 0),
            TimeBudget(self.deadline_s, math.inf, 0, n_val, {self.backbone.input_px: 0.001}),
            Interrupt(),
            SoupCandidates(self.folder, self.n_folds) if self.soup else None,
        )
        incumbent = Incumbent(self.folder, scheduler)
        return Search(trials, scheduler, executor, executor, incumbent, self.events.append)

    def __call__(self, max_trials: int | None = None, only: str | None = None) -> SearchResult:
        search = self.prepare(max_trials, only)
        search.run()
        return search.result()

    def resume(self, max_trials: int | None = None, only: str | None = None) -> SearchResult:
        search = self.prepare(max_trials, only)
        search.trials.requeue_dead(search.incumbent.trial)
        search.run()
        return search.result()

    def study(self, name: str) -> optuna.Study:
        return optuna.load_study(
            study_name=name, storage=f"sqlite:///{self.folder.path / 'study.db'}"
        )

    def lines(self) -> list[dict[str, Any]]:
        text = (self.folder.path / "trials.jsonl").read_text()
        return [json.loads(x) for x in text.splitlines()]
