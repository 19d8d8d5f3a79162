"""Pilot: a fair, small comparison, run only if it can change the decision."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from advisor.decide.recommend import recommend
from advisor.measure import pilot as pilot_module
from advisor.measure.pilot import pilot_seconds, reason_against_pilot, run_pilot
from advisor.types.advice import Recommendation
from advisor.types.options import PilotMode
from advisor.types.profile import Profile
from strategies.core.context import RunContext
from strategies.core.errors import OutOfTime
from strategies.core.metrics import Interval
from strategies.core.progress import Reporter
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from strategies.registry import STRATEGIES
from tests.advisor.profiles import inputs_of, priors_by_hand, profile_of

NO_LIMIT = float("inf")


def reason_against(
    mode: PilotMode,
    profile: Profile,
    seconds_left: float,
    gmacs: float = 0.4,
    inapplicable: Mapping[str, str] | None = None,
) -> str | None:
    decision = recommend(inputs_of(profile, inapplicable=inapplicable), priors_by_hand())
    return reason_against_pilot(mode, decision, profile, gmacs, seconds_left)


ADVISED = Recommendation(
    "full_fine_tune",
    "network",
    Interval(0.8, 0.9, 1.0),
    Interval(1.0, 2.0, 3.0),
    {"lr": 1e-4},
    (),
    100.0,
    9,
)
QUICK = profile_of(linear=0.7, svm=0.7, ms_per_image=1.0, passes_per_trained_image=4.0)


def test_a_pilot_is_run_where_fine_tuning_may_win_and_the_pilot_is_cheap() -> None:
    assert reason_against("auto", QUICK, NO_LIMIT) is None
    assert reason_against("auto", QUICK, 600.0) is None


def test_no_pilot_where_it_exceeds_its_share_of_the_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pilot_module, "STEPS", 150)  # the default, which conftest.py reduces
    assert "share of the time" in str(reason_against("auto", QUICK, 5.0))
    slow = replace(QUICK, ms_per_image=100.0)
    assert pilot_seconds(slow) > pilot_seconds(QUICK)
    assert "--pilot on" in str(reason_against("auto", slow, 600.0))
    assert reason_against("on", slow, 600.0) is None


def test_without_a_time_limit_the_network_size_decides_and_not_the_load_of_the_machine() -> None:
    busy = replace(QUICK, ms_per_image=100.0, passes_per_trained_image=9.0, build_s=30.0)
    assert reason_against("auto", busy, NO_LIMIT) is None
    assert "too large" in str(reason_against("auto", QUICK, NO_LIMIT, gmacs=20.0))
    assert reason_against("on", QUICK, NO_LIMIT, gmacs=20.0) is None


def test_no_pilot_where_it_cannot_change_the_advice() -> None:
    certain = replace(QUICK, probes=profile_of(linear=1.0).probes)
    certain = replace(certain, best_svm=profile_of(svm=1.0).best_svm)
    assert "not expected" in str(reason_against("auto", certain, NO_LIMIT))


def test_no_pilot_where_it_is_disabled_or_its_result_would_be_uncertain() -> None:
    assert "--pilot off" in str(reason_against("off", QUICK, NO_LIMIT))
    assert "fewer than" in str(reason_against("on", replace(QUICK, n=20), NO_LIMIT))
    refused = {name: "no" for name, kind in STRATEGIES.items() if kind.trains_network}
    reason = reason_against("on", QUICK, NO_LIMIT, inapplicable=refused)
    assert "no strategy that trains the network" in str(reason)


def test_all_strategies_are_trained_on_the_same_images_and_evaluated_on_others(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pilot_module, "STEPS", 2)
    monkeypatch.setattr(pilot_module, "FEWEST", 10)
    monkeypatch.setattr(pilot_module, "MAX_INPUT_PX", 32)
    dataset = small_dataset.hide_test()
    train, evaluated = pilot_module._halves(dataset, seed=0)
    assert not {p.path for p in train} & {p.path for p in evaluated}
    assert {p.label for p in train} == {0, 1, 2}
    epochs: list[int] = []
    reporter = Reporter(on_epoch=lambda epoch, accuracy: epochs.append(epoch))
    counting = replace(ctx, reporter=reporter)
    pilot = run_pilot(dataset, backbone, counting, ADVISED, any_size=True)
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
        run_pilot(dataset, backbone, late, ADVISED, any_size=True)


def test_with_too_few_images_there_is_no_pilot(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    few = replace(small_dataset.hide_test(), train=small_dataset.train[:9], val=())
    assert run_pilot(few, backbone, ctx, ADVISED, any_size=True) is None


def test_there_is_no_pilot_if_nearly_every_class_has_a_single_image(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pilot_module, "FEWEST", 3)
    one_each = {p.label: p for p in small_dataset.train}
    singles = replace(small_dataset.hide_test(), train=tuple(one_each.values()), val=())
    assert run_pilot(singles, backbone, ctx, ADVISED, any_size=True) is None
