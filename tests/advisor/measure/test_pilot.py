"""Pilot: a fair, small comparison."""

from dataclasses import replace
from typing import Any

import pytest

from advisor.measure import pilot as pilot_module
from advisor.measure.pilot import run_pilot
from advisor.types.advice import Recommendation
from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime
from strategies.core.metrics import Interval
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.models.features import extract_features
from strategies.registry import baseline, fits_head, get_strategy

ADVISED = Recommendation(
    "full_fine_tune",
    "network",
    Interval(0.8, 0.9, 1.0),
    Interval(1.0, 2.0, 3.0),
    {"lr": 1e-4},
    (),
    100.0,
    9,
    224,
)


def test_all_strategies_are_trained_on_the_same_images_and_evaluated_on_others(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pilot_module, "STEPS", 2)
    monkeypatch.setattr(pilot_module, "FEWEST", 10)
    dataset = small_dataset.hide_test()
    train, evaluated = pilot_module._halves(dataset, seed=0)
    assert not {p.path for p in train} & {p.path for p in evaluated}
    assert {p.label for p in train} == {0, 1, 2}
    epochs: list[int] = []
    reporter = Reporter(on_epoch=lambda epoch, accuracy: epochs.append(epoch))
    counting = replace(ctx, reporter=reporter)
    pilot = run_pilot(dataset, backbone, counting, ADVISED)
    assert pilot is not None
    assert (pilot.n_train, pilot.n_judged) == (len(train), len(evaluated))
    assert pilot.hyperparameters == {"lr": 1e-4, "steps": 2}
    assert pilot.gain.low <= pilot.gain.mid <= pilot.gain.high
    assert -1 <= pilot.svm_gain.low <= pilot.svm_gain.high <= 1
    for gain in (pilot.loss_gain, pilot.svm_loss_gain):
        assert gain.low <= gain.mid <= gain.high
    assert epochs == []
    late = ctx.with_deadline(0.0)
    with pytest.raises(OutOfTime):
        run_pilot(dataset, backbone, late, ADVISED)


def test_with_too_few_images_there_is_no_pilot(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    few = replace(small_dataset.hide_test(), train=small_dataset.train[:9], val=())
    assert run_pilot(few, backbone, ctx, ADVISED) is None


def test_there_is_no_pilot_if_nearly_every_class_has_a_single_image(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pilot_module, "FEWEST", 3)
    one_each = {p.label: p for p in small_dataset.train}
    singles = replace(small_dataset.hide_test(), train=tuple(one_each.values()), val=())
    assert run_pilot(singles, backbone, ctx, ADVISED) is None


def test_probe_and_svm_are_evaluated_on_features_as_on_the_images(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = small_dataset.train
    extract_features(images, backbone, ctx)
    svm = fits_head("squared_hinge")().fit(small_dataset, backbone, ctx)
    on_images = svm.predict_proba([image.path for image in images])
    found = pilot_module._head_probabilities(svm, images, ctx)
    assert found == pytest.approx(on_images, abs=0.02)
    probe = baseline()().fit(small_dataset, backbone, ctx)
    on_images = probe.predict_proba([image.path for image in images])

    def read(path: object) -> None:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr("strategies.models.features.read_image", read)
    found = pilot_module._head_probabilities(probe, images, ctx)
    assert found == pytest.approx(on_images, abs=0.02)


def test_the_pilot_runs_at_the_input_size_of_the_fit(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pilot_module, "STEPS", 1)
    monkeypatch.setattr(pilot_module, "FEWEST", 10)
    sizes: list[int] = []
    for strategy in (baseline(), fits_head("squared_hinge"), get_strategy(ADVISED.strategy)):
        fit = strategy.fit

        def recorded(self: Any, data: Any, network: Any, ctx: Any, fit: Any = fit) -> Any:
            found = fit(self, data, network, ctx)
            sizes.append(found.backbone.input_px)
            return found

        monkeypatch.setattr(strategy, "fit", recorded)
    px = backbone.input_px
    advised = replace(ADVISED, hyperparameters={"lr": 1e-4, "input_px": px})
    run_pilot(small_dataset.hide_test(), backbone, ctx, advised)
    assert sizes == [px, px, px]


def test_a_pilot_of_a_fit_with_a_large_batch_takes_the_usual_one_and_its_rate() -> None:
    settings = {"lr": 1e-3, "batch_size": 128, "steps": 625, "hflip": True}
    used = pilot_module._pilot_hyperparameters(replace(ADVISED, hyperparameters=settings))
    assert used == {"lr": 5e-4, "steps": pilot_module.STEPS, "hflip": True}
