"""Scores of trials: on the validation split, or cross-validated if that is small."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from advisor.tune.trials.validation import (
    MAX_FOLDS,
    SMALL_VAL,
    Validation,
    make_validation,
    n_folds,
)
from advisor.types.advice import Recommendation
from strategies.core.context import RunContext
from strategies.core.metrics import Interval
from strategies.data.dataset import Dataset, Split, labels_of
from strategies.data.image import LabelledImage
from strategies.full_fine_tune import FullFineTune
from strategies.linear_probe import LinearProbe
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier
from tests.advisor.searching import Runner


def candidate(strategy: str, seconds: float) -> Recommendation:
    whole = Interval(0.0, 0.5, 1.0)
    return Recommendation(
        strategy, "net", whole, Interval(1, seconds, 1e9), {}, (), 1000.0, 9, 224
    )


def ignore_scores(hits: object) -> None:
    """Do nothing with the scores of a fold."""


def test_every_image_is_held_out_once_and_never_trained_on_then(small_dataset: Dataset) -> None:
    folds = make_validation(small_dataset, MAX_FOLDS, 0).folds

    assert folds[0] == small_dataset
    held_out = [p.path for fold in folds for p in fold.val]
    assert sorted(held_out) == sorted(p.path for p in small_dataset.fit_split)
    for fold in folds:
        assert not {p.path for p in fold.train} & {p.path for p in fold.val}
        assert len(fold.fit_split) == len(small_dataset.fit_split)


def test_fewer_folds_are_the_first_of_all_folds(small_dataset: Dataset) -> None:
    every = make_validation(small_dataset, MAX_FOLDS, 0).folds
    assert make_validation(small_dataset, 2, 0).folds == every[:2]
    assert make_validation(small_dataset, 1, 0).folds == (small_dataset,)


def test_images_of_one_group_are_in_the_same_fold(small_dataset: Dataset) -> None:
    train = tuple(replace(p, group=i // 2) for i, p in enumerate(small_dataset.train))
    folds = make_validation(replace(small_dataset, train=train), MAX_FOLDS, 0).folds[1:]
    for fold in folds:
        assert not {p.group for p in fold.val} & {p.group for p in fold.train if p in train}


def test_there_are_as_many_folds_as_there_is_time_for_with_three_training_runs(
    small_dataset: Dataset,
) -> None:
    candidates = (candidate("linear_probe", 1.0), candidate("full_fine_tune", 100.0))
    assert [n_folds(small_dataset, candidates, s) for s in (10, 650, 1e9)] == [1, 2, MAX_FOLDS]
    assert [n_folds(small_dataset, candidates[:1], s) for s in (0, 10)] == [1, MAX_FOLDS]


def test_a_validation_split_that_is_large_or_was_given_is_used_alone(
    small_dataset: Dataset,
) -> None:
    candidates = (candidate("linear_probe", 1.0),)
    large = replace(small_dataset, val=small_dataset.val * SMALL_VAL)
    given = replace(small_dataset, listed={"train": (1, 1, 1), "val": (1, 1, 1)})
    assert [n_folds(t, candidates, 1e9) for t in (large, given)] == [1, 1]


def drawn(seed: int, n: int) -> tuple[Dataset, np.ndarray]:
    """Return a dataset whose images are rows of 20 numbers; the first 3 depend on the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    x = rng.normal(size=(n, 20))
    x[:, :4] += 1.1 * np.eye(3, 4)[labels]
    images = tuple(
        LabelledImage(Path(str(i)), int(label), 8, 8, str(i)) for i, label in enumerate(labels)
    )
    n_val = n // 5
    dataset = Dataset("rows", Path(), ("a", "b", "c"), images[n_val:], images[:n_val], None, "")
    return dataset, x


def nearest_mean(x: np.ndarray, columns: int, train: Split, split: Split) -> list[float]:
    """Return for every image whether the nearest class mean, by the first columns, is its own."""
    in_train = np.array([int(str(p.path)) for p in train])
    means = np.stack([x[in_train[labels_of(train) == c], :columns].mean(axis=0) for c in range(3)])
    rows = x[[int(str(p.path)) for p in split], :columns]
    predicted = np.square(rows[:, None] - means).sum(axis=2).argmin(axis=1)
    return (predicted == labels_of(split)).astype(float).tolist()


def accuracy(validation: Validation, x: np.ndarray, columns: int) -> float:
    """Score a classifier of the first columns as a search scores a trial."""
    trained_on: list[Split] = []

    def fit(fold: Dataset, number: int, n_left: int) -> Any:
        trained_on.append(fold.train)

    found = validation.score(
        fit, lambda _, split: nearest_mean(x, columns, trained_on[-1], split), ignore_scores, {}
    )
    return found[1].mid


def test_cross_validation_selects_the_better_classifier_more_often_than_a_small_split() -> None:
    """Four columns are truly 8 points better than twenty, sixteen of which are noise."""
    n_correct = {1: 0.0, MAX_FOLDS: 0.0}
    for seed in range(100):
        dataset, x = drawn(seed, 60)
        for n in n_correct:
            validation = make_validation(dataset, n, seed)
            good, bad = (accuracy(validation, x, columns) for columns in (4, 20))
            n_correct[n] += 0.5 * (good == bad) + (good > bad)
    assert n_correct[MAX_FOLDS] > n_correct[1] + 10
    assert n_correct[MAX_FOLDS] > 80


def test_a_fold_with_known_scores_is_not_fitted_again(small_dataset: Dataset) -> None:
    fitted: list[int] = []
    known: dict[int, float] = {}

    def fit(fold: Dataset, number: int, n_left: int) -> Any:
        fitted.append(number)

    def score_images(_: object, split: Split) -> list[float]:
        return [float(len(fitted) % 2)] * len(split)

    validation = make_validation(small_dataset, 3, 0)
    _, first = validation.score(fit, score_images, known.update, {})
    assert fitted == [2, 1, 0]
    _, again = validation.score(fit, score_images, ignore_scores, known)
    assert fitted == [2, 1, 0, 0]
    assert again.mid != first.mid  # the dataset itself is fitted again: its classifier is needed


def test_a_cross_validated_search_scores_every_trial_on_all_images(run: Runner) -> None:
    run.n_folds = MAX_FOLDS
    found = run(max_trials=1)
    assert found.best.val_accuracy is not None
    n = len(run.dataset.fit_split)
    assert found.best.val_accuracy.mid * n == pytest.approx(round(found.best.val_accuracy.mid * n))
    assert run.prepare().executor.validation.n == n


def test_a_clearly_worse_training_run_is_pruned_before_its_last_fold(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real networks: the second is trained on labels that are shifted by one class."""
    run.n_folds = MAX_FOLDS
    fitted: list[int] = []

    def fit(
        self: FullFineTune, dataset: Dataset, backbone: Backbone, ctx: RunContext
    ) -> ImageClassifier:
        shift = len(fitted) >= MAX_FOLDS
        fitted.append(len(dataset.val))
        train = tuple(replace(p, label=(p.label + shift) % 3) for p in dataset.train)
        return LinearProbe(0.01, views=1).fit(replace(dataset, train=train), backbone, ctx)

    monkeypatch.setattr(FullFineTune, "fit", fit)
    good, bad = run(max_trials=2, only="full_fine_tune").trials
    assert good.val_accuracy is not None
    assert bad.val_accuracy is None
    assert "pruned: worse than the best trial on the same images" in str(bad.reason)
    pruned = run.study("full_fine_tune").trials[1]
    assert pruned.state == optuna.trial.TrialState.PRUNED
    assert 0 < len(pruned.intermediate_values) < len(run.dataset.fit_split)
    assert len(fitted) < 2 * MAX_FOLDS
    assert not list((run.folder.path / "checkpoints").iterdir())
