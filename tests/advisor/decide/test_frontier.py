"""What can be expected within a time: value of options, input sizes, picks."""

import math
import re
from dataclasses import replace

import pytest

from advisor.decide.frontier import (
    BUDGETS_S,
    LIKELY,
    best_size,
    fallback_within,
    probability_in_time,
    value_within,
)
from advisor.decide.recommend import frontier_of, options_of, recommend
from advisor.types.advice import Recommendation
from strategies.core.metrics import Interval
from tests.advisor.profiles import inputs_of, priors_by_hand, with_sizes

PRIORS = priors_by_hand()


def option(
    accuracy: float, seconds: float, strategy: str = "full_fine_tune", px: int = 224
) -> Recommendation:
    return Recommendation(
        strategy=strategy,
        backbone="net",
        accuracy=Interval(accuracy - 0.05, accuracy, accuracy + 0.05),
        seconds=Interval(seconds / 1.5, seconds, seconds * 1.5),
        hyperparameters={},
        reasons=(),
        image_passes=seconds,
        cases=10,
        input_px=px,
    )


INPUTS = with_sizes(
    inputs_of(similarity=0.2, linear=0.6, svm=0.6, ms_per_image=10.0, median_side_px=224.0)
)


def test_a_fit_ends_in_its_expected_time_with_probability_one_half() -> None:
    seconds = option(0.8, 60.0).seconds
    assert probability_in_time(seconds, 60.0) == pytest.approx(0.5)
    assert probability_in_time(seconds, 90.0) == pytest.approx(0.95)
    assert probability_in_time(seconds, math.inf) == 1
    assert probability_in_time(seconds, 0.0) == 0


def test_a_fit_that_ends_too_late_is_worth_the_fallback() -> None:
    assert value_within(option(0.9, 60.0), math.inf, 0.5) == 0.9
    assert value_within(option(0.9, 60.0), 60.0, 0.5) == pytest.approx(0.7)
    assert value_within(option(0.9, 60.0), 1.0, 0.5) == pytest.approx(0.5)


def test_the_fallback_is_a_linear_probe_that_ends_in_time() -> None:
    large, small = (option(a, s, "linear_probe") for a, s in ((0.8, 30.0), (0.7, 5.0)))
    trained = option(0.95, 1.0)
    assert fallback_within([large, small, trained], math.inf) == 0.8
    assert fallback_within([large, small, trained], 10.0) == pytest.approx(0.7, abs=0.01)
    assert fallback_within([trained], 10.0) == 0


def test_the_input_size_follows_the_time() -> None:
    sizes = [option(0.9, 100.0, px=224), option(0.85, 50.0, px=160), option(0.8, 20.0, px=96)]
    found = [best_size(sizes, t, 0.5, "balanced").input_px for t in (1000.0, 70.0, 25.0)]
    assert found == [224, 160, 96]


def test_of_equal_sizes_training_takes_the_cheapest_and_a_head_the_largest() -> None:
    trained = [option(0.8, 100.0, px=224), option(0.799, 20.0, px=96)]
    heads = [replace(o, strategy="linear_probe") for o in trained]
    assert best_size(trained, math.inf, 0.5, "balanced").input_px == 96
    assert best_size(trained, math.inf, 0.5, "accuracy").input_px == 224
    assert best_size(heads, math.inf, 0.5, "balanced").input_px == 224


def test_the_recommendation_fits_into_the_time() -> None:
    for time_s in BUDGETS_S:
        decision = recommend(INPUTS, PRIORS, time_s=time_s)
        best = decision.recommendations[0]
        fits = [probability_in_time(o.seconds, time_s) >= LIKELY for o in decision.options]
        assert probability_in_time(best.seconds, time_s) >= LIKELY or not any(fits)
        names = {r.strategy for r in decision.recommendations}
        assert names.isdisjoint(r.strategy for r in decision.rejections)
        assert len(names) + len(decision.rejections) == 5


def test_what_does_not_end_in_time_is_rejected_with_its_seconds() -> None:
    reasons = {r.strategy: r.reason for r in recommend(INPUTS, PRIORS, time_s=15.0).rejections}
    assert {"full_fine_tune", "from_scratch"} <= reasons.keys()
    long = r"one fit takes about \d+ (s|min) at \d+ px, longer than the limit of 15 s"
    assert re.fullmatch(long, reasons["from_scratch"])


def test_a_strategy_that_ends_in_time_at_a_smaller_size_is_offered_at_that_size() -> None:
    slow = {"layer_svm": 4000.0}
    inputs = with_sizes(inputs_of(linear=0.95, svm=0.95, image_passes=slow))
    ranked = {r.strategy: r for r in recommend(inputs, PRIORS, time_s=15.0).recommendations}
    assert ranked["layer_svm"].input_px == 96


def test_a_head_at_another_size_than_the_measured_one_says_what_is_expected() -> None:
    decision = recommend(INPUTS, PRIORS, "linear_probe", time_s=1.5)
    best = decision.recommendations[0]
    assert best.input_px == 96
    expected = f"at 224 px; {100 * best.accuracy.mid:.1f}% is expected at 96 px."
    assert best.reasons[0].endswith(expected)


def test_a_strategy_asked_for_is_never_rejected_for_its_time() -> None:
    decision = recommend(INPUTS, PRIORS, "full_fine_tune", time_s=1.0)
    assert decision.recommendations[0].strategy == "full_fine_tune"


def test_more_time_never_lowers_what_is_expected() -> None:
    decision = recommend(INPUTS, PRIORS, prefer="accuracy")
    frontier = frontier_of(decision.options, INPUTS, PRIORS, "accuracy")
    accuracies = [pick.accuracy.mid for pick in frontier.picks]
    assert accuracies == sorted(accuracies)
    assert len({(p.strategy, p.input_px) for p in frontier.picks}) > 2
    assert frontier.options == decision.options
    last = frontier.picks[-1]
    best = decision.recommendations[0]
    assert (last.time_s, last.strategy, last.input_px) == (None, best.strategy, best.input_px)


def test_a_strategy_without_benchmark_cases_has_the_full_size_only() -> None:
    gains = {n: model for n, model in PRIORS.gains.items() if n != "partial_fine_tune"}
    options = recommend(INPUTS, replace(PRIORS, gains=gains)).options
    sizes: dict[str, list[int]] = {o.strategy: [] for o in options}
    for o in options:
        sizes[o.strategy].append(o.input_px)
    assert sizes["partial_fine_tune"] == [224]
    assert sizes["full_fine_tune"] == [224, 160, 96]


def test_a_budget_is_counted_in_images_too() -> None:
    pick = frontier_of(options_of(INPUTS, PRIORS), INPUTS, PRIORS, "balanced").picks[0]
    assert pick.time_s is not None
    assert pick.image_passes == pytest.approx(pick.time_s / 0.010)


def test_only_heads_at_the_size_of_the_profile_are_measured() -> None:
    measured = {(o.strategy, o.input_px) for o in options_of(INPUTS, PRIORS) if o.measured}
    px = INPUTS.profile.input_px
    assert measured == {("linear_probe", px), ("layer_svm", px)}
