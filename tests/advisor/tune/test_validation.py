"""How trials are scored: on validation, or by folds where chance would choose on it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from advisor.tune.validation import MAX_FOLDS, SMALL_VAL, Validation, make_validation, n_folds
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


def contender(strategy: str, seconds: float) -> Recommendation:
    whole = Interval(0.0, 0.5, 1.0)
    return Recommendation(strategy, "net", whole, Interval(1, seconds, 1e9), {}, ())


def no_ears(hits: object) -> None:
    """Hear of hits and do nothing."""


def test_every_image_is_judged_by_who_never_saw_it_and_none_twice(small_dataset: Dataset) -> None:
    folds = make_validation(small_dataset, MAX_FOLDS, 0).folds

    assert folds[0] == small_dataset
    judged = [p.path for fold in folds for p in fold.val]
    assert sorted(judged) == sorted(p.path for p in small_dataset.fit_split)
    for fold in folds:
        assert not {p.path for p in fold.train} & {p.path for p in fold.val}
        assert len(fold.fit_split) == len(small_dataset.fit_split)


def test_fewer_folds_are_the_first_of_all(small_dataset: Dataset) -> None:
    every = make_validation(small_dataset, MAX_FOLDS, 0).folds
    assert make_validation(small_dataset, 2, 0).folds == every[:2]
    assert make_validation(small_dataset, 1, 0).folds == (small_dataset,)


def test_images_of_one_group_are_judged_together(small_dataset: Dataset) -> None:
    train = tuple(replace(p, group=i // 2) for i, p in enumerate(small_dataset.train))
    folds = make_validation(replace(small_dataset, train=train), MAX_FOLDS, 0).folds[1:]
    for fold in folds:
        assert not {p.group for p in fold.val} & {p.group for p in fold.train if p in train}


def test_as_many_folds_as_there_is_time_for_three_training_runs(small_dataset: Dataset) -> None:
    race = (contender("linear_probe", 1.0), contender("full_fine_tune", 100.0))
    assert [n_folds(small_dataset, race, s) for s in (10, 650, 1e9)] == [1, 2, MAX_FOLDS]
    assert [n_folds(small_dataset, race[:1], s) for s in (0, 10)] == [1, MAX_FOLDS]


def test_a_val_split_that_suffices_or_was_given_stays_alone(small_dataset: Dataset) -> None:
    race = (contender("linear_probe", 1.0),)
    large = replace(small_dataset, val=small_dataset.val * SMALL_VAL)
    given = replace(small_dataset, listed={"train": (1, 1, 1), "val": (1, 1, 1)})
    assert [n_folds(t, race, 1e9) for t in (large, given)] == [1, 1]


def drawn(seed: int, n: int) -> tuple[Dataset, np.ndarray]:
    """A dataset whose images are rows of numbers: a fifth of them says something of the class."""
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


def nearest(x: np.ndarray, columns: int, train: Split, judged: Split) -> list[float]:
    """Which images lie nearest to the mean of their own class, by the first columns."""
    rows = np.array([int(str(p.path)) for p in train])
    means = np.stack([x[rows[labels_of(train) == c], :columns].mean(axis=0) for c in range(3)])
    asked = x[[int(str(p.path)) for p in judged], :columns]
    said = np.square(asked[:, None] - means).sum(axis=2).argmin(axis=1)
    return (said == labels_of(judged)).astype(float).tolist()


def accuracy(validation: Validation, x: np.ndarray, columns: int) -> float:
    """Score a rule that looks at so many columns as a search does."""
    learnt: list[Split] = []

    def fit(fold: Dataset, number: int, n_left: int) -> Any:
        learnt.append(fold.train)

    found = validation.score(
        fit, lambda _, split: nearest(x, columns, learnt[-1], split), no_ears, {}
    )
    return found[1].mid


def test_folds_choose_the_better_one_more_often_than_one_small_val() -> None:
    """Four columns are better than twenty, sixteen of which are noise: by 8 points in truth."""
    right = {1: 0.0, MAX_FOLDS: 0.0}
    for seed in range(100):
        dataset, x = drawn(seed, 60)
        for n in right:
            validation = make_validation(dataset, n, seed)
            good, bad = (accuracy(validation, x, columns) for columns in (4, 20))
            right[n] += 0.5 * (good == bad) + (good > bad)
    assert right[MAX_FOLDS] > right[1] + 10
    assert right[MAX_FOLDS] > 80


def test_a_fold_that_was_heard_of_is_not_fitted_again(small_dataset: Dataset) -> None:
    fitted: list[int] = []
    heard: dict[int, float] = {}

    def fit(fold: Dataset, number: int, n_left: int) -> Any:
        fitted.append(number)

    def judge(_: object, split: Split) -> list[float]:
        return [float(len(fitted) % 2)] * len(split)

    validation = make_validation(small_dataset, 3, 0)
    _, first = validation.score(fit, judge, heard.update, {})
    assert fitted == [2, 1, 0]
    _, again = validation.score(fit, judge, no_ears, heard)
    assert fitted == [2, 1, 0, 0]
    assert again.mid != first.mid  # the dataset itself is judged again: its classifier is needed


def test_a_search_by_folds_judges_every_trial_on_all_images(run: Runner) -> None:
    run.n_folds = MAX_FOLDS
    found = run(max_trials=1)
    assert found.best.val_accuracy is not None
    n = len(run.dataset.fit_split)
    assert found.best.val_accuracy.mid * n == pytest.approx(round(found.best.val_accuracy.mid * n))
    assert run.prepare().validation.n == n


def test_a_training_that_is_surely_worse_on_the_same_images_is_stopped_before_its_last_fold(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real networks: the second learns from labels that are shifted by one class."""
    run.n_folds = MAX_FOLDS
    fitted: list[int] = []

    def fit(
        self: FullFineTune, dataset: Dataset, backbone: Backbone, ctx: RunContext
    ) -> ImageClassifier:
        spoilt = len(fitted) >= MAX_FOLDS
        fitted.append(len(dataset.val))
        train = tuple(replace(p, label=(p.label + spoilt) % 3) for p in dataset.train)
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
