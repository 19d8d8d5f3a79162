"""The chance that training from scratch beats a strategy."""

from dataclasses import replace

import pytest

from advisor.decide.negative_transfer import is_at_chance, transfer_risks
from advisor.decide.priors import Priors, Variant
from advisor.types.advice import FARTHEST
from advisor.types.profile import Profile
from strategies.core.metrics import Interval
from tests.advisor.profiles import priors_by_hand, profile_of, variant_of

PRIORS = priors_by_hand()


def with_scratch(intercept: float, sd: float = 0.5) -> Priors:
    """Priors in which training from scratch gains so many log-odds over a probe, whatever else."""
    scratch = replace(variant_of("from_scratch", intercept), sd=sd)
    scratch = replace(scratch, weights=dict.fromkeys(scratch.weights, 0.0))
    others = tuple(v for v in PRIORS.variants if v.strategy != "from_scratch")
    return replace(PRIORS, variants=(*others, scratch))


def chances(profile: Profile, priors: Priors) -> dict[str, float]:
    return {r.strategy: r.probability for r in transfer_risks(profile, priors)}


def test_every_strategy_that_transfers_has_a_chance() -> None:
    found = chances(profile_of(), PRIORS)
    assert list(found) == ["linear_probe", "layer_svm", "partial_fine_tune", "full_fine_tune"]
    assert all(0 <= p <= 1 for p in found.values())


def test_the_chance_is_a_half_where_neither_is_expected_to_win() -> None:
    assert chances(profile_of(), with_scratch(0.0))["linear_probe"] == pytest.approx(0.5)


def test_it_grows_with_what_scratch_is_expected_to_gain_and_its_gain_is_the_other_way_round() -> (
    None
):
    risks = [transfer_risks(profile_of(), with_scratch(g))[0] for g in (-2.0, -0.5, 0.5, 2.0)]
    assert [r.probability for r in risks] == sorted(r.probability for r in risks)
    assert [r.gain.mid for r in risks] == sorted((r.gain.mid for r in risks), reverse=True)
    assert risks[0].probability < 0.01 < 0.99 < risks[-1].probability
    assert risks[0].gain.mid > 0 > risks[-1].gain.mid


def test_what_is_hardly_known_is_neither_sure_to_help_nor_to_harm() -> None:
    sure, unsure = (chances(profile_of(), with_scratch(-1.0, sd)) for sd in (0.1, 3.0))
    assert sure["linear_probe"] < 0.001
    assert 0.3 < unsure["linear_probe"] < 0.5


def test_a_depth_that_beats_the_probe_is_less_at_risk_than_the_probe() -> None:
    found = chances(profile_of(linear=0.6, svm=0.8), with_scratch(0.5))
    assert found["layer_svm"] < found["linear_probe"]


def test_a_probe_can_lose_where_fine_tuning_does_not() -> None:
    tuned = Variant("full_fine_tune", {}, 2.0, PRIORS.variants[0].weights, 0.3, 0.2, 0.3, 0.3, 12)
    priors = with_scratch(1.0)
    priors = replace(priors, variants=(*priors.variants, tuned))
    found = chances(profile_of(), priors)
    assert found["linear_probe"] > 0.9
    assert found["full_fine_tune"] < 0.5


def test_nothing_is_said_where_nothing_is_known_of_scratch_or_it_does_not_apply() -> None:
    unknown = tuple(v for v in PRIORS.variants if v.strategy != "from_scratch")
    assert transfer_risks(profile_of(), replace(PRIORS, variants=unknown)) == ()
    hardly = tuple(replace(v, cases=1) for v in PRIORS.variants)
    assert transfer_risks(profile_of(), replace(PRIORS, variants=hardly)) == ()
    assert transfer_risks(profile_of(inapplicable={"from_scratch": "no validation"}), PRIORS) == ()
    assert "layer_svm" not in chances(profile_of(inapplicable={"layer_svm": "x"}), PRIORS)


def test_a_probe_says_nothing_at_the_share_of_the_largest_class_only() -> None:
    assert is_at_chance(profile_of(linear=0.1, svm=0.1))
    assert not is_at_chance(profile_of(linear=0.3, svm=0.3))
    few = profile_of(linear=0.55, svm=0.55, n_classes=2, majority_share=0.5)
    wide = replace(few.probes[0], accuracy=Interval(0.3, 0.55, 0.8))
    assert not is_at_chance(replace(few, probes=(wide, *few.probes[1:])))


def growing(slope: float, drift: float = 0.1) -> Priors:
    """Priors in which scratch loses to the probe where sizes are usual, and gains with them."""
    scratch = replace(with_scratch(-4.0, 0.2).variants[-1], drift=drift)
    scratch = replace(scratch, weights={**scratch.weights, "size": slope})
    return replace(PRIORS, variants=(*with_scratch(0.0).variants[:-1], scratch))


def caught_up(profile: Profile, priors: Priors) -> Interval | None:
    return transfer_risks(profile, priors)[0].break_even_n_per_class


def test_scratch_catches_up_the_sooner_the_more_it_gains_by_images() -> None:
    profile = profile_of()
    found = [caught_up(profile, growing(slope)) for slope in (0.7, 1.0, 1.5)]
    assert all(f is not None for f in found)
    mids = [f.mid for f in found if f is not None]
    assert mids == sorted(mids, reverse=True)
    for f in found:
        assert f is not None
        assert profile.n_per_class <= f.low <= f.mid <= f.high <= FARTHEST


def test_a_line_that_may_bend_is_sure_of_its_crossing_less() -> None:
    sure, unsure = (caught_up(profile_of(), growing(1.0, drift)) for drift in (0.01, 1.0))
    assert sure is not None
    assert unsure is not None
    assert unsure.high / unsure.low > 1.5 * sure.high / sure.low


def test_nothing_crosses_where_scratch_has_won_or_gains_nothing_by_images() -> None:
    assert caught_up(profile_of(), growing(0.0)) is None
    assert caught_up(profile_of(), with_scratch(2.0)) is None
