"""The decision, from profiles made by hand."""

from itertools import pairwise

import numpy as np
import pytest

from advisor.priors import load_priors
from advisor.quadrant import RULES, SIMILAR_FROM
from advisor.recommend import NOISE, place, recommend
from advisor.types import Domain, Profile, Recommendation, Size
from strategies.core.errors import NotApplicable
from strategies.registry import STRATEGIES, get_strategy
from tests.advisor.profiles import profile_of

PRIORS = load_priors()


def by_name(profile: Profile) -> dict[str, Recommendation]:
    decision = recommend(profile, PRIORS)
    return {r.strategy: r for r in decision.recommendations}


def test_every_strategy_that_applies_is_ranked_once() -> None:
    decision = recommend(profile_of(), PRIORS)
    assert sorted(r.strategy for r in decision.recommendations) == sorted(STRATEGIES)
    assert decision.rejections == ()


def test_a_strategy_that_does_not_apply_is_rejected_with_its_reason() -> None:
    decision = recommend(profile_of(why_not={"layer_svm": "no depths"}), PRIORS)
    assert "layer_svm" not in {r.strategy for r in decision.recommendations}
    assert [(r.strategy, r.reason) for r in decision.rejections] == [("layer_svm", "no depths")]


def test_forcing_what_does_not_apply_is_refused() -> None:
    with pytest.raises(NotApplicable, match="no depths"):
        recommend(profile_of(why_not={"layer_svm": "no depths"}), PRIORS, "layer_svm")


def test_a_forced_strategy_stands_first_and_says_so() -> None:
    decision = recommend(profile_of(), PRIORS, "from_scratch")
    assert decision.recommendations[0].strategy == "from_scratch"
    assert any("--strategy" in reason for reason in decision.recommendations[0].reasons)


def test_a_perfect_probe_is_never_beaten_by_a_dearer_strategy() -> None:
    decision = recommend(profile_of(linear=1.0, svm=1.0), PRIORS)
    assert decision.recommendations[0].strategy in ("linear_probe", "layer_svm")


def test_equals_go_to_the_cheaper() -> None:
    profile = profile_of(similarity=1.0, linear=0.985, svm=0.98)
    assert recommend(profile, PRIORS).recommendations[0].strategy == "linear_probe"


def test_an_earlier_depth_that_is_clearly_better_wins_over_the_probe() -> None:
    ranked = [
        r.strategy for r in recommend(profile_of(linear=0.7, svm=0.9), PRIORS).recommendations
    ]
    assert ranked.index("layer_svm") < ranked.index("linear_probe")


def test_a_poor_probe_far_from_imagenet_calls_for_fine_tuning() -> None:
    best = recommend(profile_of(similarity=0.0, linear=0.5, svm=0.5), PRIORS).recommendations[0]
    assert best.strategy in ("partial_fine_tune", "full_fine_tune")


def test_fine_tuning_is_predicted_to_gain_no_less_the_farther_the_domain() -> None:
    gains = [
        by_name(profile_of(similarity=s))["full_fine_tune"].accuracy.mid
        for s in np.linspace(1, 0, 11)
    ]
    assert all(later >= earlier for earlier, later in pairwise(gains))


def test_a_better_probe_never_lowers_any_prediction() -> None:
    worse, better = by_name(profile_of(linear=0.6)), by_name(profile_of(linear=0.8))
    for name in ("linear_probe", "partial_fine_tune", "full_fine_tune", "from_scratch"):
        assert better[name].accuracy.mid >= worse[name].accuracy.mid


def test_an_unknown_domain_widens_what_is_predicted() -> None:
    def width(r: Recommendation) -> float:
        return r.accuracy.high - r.accuracy.low

    known = by_name(profile_of(similarity=0.5, linear=0.6))["full_fine_tune"]
    unknown = by_name(profile_of(similarity=None, linear=0.6))["full_fine_tune"]
    assert width(unknown) > width(known)


def test_predictions_stay_between_guessing_and_certainty() -> None:
    for linear in (0.1, 0.5, 1.0):
        for r in by_name(profile_of(linear=linear, svm=linear, similarity=0.0)).values():
            assert 0 <= r.accuracy.low <= r.accuracy.mid <= r.accuracy.high <= 1


def test_cost_follows_the_forward_passes() -> None:
    slow = by_name(profile_of(ms_per_image=100.0))
    fast = by_name(profile_of(ms_per_image=10.0))
    for name in STRATEGIES:
        assert slow[name].seconds.mid > fast[name].seconds.mid


def test_small_steps_near_imagenet_and_large_ones_far_from_it() -> None:
    near = by_name(profile_of(similarity=1.0))["full_fine_tune"].hyperparameters["lr"]
    far = by_name(profile_of(similarity=0.0))["full_fine_tune"].hyperparameters["lr"]
    assert near < far


def test_first_hyperparameters_construct_their_strategy() -> None:
    for name, r in by_name(profile_of()).items():
        strategy = get_strategy(name)(**r.hyperparameters)
        assert strategy.hyperparameters() == dict(r.hyperparameters)


@pytest.mark.parametrize(
    ("n_per_class", "similarity", "size", "domain"),
    [
        (20, 0.9, "small", "similar"),
        (20, 0.1, "small", "different"),
        (5000, 0.9, "large", "similar"),
        (5000, 0.1, "large", "different"),
        (20, None, "small", "unknown"),
    ],
)
def test_the_four_quadrants_and_the_unknown_have_their_rules(
    n_per_class: int, similarity: float | None, size: Size, domain: Domain
) -> None:
    quadrant = place(profile_of(n_per_class=n_per_class, similarity=similarity))
    assert (quadrant.size, quadrant.domain) == (size, domain)
    assert quadrant.rule == RULES[size, domain]
    assert not quadrant.borderline


def test_a_position_near_a_threshold_is_borderline() -> None:
    at_size = profile_of(n_per_class=250)
    at_domain = profile_of(similarity=SIMILAR_FROM)
    assert place(at_size).borderline
    assert place(at_domain).borderline


def test_disagreement_with_the_rule_is_said_with_numbers() -> None:
    decision = recommend(profile_of(similarity=0.9, linear=0.4, svm=0.8), PRIORS)
    best = decision.recommendations[0]
    assert best.strategy != decision.quadrant.rule
    assert any("rule of thumb" in reason and "points" in reason for reason in best.reasons)


def test_the_winner_leads_or_is_cheaper_by_the_stated_rule() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        linear, svm = rng.uniform(0.2, 1.0, 2)
        profile = profile_of(similarity=float(rng.uniform()), linear=linear, svm=svm)
        ranked = recommend(profile, PRIORS).recommendations
        best = ranked[0]
        for other in ranked[1:]:
            if other.accuracy.mid > best.accuracy.mid + NOISE:
                assert other.seconds.mid > best.seconds.mid
                assert other.strategy not in ("linear_probe", "layer_svm")
