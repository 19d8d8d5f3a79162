"""Value of a pilot: the expected gain of deciding after it, from the definition."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from advisor.decide.candidates import DecisionInputs
from advisor.decide.gain_model import LogOdds
from advisor.decide.pilot_value import (
    COST_SHARE,
    MIN_VALUE,
    Forecast,
    forecasts_of,
    pilot_value,
    reason_against_pilot,
    value_of_information,
)
from advisor.decide.recommend import recommend
from advisor.measure.pilot import pilot_passes, pilot_seconds
from advisor.types.options import PilotMode
from advisor.types.profile import Profile
from strategies.registry import STRATEGIES
from strategies.training.lp_ft import PASSES_PER_STEP
from tests.advisor.profiles import (
    PASSES,
    inputs_of,
    pilot_of,
    priors_by_hand,
    profile_of,
    with_gains,
)

PRIORS = priors_by_hand()
UNSURE = with_gains(PRIORS, *(replace(m, sd=4 * m.sd) for m in PRIORS.gains.values()))
"""Priors by which a pilot may change much."""
NO_LIMIT = float("inf")
UNCERTAIN = profile_of(linear=0.7, svm=0.7, ms_per_image=1.0, passes_per_trained_image=4.0)
LONG = dict.fromkeys(PASSES, 1e6)
"""Costs of training runs of which a pilot is a small share."""


def known(mean: float, sd: float = 0.3) -> Forecast:
    """Return a forecast that the pilot does not change."""
    return Forecast(LogOdds(mean, sd), 0.0)


def tried(mean: float, shift: float, remaining: float = 0.3) -> Forecast:
    return Forecast(LogOdds(mean, math.hypot(shift, remaining)), shift)


def test_value_is_the_mean_of_the_best_minus_the_best_mean() -> None:
    rng = np.random.default_rng(0)
    outcome, error = rng.standard_normal((2, 400_000))
    after = expit(1.0 + 0.8 * outcome + 0.3 * error)
    certain = expit(1.1 + 0.3 * rng.standard_normal(400_000)).mean()
    chooses_tried = expit(1.0 + 0.8 * outcome) > expit(1.1)
    deciding_after = np.where(chooses_tried, after, certain).mean()
    expected = deciding_after - max(after.mean(), certain)
    found = value_of_information([known(1.1), tried(1.0, 0.8)])
    assert found == pytest.approx(expected, abs=2e-3)


def test_zero_where_one_strategy_surely_wins() -> None:
    assert value_of_information([known(0.0), tried(6.0, 0.5)]) < 1e-9
    assert value_of_information([known(6.0), tried(0.0, 0.5)]) < 1e-9
    assert value_of_information([tried(1.0, 0.8)]) == 0


def test_zero_where_the_pilot_tells_nothing() -> None:
    assert value_of_information([known(1.0, 0.9), known(1.1, 0.4)]) == 0


def test_zero_where_the_pilot_tells_the_same_about_all_strategies() -> None:
    assert value_of_information([tried(1.0, 0.5), tried(1.2, 0.5)]) == pytest.approx(0, abs=1e-12)


def test_grows_with_the_shift() -> None:
    values = [value_of_information([known(1.1), tried(1.0, s)]) for s in (0, 0.2, 0.5, 1.0)]
    assert values == sorted(values)
    assert values[0] == 0 < values[1]


@pytest.mark.parametrize("seed", range(20))
def test_never_negative(seed: int) -> None:
    rng = np.random.default_rng(seed)
    forecasts = [tried(*rng.normal(1, 1, 1), *rng.uniform(0, 1, 2)) for _ in range(5)]
    assert value_of_information(forecasts) >= 0


def test_a_shift_in_log_odds_is_worth_less_near_an_accuracy_of_one() -> None:
    low, high = ([known(m), tried(m, 0.5)] for m in (0.0, 4.0))
    assert value_of_information(high) < value_of_information(low) / 10


def shift_of(inputs: DecisionInputs, place: int) -> float:
    return forecasts_of(inputs, PRIORS)[place].shift


def test_forecasts_leave_out_the_control_and_strategies_that_do_not_apply() -> None:
    refused = {"partial_fine_tune": "no"}
    assert len(forecasts_of(inputs_of(UNCERTAIN), PRIORS)) == 4
    assert len(forecasts_of(inputs_of(UNCERTAIN, inapplicable=refused), PRIORS)) == 3


def test_more_images_make_a_pilot_tell_more_and_it_tells_nothing_about_the_probe() -> None:
    few, many = (inputs_of(n_per_class=n, linear=0.7, svm=0.7) for n in (4, 60))
    probe, svm, full = 0, 1, 3
    assert shift_of(few, full) < shift_of(many, full)
    assert shift_of(many, probe) == 0
    assert 0 < shift_of(many, svm) < shift_of(many, full)


def test_no_value_where_pilots_did_not_make_predictions_better() -> None:
    useless = {name: replace(trust, sd=9.0) for name, trust in PRIORS.pilot.items()}
    inputs = inputs_of(UNCERTAIN)
    assert pilot_value(inputs, replace(PRIORS, pilot=useless)) == 0
    assert pilot_value(inputs, replace(PRIORS, pilot={})) == 0
    assert pilot_value(inputs, PRIORS) > 0
    assert pilot_value(inputs, PRIORS) == pilot_value(inputs, PRIORS)


def reason_against(
    mode: PilotMode,
    profile: Profile = UNCERTAIN,
    seconds_left: float = NO_LIMIT,
    *,
    image_passes: Mapping[str, float] | None = LONG,
    inapplicable: Mapping[str, str] | None = None,
    forced: str | None = None,
) -> str | None:
    inputs = inputs_of(profile, image_passes=image_passes, inapplicable=inapplicable)
    decision = recommend(inputs, UNSURE, forced)
    return reason_against_pilot(mode, decision, inputs, UNSURE, seconds_left, forced)


def test_a_pilot_is_run_where_it_gains_enough_and_costs_little() -> None:
    assert pilot_value(inputs_of(UNCERTAIN, image_passes=LONG), UNSURE) >= MIN_VALUE
    assert reason_against("auto") is None


def test_the_reasons_suggest_a_pilot_only_where_it_is_worth_its_time() -> None:
    short = dict.fromkeys(PASSES, 1000.0)
    for passes, pilot, is_suggested in (
        (LONG, None, True),
        (short, None, False),
        (LONG, pilot_of(0.1), False),
    ):
        inputs = inputs_of(UNCERTAIN, image_passes=passes, pilot=pilot)
        best = recommend(inputs, UNSURE).recommendations[0]
        assert ("--pilot on would measure this" in " ".join(best.reasons)) == is_suggested


def test_no_pilot_where_it_gains_too_little() -> None:
    sure = profile_of(n_per_class=4000, linear=1.0, svm=1.0)
    assert pilot_value(inputs_of(sure), UNSURE) < MIN_VALUE
    assert "points by deciding better" in str(reason_against("auto", sure))
    assert reason_against("on", sure) is None


def test_no_pilot_where_it_costs_more_than_its_share_of_the_fit() -> None:
    enough = pilot_passes(UNCERTAIN, PASSES_PER_STEP) / COST_SHARE
    for passes, is_run in ((1.01 * enough, True), (0.99 * enough, False)):
        reason = reason_against("auto", image_passes=dict.fromkeys(PASSES, passes))
        assert (reason is None) == is_run
    assert reason is not None
    assert "0.3 times as long as the recommended fit" in reason
    assert "--pilot on" in reason


def test_the_load_of_the_machine_does_not_change_the_advice() -> None:
    busy = replace(UNCERTAIN, ms_per_image=100.0, passes_per_trained_image=9.0, build_s=30.0)
    assert pilot_seconds(busy) > pilot_seconds(UNCERTAIN)
    assert reason_against("auto", busy) is None
    short = dict.fromkeys(PASSES, 1000.0)
    quick, slow = (reason_against("auto", p, image_passes=short) for p in (UNCERTAIN, busy))
    assert quick is not None
    assert quick == slow


def test_no_pilot_where_it_and_the_fit_do_not_fit_before_the_deadline() -> None:
    assert "time left" in str(reason_against("auto", UNCERTAIN, 5.0))
    assert reason_against("on", UNCERTAIN, 5.0) is None


def test_no_pilot_where_the_strategy_is_given() -> None:
    assert "--strategy" in str(reason_against("auto", forced="full_fine_tune"))
    assert reason_against("on", forced="full_fine_tune") is None


def test_no_pilot_where_it_is_disabled_or_its_result_would_be_uncertain() -> None:
    assert "--pilot off" in str(reason_against("off"))
    assert "fewer than" in str(reason_against("on", replace(UNCERTAIN, n=20)))
    refused = {name: "no" for name, kind in STRATEGIES.items() if kind.trains_network}
    reason = reason_against("on", inapplicable=refused)
    assert "no strategy that trains the network" in str(reason)
