"""Probability that training from scratch beats a strategy."""

from dataclasses import replace

import pytest

from advisor.decide.candidates import DecisionInputs
from advisor.decide.chance import is_at_chance
from advisor.decide.negative_transfer import transfer_risks
from advisor.decide.priors import GainModel, Priors
from advisor.types.advice import MAX_BREAK_EVEN_N_PER_CLASS
from strategies.core.metrics import Interval
from tests.advisor.profiles import (
    NO_WEIGHTS,
    inputs_of,
    model_of,
    priors_by_hand,
    profile_of,
    with_gains,
)

PRIORS = priors_by_hand()


def with_scratch(intercept: float, sd: float = 0.5) -> Priors:
    """Priors in which training from scratch has a fixed gain over a probe, in log-odds."""
    scratch = model_of("from_scratch", intercept, sd=sd, weights=NO_WEIGHTS)
    return with_gains(PRIORS, scratch)


def probabilities(inputs: DecisionInputs, priors: Priors) -> dict[str, float]:
    return {r.strategy: r.probability for r in transfer_risks(inputs, priors)}


def test_every_strategy_that_transfers_has_a_probability() -> None:
    found = probabilities(inputs_of(), PRIORS)
    assert list(found) == ["linear_probe", "layer_svm", "partial_fine_tune", "full_fine_tune"]
    assert all(0 <= p <= 1 for p in found.values())


def test_the_probability_is_one_half_where_both_gains_are_equal() -> None:
    assert probabilities(inputs_of(), with_scratch(0.0))["linear_probe"] == pytest.approx(0.5)


def test_a_larger_gain_of_scratch_raises_the_probability_and_lowers_the_transfer_gain() -> None:
    risks = [transfer_risks(inputs_of(), with_scratch(g))[0] for g in (-2.0, -0.5, 0.5, 2.0)]
    assert [r.probability for r in risks] == sorted(r.probability for r in risks)
    assert [r.gain.mid for r in risks] == sorted((r.gain.mid for r in risks), reverse=True)
    assert risks[0].probability < 0.01 < 0.99 < risks[-1].probability
    assert risks[0].gain.mid > 0 > risks[-1].gain.mid


def test_an_uncertain_gain_of_scratch_keeps_the_probability_away_from_zero_and_one() -> None:
    certain, uncertain = (probabilities(inputs_of(), with_scratch(-1.0, sd)) for sd in (0.1, 3.0))
    assert certain["linear_probe"] < 0.001
    assert 0.3 < uncertain["linear_probe"] < 0.5


def test_a_depth_that_beats_the_probe_is_less_at_risk_than_the_probe() -> None:
    found = probabilities(inputs_of(linear=0.6, svm=0.8), with_scratch(0.5))
    assert found["layer_svm"] < found["linear_probe"]


def test_a_probe_can_lose_where_fine_tuning_does_not() -> None:
    tuned = GainModel("full_fine_tune", 2.0, NO_WEIGHTS, 0.3, 0.2, 0.3, 0.3, 12)
    priors = with_gains(with_scratch(1.0), tuned)
    found = probabilities(inputs_of(), priors)
    assert found["linear_probe"] > 0.9
    assert found["full_fine_tune"] < 0.5


def test_there_are_no_risks_if_scratch_has_too_few_cases_or_does_not_apply() -> None:
    unknown = {n: model for n, model in PRIORS.gains.items() if n != "from_scratch"}
    assert transfer_risks(inputs_of(), replace(PRIORS, gains=unknown)) == ()
    too_few = {n: replace(model, cases=1) for n, model in PRIORS.gains.items()}
    assert transfer_risks(inputs_of(), replace(PRIORS, gains=too_few)) == ()
    assert transfer_risks(inputs_of(inapplicable={"from_scratch": "no validation"}), PRIORS) == ()
    assert "layer_svm" not in probabilities(inputs_of(inapplicable={"layer_svm": "x"}), PRIORS)


def test_a_probe_is_at_chance_only_near_the_share_of_the_largest_class() -> None:
    assert is_at_chance(profile_of(linear=0.1, svm=0.1))
    assert not is_at_chance(profile_of(linear=0.3, svm=0.3))
    few = profile_of(linear=0.55, svm=0.55, n_classes=2, majority_share=0.5)
    wide = replace(few.probes[0], accuracy=Interval(0.3, 0.55, 0.8))
    assert not is_at_chance(replace(few, probes=(wide, *few.probes[1:])))


def with_growing_scratch(slope: float, drift: float = 0.1) -> Priors:
    """Priors in which scratch loses at the mean size, and gains `slope` per standard deviation."""
    weights = {**NO_WEIGHTS, "size": slope}
    scratch = model_of("from_scratch", -4.0, sd=0.2, drift=drift, weights=weights)
    return with_gains(PRIORS, scratch)


def break_even(inputs: DecisionInputs, priors: Priors) -> Interval | None:
    return transfer_risks(inputs, priors)[0].break_even_n_per_class


def test_scratch_breaks_even_earlier_if_it_gains_more_from_images() -> None:
    inputs = inputs_of()
    found = [break_even(inputs, with_growing_scratch(slope)) for slope in (0.7, 1.0, 1.5)]
    assert all(f is not None for f in found)
    mids = [f.mid for f in found if f is not None]
    assert mids == sorted(mids, reverse=True)
    for f in found:
        assert f is not None
        assert inputs.profile.n_per_class <= f.low <= f.mid <= f.high <= MAX_BREAK_EVEN_N_PER_CLASS


def test_a_larger_drift_widens_the_break_even_interval() -> None:
    sure, unsure = (
        break_even(inputs_of(), with_growing_scratch(1.0, drift)) for drift in (0.01, 1.0)
    )
    assert sure is not None
    assert unsure is not None
    assert unsure.high / unsure.low > 1.5 * sure.high / sure.low


def test_there_is_no_break_even_if_scratch_wins_already_or_gains_nothing_from_images() -> None:
    assert break_even(inputs_of(), with_growing_scratch(0.0)) is None
    assert break_even(inputs_of(), with_scratch(2.0)) is None
