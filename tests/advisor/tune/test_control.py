"""Control of the best trial: random-init probe or from scratch, within its share of the time."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from advisor.tune.control import (
    MIN_TEST_IMAGES,
    Control,
    evaluate_with_control,
    fit_control,
)
from advisor.tune.time_budget import SAFETY_FACTOR
from advisor.types.outcome import TrialRecord
from strategies.core.context import RunContext
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset
from strategies.linear_probe import LinearProbe
from strategies.models.backbone import Backbone
from strategies.models.classifier import ImageClassifier, evaluate


def best(strategy: str, **hyperparameters: object) -> TrialRecord:
    return TrialRecord(0, strategy, hyperparameters, None, 1.0, None)


def test_a_probe_is_compared_with_the_same_probe_on_random_weights(
    backbone: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    found = fit_control(best("linear_probe", strength=1e-3, views=1), small_dataset, backbone, ctx)

    assert found is not None
    assert found.name == "linear_probe on random weights"
    assert found.classifier.hyperparameters["views"] == 1
    pretrained = LinearProbe(views=1).fit(small_dataset, backbone, ctx).network.body.state_dict()
    own = found.classifier.network.body.state_dict()
    assert any(not np.array_equal(own[k], pretrained[k]) for k in pretrained)


def test_a_training_run_is_compared_with_one_from_scratch_on_the_same_images(
    backbone: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    soon = ctx.with_deadline(time.monotonic() + 3)
    found = fit_control(best("full_fine_tune", lr=1e-3), small_dataset, backbone, soon)

    assert found is not None
    assert found.name == "from_scratch"
    chosen: ImageClassifier = LinearProbe(views=1).fit(small_dataset, backbone, ctx)
    judged = evaluate_with_control(chosen, found, small_dataset.val, ctx, 0.0)
    evaluation, gain = judged.evaluation, judged.gain
    control = evaluate(found.classifier, small_dataset.val)
    assert evaluation == evaluate(chosen, small_dataset.val)
    assert gain is not None
    assert gain.gain.mid == pytest.approx(evaluation.accuracy.mid - control.accuracy.mid)


def test_a_control_without_time_is_left_out_with_a_note(
    backbone: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    notes: list[str] = []
    late = replace(ctx, deadline_s=time.monotonic() - 1, reporter=Reporter(on_note=notes.append))

    assert fit_control(best("full_fine_tune", lr=1e-3), small_dataset, backbone, late) is None
    assert "left out" in notes[0]
    chosen = Control(
        "itself", "linear_probe", LinearProbe(views=1).fit(small_dataset, backbone, ctx)
    )
    assert evaluate_with_control(chosen.classifier, None, small_dataset.val, ctx, 0.0).gain is None


def test_without_time_the_control_is_not_evaluated_but_the_classifier_is(
    backbone: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    notes: list[str] = []
    chosen = LinearProbe(views=1).fit(small_dataset, backbone, ctx)
    late = replace(ctx, deadline_s=time.monotonic(), reporter=Reporter(on_note=notes.append))

    judged = evaluate_with_control(
        chosen, Control("itself", "linear_probe", chosen), small_dataset.val, late, 0.0
    )
    evaluation, gain = judged.evaluation, judged.gain

    assert evaluation.n == len(small_dataset.val)
    assert gain is None
    assert "not evaluated" in notes[0]


def test_with_half_the_time_the_control_is_evaluated_on_a_sample_of_the_images(
    small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, notes = [0.0], list[str]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    chosen = cast(ImageClassifier, _Slow(small_dataset.classes, now))
    soon = replace(ctx, deadline_s=150.0, reporter=Reporter(on_note=notes.append))
    hundred = (small_dataset.val * 100)[:100]

    judged = evaluate_with_control(
        chosen, Control("itself", "linear_probe", chosen), hundred, soon, 1.0
    )
    evaluation, gain = judged.evaluation, judged.gain

    assert evaluation.n == 100
    assert gain is not None
    assert gain.n == int(50 / SAFETY_FACTOR)
    assert gain.gain.mid == 0
    assert now[0] < 150
    assert f"on {gain.n} of 100" in notes[0]


def test_without_time_for_all_test_images_the_classifier_is_evaluated_on_a_sample(
    small_dataset: Dataset, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, notes = [0.0], list[str]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    chosen = cast(ImageClassifier, _Slow(small_dataset.classes, now))
    hundred = (small_dataset.val * 100)[:100]

    def n_evaluated(deadline_s: float) -> int:
        now[0] = 0.0
        soon = replace(ctx, deadline_s=deadline_s, reporter=Reporter(on_note=notes.append))
        return evaluate_with_control(chosen, None, hundred, soon, 1.0).evaluation.n

    assert n_evaluated(60.0) == 60
    assert "evaluated on 60 of 100 test images" in notes[0]
    assert n_evaluated(0.0) == MIN_TEST_IMAGES
    assert n_evaluated(100.0) == 100


def test_a_probe_on_a_part_of_the_images_has_no_control(
    backbone: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    notes: list[str] = []
    noted = replace(ctx, reporter=Reporter(on_note=notes.append))
    partial = replace(best("linear_probe"), n_train=5)

    assert fit_control(partial, small_dataset, backbone, noted) is None
    assert "too short" in notes[0]


class _Slow:
    """A classifier that takes a second per image and always predicts the first class."""

    def __init__(self, classes: tuple[str, ...], now: list[float]) -> None:
        self.classes, self.now = classes, now

    def predict_proba(self, paths: Sequence[Path], **_: object) -> NDArray[np.float32]:
        self.now[0] += len(paths)
        return np.eye(len(self.classes), dtype=np.float32)[np.zeros(len(paths), dtype=int)]


def test_without_time_for_random_features_a_probe_is_compared_with_a_network_from_scratch(
    backbone: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    """Six views of many images: there is no time to compute their features."""
    many = replace(small_dataset, train=small_dataset.train * 500)
    soon = ctx.with_deadline(time.monotonic() + 3)
    found = fit_control(best("linear_probe", views=6), many, backbone, soon)
    assert found is not None
    assert found.name == "from_scratch"


@pytest.mark.parametrize("strategy", ["full_fine_tune", "linear_probe"])
def test_a_control_ends_within_its_share_of_the_time(
    backbone: Backbone, small_dataset: Dataset, ctx: RunContext, strategy: str
) -> None:
    share_s = 2.0
    start = time.monotonic()
    with_share = ctx.with_deadline(start + share_s)

    fit_control(best(strategy), small_dataset, backbone, with_share)

    assert time.monotonic() - start < 4 * share_s  # a complete training run takes far longer


def test_the_control_of_a_probe_is_left_out_without_time(
    backbone: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    late = ctx.with_deadline(time.monotonic() - 1)
    assert fit_control(best("linear_probe"), small_dataset, backbone, late) is None


def test_a_network_trained_from_scratch_has_no_control(
    backbone: Backbone, small_dataset: Dataset, ctx: RunContext
) -> None:
    notes: list[str] = []
    with_notes = replace(ctx, reporter=Reporter(on_note=notes.append))
    assert fit_control(best("from_scratch"), small_dataset, backbone, with_notes) is None
    assert "no transfer" in notes[0]
