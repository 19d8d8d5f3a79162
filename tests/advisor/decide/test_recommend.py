"""Ranking of the strategies, for profiles made by hand."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from advisor.decide.candidates import DecisionInputs
from advisor.decide.priors import Priors
from advisor.decide.quadrant import RULES, SIMILAR_FROM
from advisor.decide.rationale import _shortfall
from advisor.decide.recommend import quadrant_of, recommend
from advisor.types.advice import Domain, Recommendation, Size
from advisor.types.options import NOISE, SIMILAR_COST_RATIO, Prefer, tie_tolerance, tie_upper_bound
from strategies.base import GainPrior
from strategies.core.errors import NotApplicable
from strategies.core.metrics import Interval
from strategies.registry import get_strategy
from tests.advisor.profiles import (
    BENCHMARKED,
    inputs_of,
    model_of,
    priors_by_hand,
    profile_of,
    with_gains,
)

PRIORS = priors_by_hand()
PREFERENCES: tuple[Prefer, ...] = ("accuracy", "balanced", "cheap")


def by_name(inputs: DecisionInputs) -> dict[str, Recommendation]:
    decision = recommend(inputs, PRIORS)
    return {r.strategy: r for r in decision.recommendations}


def test_every_strategy_that_applies_is_ranked_once() -> None:
    decision = recommend(inputs_of(), PRIORS)
    assert sorted(r.strategy for r in decision.recommendations) == sorted(BENCHMARKED)
    assert decision.rejections == ()


def test_a_strategy_that_does_not_apply_is_rejected_with_its_reason() -> None:
    decision = recommend(inputs_of(inapplicable={"layer_svm": "no depths"}), PRIORS)
    assert "layer_svm" not in {r.strategy for r in decision.recommendations}
    assert [(r.strategy, r.reason) for r in decision.rejections] == [("layer_svm", "no depths")]


def test_forcing_a_strategy_that_does_not_apply_is_an_error() -> None:
    with pytest.raises(NotApplicable, match="no depths"):
        recommend(inputs_of(inapplicable={"layer_svm": "no depths"}), PRIORS, "layer_svm")


def test_a_forced_strategy_is_ranked_first_with_that_reason() -> None:
    decision = recommend(inputs_of(), PRIORS, "from_scratch")
    assert decision.recommendations[0].strategy == "from_scratch"
    assert any("--strategy" in reason for reason in decision.recommendations[0].reasons)


def test_a_perfect_probe_is_never_beaten_by_fine_tuning() -> None:
    decision = recommend(inputs_of(linear=1.0, svm=1.0), PRIORS)
    assert decision.recommendations[0].strategy in ("linear_probe", "layer_svm")


def test_the_cheaper_of_two_equals_is_ranked_first() -> None:
    inputs = inputs_of(similarity=1.0, linear=0.985, svm=0.98)
    assert recommend(inputs, PRIORS).recommendations[0].strategy == "linear_probe"


def test_an_earlier_depth_that_is_clearly_better_wins_over_the_probe() -> None:
    ranked = [
        r.strategy for r in recommend(inputs_of(linear=0.7, svm=0.9), PRIORS).recommendations
    ]
    assert ranked.index("layer_svm") < ranked.index("linear_probe")


def test_fine_tuning_is_recommended_for_a_poor_probe_far_from_imagenet() -> None:
    best = recommend(inputs_of(similarity=0.0, linear=0.5, svm=0.5), PRIORS).recommendations[0]
    assert best.strategy in ("partial_fine_tune", "full_fine_tune")


def test_the_predicted_gain_of_fine_tuning_never_falls_with_domain_distance() -> None:
    gains = [
        by_name(inputs_of(similarity=s))["full_fine_tune"].accuracy.mid
        for s in np.linspace(1, 0, 11)
    ]
    assert all(later >= earlier for earlier, later in pairwise(gains))


def test_a_better_probe_never_lowers_any_prediction() -> None:
    worse, better = by_name(inputs_of(linear=0.6)), by_name(inputs_of(linear=0.8))
    for name in ("linear_probe", "partial_fine_tune", "full_fine_tune", "from_scratch"):
        assert better[name].accuracy.mid >= worse[name].accuracy.mid


def width(r: Recommendation) -> float:
    return r.accuracy.high - r.accuracy.low


EVIDENCE = {"pixel_probe": Interval(0.3, 0.4, 0.5), "knn": Interval(0.5, 0.55, 0.6)}


def test_missing_evidence_widens_the_predicted_interval() -> None:
    given: dict[str, Any] = {"similarity": 0.6, "linear": 0.6, "svm": 0.6, **EVIDENCE}
    known = by_name(inputs_of(**given))["full_fine_tune"]
    unknown = by_name(inputs_of(**given | {"pixel_probe": None}))["full_fine_tune"]
    assert width(unknown) > width(known)


def test_more_images_never_lower_the_prediction_for_fine_tuning() -> None:
    for name in ("partial_fine_tune", "full_fine_tune"):
        expected = [
            by_name(inputs_of(n_per_class=n, linear=0.7, svm=0.7))[name].accuracy.mid
            for n in (5, 20, 100, 500)
        ]
        assert all(later >= earlier for earlier, later in pairwise(expected))


def test_preferences_are_in_order_of_cost_and_of_accuracy() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        linear, svm = rng.uniform(0.2, 1.0, 2)
        inputs = inputs_of(similarity=float(rng.uniform()), linear=linear, svm=svm)
        best = {p: recommend(inputs, PRIORS, prefer=p).recommendations[0] for p in PREFERENCES}
        assert best["cheap"].seconds.mid <= best["balanced"].seconds.mid
        assert best["balanced"].accuracy.mid <= best["accuracy"].accuracy.mid
        assert best["accuracy"].accuracy.mid == max(
            r.accuracy.mid for r in recommend(inputs, PRIORS).recommendations
        )


@pytest.mark.parametrize("prefer", PREFERENCES)
@pytest.mark.parametrize("refused", BENCHMARKED)
def test_an_inapplicable_strategy_is_never_recommended(prefer: Prefer, refused: str) -> None:
    for similarity in (0.1, 0.9):
        inputs = inputs_of(similarity=similarity, linear=0.6, inapplicable={refused: "no"})
        names = {r.strategy for r in recommend(inputs, PRIORS, prefer=prefer).recommendations}
        assert refused not in names


def test_seconds_follow_the_measured_cost_of_training() -> None:
    cheap = by_name(inputs_of(passes_per_trained_image=3.0))
    dear = by_name(inputs_of(passes_per_trained_image=9.0))
    ratio = dear["full_fine_tune"].seconds.mid / cheap["full_fine_tune"].seconds.mid
    assert 2.5 < ratio < 3
    assert dear["linear_probe"].seconds == cheap["linear_probe"].seconds


def test_the_reasons_name_the_alternative_and_what_it_would_need() -> None:
    decision = recommend(inputs_of(similarity=0.6, linear=0.8, svm=0.8), PRIORS)
    reasons = " ".join(decision.recommendations[0].reasons)
    assert "would be recommended instead if it did" in reasons


def test_of_two_equal_predictions_any_improvement_would_change_the_order() -> None:
    alike = [model_of(name, 1.0) for name in ("partial_fine_tune", "full_fine_tune")]
    others = [model_of(name, -1.0) for name in ("layer_svm", "from_scratch")]
    cost = dict.fromkeys(BENCHMARKED, 1000.0)
    inputs = inputs_of(similarity=0.2, linear=0.5, svm=0.5, image_passes=cost)
    first = recommend(inputs, with_gains(PRIORS, *alike, *others)).recommendations[0]
    assert "if it did any better than expected (probability about 50%)" in " ".join(first.reasons)


def test_predicted_accuracies_stay_between_zero_and_one() -> None:
    for linear in (0.1, 0.5, 1.0):
        for r in by_name(inputs_of(linear=linear, svm=linear, similarity=0.0)).values():
            assert 0 <= r.accuracy.low <= r.accuracy.mid <= r.accuracy.high <= 1


def test_cost_follows_the_forward_passes() -> None:
    slow = by_name(inputs_of(ms_per_image=100.0))
    fast = by_name(inputs_of(ms_per_image=10.0))
    for name in BENCHMARKED:
        assert slow[name].seconds.mid > fast[name].seconds.mid


def test_first_hyperparameters_construct_their_strategy() -> None:
    for name, r in by_name(inputs_of()).items():
        strategy = get_strategy(name).from_hyperparameters(r.hyperparameters)
        assert strategy.hyperparameters().items() >= dict(r.hyperparameters).items()


@pytest.mark.parametrize(
    ("n_per_class", "similarity", "size", "domain"),
    [
        (20, 0.9, "small", "similar"),
        (20, 0.1, "small", "different"),
        (5000, 0.9, "large", "similar"),
        (5000, 0.1, "large", "different"),
    ],
)
def test_the_four_quadrants_have_their_rules(
    n_per_class: int, similarity: float, size: Size, domain: Domain
) -> None:
    quadrant = quadrant_of(profile_of(n_per_class=n_per_class, similarity=similarity))
    assert (quadrant.size, quadrant.domain) == (size, domain)
    assert quadrant.rule == RULES[size, domain]
    assert not quadrant.borderline


def test_a_position_near_a_threshold_is_borderline() -> None:
    at_size = profile_of(n_per_class=250)
    at_domain = profile_of(similarity=SIMILAR_FROM)
    assert quadrant_of(at_size).borderline
    assert quadrant_of(at_domain).borderline


def test_disagreement_with_the_rule_is_reported_with_numbers() -> None:
    decision = recommend(inputs_of(similarity=0.9, linear=0.4, svm=0.8), PRIORS)
    best = decision.recommendations[0]
    assert best.strategy != decision.quadrant.rule
    assert any("rule of thumb" in reason and "points" in reason for reason in best.reasons)


def test_the_best_strategy_is_clearly_better_or_cheaper() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        linear, svm = rng.uniform(0.2, 1.0, 2)
        inputs = inputs_of(similarity=float(rng.uniform()), linear=linear, svm=svm)
        best, *others = recommend(inputs, PRIORS).recommendations
        for other in others:
            if other.accuracy.mid > tie_upper_bound(best.accuracy.mid, "balanced"):
                assert other.seconds.mid > best.seconds.mid


def test_half_a_point_is_traded_for_cost_and_at_similar_cost_the_more_accurate_wins() -> None:
    rng = np.random.default_rng(1)
    dearer = cheaper = 0
    for _ in range(400):
        linear = rng.uniform(0.8, 0.97)
        svm = linear + rng.normal(0, 0.005)
        inputs = inputs_of(similarity=float(rng.uniform(0.7, 1)), linear=linear, svm=svm)
        ranked = recommend(inputs, PRIORS).recommendations
        cost, best = {r.strategy: r.image_passes for r in ranked}, ranked[0]
        most = max(r.accuracy.mid for r in ranked)
        equal = [r for r in ranked if most - r.accuracy.mid <= tie_tolerance(most, "balanced")]
        dear = SIMILAR_COST_RATIO * min(cost[r.strategy] for r in equal)
        assert best in equal
        assert cost[best.strategy] <= dear
        for other in equal[1:]:
            if cost[other.strategy] <= dear:
                assert best.accuracy.mid >= other.accuracy.mid
                dearer += cost[other.strategy] < cost[best.strategy]
            else:
                cheaper += other.accuracy.mid > best.accuracy.mid
    assert dearer > 0
    assert cheaper > 0


@pytest.mark.parametrize("prefer", PREFERENCES)
def test_equal_within_shrinks_with_the_error_rate_and_least_better_is_its_inverse(
    prefer: Prefer,
) -> None:
    for accuracy in (0.2, 0.7, 0.94):
        assert tie_tolerance(accuracy, prefer) == pytest.approx(NOISE[prefer])
    for accuracy in (0.96, 0.98, 0.999):
        assert tie_tolerance(accuracy, prefer) <= NOISE[prefer] * (1 - accuracy) / 0.05 + 1e-12
    assert tie_tolerance(1.0, prefer) == 0
    for accuracy in np.linspace(0, 1, 201):
        least = tie_upper_bound(float(accuracy), prefer)
        assert least <= 1
        assert least - tie_tolerance(least, prefer) == pytest.approx(accuracy)


def test_at_most_a_tenth_of_the_errors_is_traded_for_cost() -> None:
    rng = np.random.default_rng(2)
    n_traded = n_not_traded = 0
    for _ in range(400):
        linear = rng.uniform(0.95, 0.995)
        svm = linear + rng.uniform(0, 0.006)
        cost = {"layer_svm": 4000.0}
        inputs = inputs_of(similarity=1.0, linear=linear, svm=svm, image_passes=cost)
        ranked = recommend(inputs, PRIORS).recommendations
        most = max(r.accuracy.mid for r in ranked)
        lost = most - ranked[0].accuracy.mid
        assert lost <= min(0.005, 0.1 * (1 - most)) + 1e-9
        n_not_traded += lost == 0 and 0 < most - sorted(r.accuracy.mid for r in ranked)[-2] < 0.004
        n_traded += lost > 0
    assert n_not_traded > 0
    assert n_traded > 0


@pytest.mark.parametrize(
    ("accuracy", "times", "shortfall"),
    [
        (0.9, 0.1, 0.015),
        (0.9, 0.6, 0.02),
        (0.9, 1.7, 0.02),
        (0.9, 10.0, 0.025),
        (0.98, 0.1, 0.018),
        (0.98, 10.0, 0.02 + 0.02 / 11),
    ],
)
def test_an_alternative_at_similar_cost_only_needs_to_be_better(
    accuracy: float, times: float, shortfall: float
) -> None:
    best, alternative, *_ = recommend(inputs_of(), PRIORS).recommendations
    best = replace(best, accuracy=Interval(accuracy - 0.05, accuracy, 0.99))
    alternative = replace(alternative, accuracy=Interval(accuracy - 0.07, accuracy - 0.02, 0.99))
    best = replace(best, image_passes=100.0)
    alternative = replace(alternative, image_passes=100.0 * times)
    assert _shortfall(best, alternative, "balanced") == pytest.approx(shortfall)


@pytest.mark.parametrize(("gain", "is_recommended"), [(1.0, False), (4.0, True)])
def test_training_from_scratch_is_recommended_only_if_its_lead_is_beyond_chance(
    gain: float, *, is_recommended: bool
) -> None:
    priors = with_gains(PRIORS, model_of("from_scratch", gain))
    ranked = recommend(inputs_of(linear=0.5, svm=0.5), priors).recommendations
    assert max(ranked, key=lambda r: r.accuracy.mid).strategy == "from_scratch"
    assert (ranked[0].strategy == "from_scratch") is is_recommended
    if not is_recommended:
        assert ranked[1].strategy == "from_scratch"
        assert any("beyond chance" in reason for reason in ranked[1].reasons)


def without_cases(name: str, gain: GainPrior, monkeypatch: pytest.MonkeyPatch) -> Priors:
    """Return priors without cases of a strategy, whose expected gain is then `gain`."""
    monkeypatch.setattr(get_strategy(name), "fallback_gain", gain)
    known = {n: model for n, model in PRIORS.gains.items() if n != name}
    return replace(PRIORS, gains=known)


@pytest.mark.parametrize(("sd", "is_first"), [(3.0, False), (0.01, True)])
def test_without_benchmark_cases_a_strategy_is_ranked_first_only_if_its_lead_is_certain(
    sd: float, is_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "partial_fine_tune"
    priors = without_cases(name, GainPrior(3.0, sd), monkeypatch)
    ranked = recommend(inputs_of(linear=0.5, svm=0.5), priors).recommendations
    new = next(r for r in ranked if r.strategy == name)
    assert new.cases == 0
    assert new == max(ranked, key=lambda r: r.accuracy.mid)
    assert ranked.index(new) == (0 if is_first else len(ranked) - 1)
    assert is_first or any("Without benchmark cases" in reason for reason in new.reasons)


def test_on_a_transformer_full_fine_tuning_is_not_expected_to_beat_the_probe() -> None:
    about = {"n_per_class": 100, "similarity": 0.3, "linear": 0.6, "svm": 0.6}
    ranked = {
        family: recommend(inputs_of(family=family, **about), PRIORS).recommendations
        for family in ("convolutional", "transformer")
    }
    assert ranked["convolutional"][0].strategy == "full_fine_tune"
    assert ranked["transformer"][0].strategy not in ("full_fine_tune", "partial_fine_tune")
    full = next(r for r in ranked["transformer"] if r.strategy == "full_fine_tune")
    assert full.cases == 20
    assert any("published results, ViT-B/16" in reason for reason in full.reasons)


def test_a_strategy_without_benchmark_cases_does_not_change_the_order_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(3)
    name = "partial_fine_tune"
    for _ in range(100):
        linear, svm = rng.uniform(0.2, 1.0, 2)
        gain = GainPrior(float(rng.normal(0.3, 0.5)), 1.0)
        priors = without_cases(name, gain, monkeypatch)
        inputs = inputs_of(similarity=float(rng.uniform()), linear=linear, svm=svm)
        others = tuple(c for c in inputs.candidates if c.name != name)
        with_it = recommend(inputs, priors).recommendations
        without = recommend(replace(inputs, candidates=others), priors).recommendations
        ranked = [r.strategy for r in with_it if r.strategy != name]
        assert ranked == [r.strategy for r in without]
