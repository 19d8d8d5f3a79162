"""Predicted seconds of a strategy's first fit."""

import math
from dataclasses import replace

import pytest

from advisor.decide.cost import first_baseline_s, fit_seconds, raw_seconds
from advisor.decide.priors import Offset
from strategies.registry import STRATEGIES, baseline
from strategies.training.lp_ft import PASSES_PER_STEP
from tests.advisor.profiles import BENCHMARKED, inputs_of, priors_by_hand

PRIORS = priors_by_hand()


def test_seconds_are_measured_rates_times_the_correction_from_benchmarks() -> None:
    inputs = inputs_of(passes_per_trained_image=PASSES_PER_STEP, build_s=1.0)
    profile, full = inputs.profile, inputs.candidate("full_fine_tune")
    raw = raw_seconds(full, profile)
    assert raw == pytest.approx(1.0 + 1.0 + 15_000 * 0.01)
    underestimated = replace(PRIORS, cost={**PRIORS.cost, "full_fine_tune": Offset(0.5, 0.1, 9)})
    found = fit_seconds(full, profile, underestimated)
    assert found.mid == pytest.approx(raw * 1.6487, rel=1e-3)
    assert found.high / found.mid == pytest.approx(found.mid / found.low)
    assert found.high < fit_seconds(full, profile, PRIORS).high * 1.6487


def test_seconds_on_smaller_inputs_are_corrected_by_octave() -> None:
    inputs = inputs_of(input_px=224)
    full = inputs.candidate("full_fine_tune")
    half = replace(full, strategy=full.strategy.with_input_px(112))
    cost = {**PRIORS.cost, "full_fine_tune": Offset(0.0, 0.1, 9, per_octave=-0.5)}
    priors = replace(PRIORS, cost=cost)
    own, small = (fit_seconds(c, inputs.profile, priors).mid for c in (full, half))
    assert small == pytest.approx(own * math.exp(-0.5))


@pytest.mark.parametrize("name", BENCHMARKED)
def test_the_interval_is_wider_if_training_was_not_timed(name: str) -> None:
    known = (inputs_of(passes_per_trained_image=p) for p in (None, 6.0))
    untimed, timed = (fit_seconds(i.candidate(name), i.profile, PRIORS) for i in known)
    spreads = [s.high / s.low for s in (untimed, timed)]
    if STRATEGIES[name].trains_network:
        assert spreads[0] > spreads[1]
    else:
        assert spreads[0] == spreads[1]


def test_the_first_baseline_computes_missing_features_and_fits_its_head_twice() -> None:
    profile = inputs_of(ms_per_image=10.0).profile
    loss = baseline().head_loss
    assert loss is not None
    profile = replace(profile, n=1000, n_measured=700, head_s={loss: 0.5})
    assert first_baseline_s(profile) == pytest.approx(300 * 0.01 + 2 * 0.5)
    assert first_baseline_s(replace(profile, n_measured=1000)) == pytest.approx(1.0)
