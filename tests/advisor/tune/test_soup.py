"""Model soup: kept if it wins on validation, else the best trial stays unchanged."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from advisor.tune.run_dir.soup_candidates import SoupCandidates
from advisor.tune.run_dir.status import status_lines, status_record
from advisor.tune.search import Search
from advisor.tune.soup import NO_TIME, make_soup
from advisor.types.outcome import Soup, TrialRecord
from strategies.core.context import RunContext
from strategies.core.metrics import Scores
from strategies.data.dataset import Dataset, Split
from strategies.full_fine_tune import FullFineTune
from strategies.linear_probe import LinearProbe
from strategies.models.backbone import Backbone
from strategies.models.classifier import WEIGHTS_FILE, ImageClassifier
from strategies.models.network import Network, scores_of
from tests.advisor.searching import Runner
from tests.advisor.tune.test_resume import Killed, kill_at

Searched = Callable[..., Search]


@pytest.fixture
def searched(run: Runner, monkeypatch: pytest.MonkeyPatch) -> Searched:
    """Search over training runs whose head is a good probe plus a multiple of one fixed error."""

    def search(errors: Sequence[float], n_folds: int = 1) -> Search:
        waiting = iter([e for e in errors for _ in range(n_folds)])

        def fit(
            self: FullFineTune, dataset: Dataset, backbone: Backbone, ctx: RunContext
        ) -> ImageClassifier:
            found = LinearProbe(1e-3).fit(dataset, backbone, ctx)
            weight = found.network.head.weight
            noise = np.random.default_rng(1).normal(
                0, 3 * weight.detach().std().item(), weight.shape
            )
            with torch.no_grad():
                weight += next(waiting) * torch.as_tensor(noise, dtype=torch.float32)
            return replace(found, strategy=self.name, hyperparameters=self.hyperparameters())

        monkeypatch.setattr(FullFineTune, "fit", fit)
        run.soup, run.n_folds = True, n_folds
        prepared = run.prepare(max_trials=len(errors), only="full_fine_tune")
        prepared.run()
        return prepared

    return search


def soup_of(search: Search) -> Soup | None:
    return make_soup(search.executor, search.incumbent, search.trials.snapshot().done)


def accuracy(record: TrialRecord) -> float:
    assert record.val_accuracy is not None
    return record.val_accuracy.mid


@pytest.mark.parametrize("n_folds", [1, 3])
def test_an_average_that_wins_on_validation_is_the_classifier(
    searched: Searched, run: Runner, n_folds: int
) -> None:
    search = searched([5.0, -5.0], n_folds)
    best_trial = search.scheduler.best(search.trials.snapshot().done)
    assert best_trial is not None
    soup = soup_of(search)
    assert soup is not None
    assert soup.kept
    assert sorted(soup.trials) == [0, 1]
    assert soup.val_accuracy is not None
    assert soup.val_accuracy.mid > accuracy(best_trial) + 1 / search.executor.validation.n
    assert soup.alone == best_trial.val_accuracy
    result = search.result()
    assert result.best.number == soup.trials[0]
    assert result.best.val_accuracy == soup.val_accuracy
    if n_folds == 1:
        hits = search.executor._score_images(
            ImageClassifier.load(run.folder.classifier()), search.executor.dataset.val
        )
        assert np.mean(hits) == soup.val_accuracy.mid
    run.folder.begin({"data": "striped"})
    lines = status_lines(run.folder, status_record(run.folder))
    assert any("weights of trials" in line and "averaged" in line for line in lines)


def test_averages_read_a_validation_image_once_at_most(
    searched: Searched, monkeypatch: pytest.MonkeyPatch, n_read: Counter[Path]
) -> None:
    search = searched([5.0, -5.0, 4.0])
    n_read.clear()
    n_scored: list[int] = []

    def score(network: Network, split: Split, *rest: Any) -> Scores:
        n_scored.append(len(split))
        return scores_of(network, split, *rest)

    monkeypatch.setattr("advisor.tune.soup.scores_of", score)
    assert soup_of(search) is not None
    assert len(n_scored) > 1
    assert max(n_read[p.path] for p in search.executor.dataset.val) <= 1


def test_a_training_run_that_is_a_soup_candidate_is_written_once(
    searched: Searched, run: Runner
) -> None:
    search = searched([5.0])
    pool = search.executor.soup_candidates
    assert pool is not None
    best, candidate = (f / WEIGHTS_FILE for f in (run.folder.classifier(), pool.path(0, 0)))
    assert best.stat().st_ino == candidate.stat().st_ino
    pool.clear()
    assert ImageClassifier.load(run.folder.classifier()).strategy == "full_fine_tune"


def test_an_average_that_loses_leaves_the_best_trial(searched: Searched, run: Runner) -> None:
    search = searched([5.0, 5.5])
    before = run.folder.best()
    soup = soup_of(search)
    assert soup is not None
    assert not soup.kept
    assert soup.reason
    assert run.folder.best() == before
    assert run.folder.averaged_trials() == ()


def test_without_time_the_best_trial_is_kept_and_no_image_is_read(
    searched: Searched, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = searched([5.0, -5.0])
    before = run.folder.best()
    search.executor.budget.deadline_s = time.monotonic()
    monkeypatch.setattr("advisor.tune.soup.scores_of", None)
    soup = soup_of(search)
    assert soup is not None
    assert not soup.kept
    assert soup.reason == NO_TIME
    assert run.folder.best() == before


def test_the_search_reserves_time_for_a_soup_once_there_may_be_two_training_runs(
    searched: Searched, run: Runner
) -> None:
    search = searched([5.0])
    budget, pool = search.executor.budget, search.executor.soup_candidates
    assert pool is not None
    assert pool.n_reserved((), search.executor.validation) == 0
    assert (
        budget.n_soup_images
        == pool.n_reserved(search.trials.snapshot().done, search.executor.validation)
        > 0
    )
    budget.deadline_s = time.monotonic() + 100
    assert budget.search_ends_s() < budget.soup_ends_s()
    budget.n_soup_images = 0
    assert budget.search_ends_s() == budget.soup_ends_s()


def test_a_run_killed_while_it_averages_averages_again(
    searched: Searched, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = searched([5.0, -5.0])
    with monkeypatch.context() as patch:
        kill_at(patch, Path, "rename", call=1, before=True)
        with pytest.raises(Killed):
            soup_of(search)
    assert run.folder.averaged_trials() == ()
    resumed = run.prepare(max_trials=2, only="full_fine_tune")
    soup = soup_of(resumed)
    assert soup is not None
    assert soup.kept
    assert soup_of(run.prepare(max_trials=2, only="full_fine_tune")) == soup


def test_after_the_search_phase_nothing_is_averaged(searched: Searched, run: Runner) -> None:
    search = searched([5.0, -5.0])
    run.folder.set_phase("judging", math.inf)
    assert soup_of(search) is None
    assert run.folder.averaged_trials() == ()


def test_with_one_of_two_candidates_damaged_there_is_no_soup(
    searched: Searched, run: Runner
) -> None:
    search = searched([5.0, -5.0])
    weights = run.folder.path / "soup_candidates" / "trial-1-fold-0" / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-100])
    assert soup_of(search) is None


def test_only_the_best_candidates_are_kept_and_all_are_deleted_at_the_end(
    searched: Searched, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("advisor.tune.run_dir.soup_candidates.MOST", 2)
    search = searched([8.0, 0.0, 8.0, 1.0])
    pool = SoupCandidates(run.folder, 1)
    candidates = pool.best(search.trials.snapshot().done)
    done = sorted(search.trials.snapshot().done, key=lambda r: (-accuracy(r), r.number))
    assert [r.number for r in candidates] == [r.number for r in done[:2]]
    pool.clear()
    assert not (run.folder.path / "soup_candidates").exists()
