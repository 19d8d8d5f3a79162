"""Scheduler: baseline first, then strategies that may still win, while scores and time allow."""

import math
import time
from dataclasses import replace
from typing import get_args

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from advisor.tune.interventions import initial_trials
from advisor.tune.scheduler import Scheduler, make_scheduler
from advisor.tune.time_budget import MAX_EXPLAIN_S, MAX_TEST_SHARE, TimeBudget, TimeLeft
from advisor.tune.trials.sampler import SeededTPE
from advisor.tune.trials.study import TrialsSnapshot
from advisor.types.advice import Recommendation
from advisor.types.options import Prefer
from advisor.types.outcome import TrialRecord
from strategies.core.metrics import Interval, proportion
from tests.advisor.searching import Runner

N_VAL = 100


def advised(
    strategy: str, accuracy: float, seconds: float = 10.0, half: float = 0.05, px: int = 224
) -> Recommendation:
    return Recommendation(
        strategy,
        "net",
        Interval(accuracy - half, accuracy, accuracy + half),
        Interval(seconds, seconds, seconds),
        {"lr": 1e-3, "batch_norm": "frozen"} if "tune" in strategy else {},
        (),
        seconds,
        9,
        px,
    )


SCHEDULER = Scheduler(
    (
        advised("linear_probe", 0.8),
        advised("full_fine_tune", 0.85, 60.0),
        advised("partial_fine_tune", 0.84, 30.0),
    ),
    N_VAL,
    1,
    None,
)


EASY = replace(
    SCHEDULER,
    candidates=(
        advised("linear_probe", 0.97, half=0.03),
        advised("full_fine_tune", 0.97, 60.0, half=0.03),
        advised("partial_fine_tune", 0.97, 30.0, half=0.03),
    ),
)
"""The advice predicts the same accuracy for each strategy."""


def snapshot(*scores: tuple[str, float | None]) -> TrialsSnapshot:
    done = [
        TrialRecord(
            i,
            name,
            {},
            None if s is None else proportion(s, N_VAL),
            1.0,
            None if s is not None else "failed",
        )
        for i, (name, s) in enumerate(scores)
    ]
    return TrialsSnapshot(tuple(done), ())


def left(head_s: float, min_training_s: float = 0.0) -> TimeLeft:
    return TimeLeft(head_s, head_s, min_training_s)


def test_the_baseline_comes_first() -> None:
    assert SCHEDULER.choose(snapshot(), left(1000)) == "linear_probe"


def test_every_training_strategy_gets_trials_and_the_incumbents_gets_more() -> None:
    begun = snapshot(("linear_probe", 0.8), ("full_fine_tune", 0.85))
    assert SCHEDULER.choose(begun, left(1000)) == "partial_fine_tune"
    even = snapshot(("linear_probe", 0.8), ("full_fine_tune", 0.85), ("partial_fine_tune", 0.83))
    assert SCHEDULER.choose(even, left(1000)) == "full_fine_tune"


def test_a_strategy_clearly_worse_than_the_incumbent_gets_no_more_trials() -> None:
    sure = snapshot(("linear_probe", 0.8), ("full_fine_tune", 0.95), ("partial_fine_tune", 0.5))
    for _ in range(5):
        name = SCHEDULER.choose(sure, left(1000))
        assert name == "full_fine_tune"
        more = replace(sure.done[1], number=sure.n)
        sure = TrialsSnapshot((*sure.done, more), ())


def test_little_time_goes_to_the_shortest_training_run_and_the_last_seconds_to_none() -> None:
    done = snapshot(("linear_probe", 0.8))
    assert SCHEDULER.choose(done, left(8.9, 5.0)) == "partial_fine_tune"
    assert SCHEDULER.choose(done, left(4.9, 5.0)) is None
    assert SCHEDULER.choose(done, left(0.0, 5.0)) is None


def test_nothing_is_tried_against_a_perfect_incumbent_unless_a_number_of_trials_was_given() -> (
    None
):
    perfect = snapshot(("linear_probe", 0.99))
    assert EASY.choose(perfect, left(1000)) is None
    assert replace(EASY, max_trials=3).choose(perfect, left(1000)) is not None


def test_a_strategy_with_a_higher_prediction_is_tried_against_a_perfect_incumbent() -> None:
    few = replace(SCHEDULER, n_val=10)
    perfect = snapshot(("linear_probe", 1.0))
    assert few.choose(perfect, left(1000)) == "full_fine_tune"
    assert few.end_reason(perfect) == "time"


def test_the_end_reason_of_a_search() -> None:
    assert SCHEDULER.end_reason(snapshot(("linear_probe", 0.8))) == "time"
    assert EASY.end_reason(snapshot(("linear_probe", 0.99))) == "unbeatable"
    surpassed = snapshot(
        ("linear_probe", 0.95), ("full_fine_tune", 0.5), ("partial_fine_tune", 0.5)
    )
    assert SCHEDULER.choose(surpassed, left(1000)) is None
    assert SCHEDULER.end_reason(surpassed) == "no_candidate"
    assert replace(SCHEDULER, max_trials=3).end_reason(surpassed) == "trials"
    three = replace(EASY, max_trials=3)
    assert three.end_reason(snapshot(("linear_probe", 0.99))) == "time"


def test_a_strategy_that_only_fails_is_given_up() -> None:
    failed = snapshot(("linear_probe", 0.8), *[("full_fine_tune", None)] * 3)
    assert SCHEDULER.choose(failed, left(1000)) == "partial_fine_tune"
    all_failed = snapshot(
        *[
            (n, None)
            for n in ("linear_probe",) + ("full_fine_tune",) * 3 + ("partial_fine_tune",) * 3
        ]
    )
    assert SCHEDULER.choose(all_failed, left(math.inf)) is None


def test_a_head_that_only_fails_is_given_up_if_it_alone_is_searched() -> None:
    alone = replace(SCHEDULER, candidates=(advised("layer_svm", 0.8),), probe_trials=10)
    for n, expected in ((2, "layer_svm"), (3, None)):
        assert alone.choose(snapshot(*[("layer_svm", None)] * n), left(1000)) == expected


def test_unfinished_trials_count() -> None:
    limited = replace(SCHEDULER, max_trials=2)
    assert (
        limited.choose(
            TrialsSnapshot(snapshot(("linear_probe", 0.8)).done, ("full_fine_tune",)), left(9e9)
        )
        is None
    )


def test_ties_go_to_the_cheaper_strategy() -> None:
    pair = (("full_fine_tune", 0.97), ("linear_probe", 0.97))
    for done in (snapshot(*pair), snapshot(*pair[::-1])):
        best = EASY.best(done.done)
        assert best is not None
        assert best.strategy == "linear_probe"


@pytest.mark.parametrize(("errors", "best"), [(0.03, "linear_probe"), (0.015, "full_fine_tune")])
def test_a_gap_of_a_fifth_of_a_point_decides_if_errors_are_few(errors: float, best: str) -> None:
    many = replace(EASY, n_val=1_000_000)
    pair = (("full_fine_tune", 1 - errors + 0.002), ("linear_probe", 1 - errors))
    for done in (snapshot(*pair), snapshot(*pair[::-1])):
        found = many.best(done.done)
        assert found is not None
        assert found.strategy == best


def test_the_preference_sets_which_differences_count_as_equal() -> None:
    val = (("linear_probe", 0.88), ("full_fine_tune", 0.90), ("partial_fine_tune", 0.897))
    best = {}
    for prefer in get_args(Prefer):
        scheduler = replace(EASY, n_val=1_000_000, prefer=prefer)
        for done in (snapshot(*val), snapshot(*val[::-1])):
            found = scheduler.best(done.done)
            assert found is not None
            best.setdefault(prefer, set()).add(found.strategy)
    assert best == {
        "accuracy": {"full_fine_tune"},
        "balanced": {"partial_fine_tune"},
        "cheap": {"linear_probe"},
    }


@pytest.mark.parametrize(("prefer", "ended"), [("balanced", "time"), ("cheap", "unbeatable")])
def test_a_search_ends_if_a_perfect_trial_would_count_as_equal(prefer: Prefer, ended: str) -> None:
    one_error = snapshot(("linear_probe", 0.95))
    assert replace(EASY, n_val=20, prefer=prefer).end_reason(one_error) == ended


def test_with_few_validation_images_the_score_is_shrunk_to_the_prediction() -> None:
    done = snapshot(("linear_probe", 0.85), ("full_fine_tune", 0.8)).done
    few, many = (replace(SCHEDULER, n_val=n).best(done) for n in (20, 2000))
    assert few is not None
    assert many is not None
    assert (few.strategy, many.strategy) == ("full_fine_tune", "linear_probe")


def test_expected_accuracy_is_validation_shrunk_to_the_prediction_of_the_same_backbone() -> None:
    (record,) = snapshot(("full_fine_tune", 0.7)).done
    found = [replace(SCHEDULER, n_val=n).expected(record) for n in (1, 10, 100, 10_000)]
    assert 0.85 > found[0] > found[1] > found[2] > found[3] > 0.7
    elsewhere = replace(record, hyperparameters={"backbone": "other"})
    assert SCHEDULER.expected(elsewhere) == pytest.approx(0.7)


def test_other_hyperparameters_must_win_by_more_than_one_validation_image() -> None:
    first, *later = snapshot(*[("full_fine_tune", s) for s in (0.8, 0.81, 0.82)]).done
    assert [SCHEDULER.beats(r, first) for r in later] == [False, True]


def test_the_initial_trials_change_one_hyperparameter_at_a_time_within_the_space() -> None:
    first = {"lr": 1e-3, "batch_norm": "frozen", "steps": 100}
    rates = {"lr": FloatDistribution(1e-5, 2e-3, log=True)}
    modes = {"batch_norm": CategoricalDistribution(["frozen", "trained"])}
    entries = initial_trials(first, rates | modes)
    assert entries[0] == first
    assert [e["lr"] for e in entries[1:3]] == [2e-3, pytest.approx(1e-3 / 3)]
    assert entries[3] == first | {"batch_norm": "trained"}
    assert initial_trials(first, rates) == entries[:3]  # a network without BatchNorm


def test_with_little_time_a_training_run_starts_on_smaller_images() -> None:
    sizes = ((0.86, 60.0, 224), (0.84, 30.0, 160), (0.83, 12.0, 96))
    options = [advised("full_fine_tune", a, s, px=px) for a, s, px in sizes]
    options = [
        replace(o, hyperparameters={**o.hyperparameters, "input_px": o.input_px}) for o in options
    ]
    advice = (SCHEDULER.candidates[0], options[0])
    sized = replace(SCHEDULER, candidates=advice, options=(advised("linear_probe", 0.8), *options))

    def px(scheduler: Scheduler, strategy: str, seconds_left: float) -> int | None:
        return scheduler.start(strategy, snapshot(), {}, left(seconds_left)).get("input_px")

    assert px(sized, "full_fine_tune", 120.0) == 224
    assert px(sized, "full_fine_tune", 50.0) == 160
    assert px(sized, "full_fine_tune", 20.0) == 96
    assert px(sized, "full_fine_tune", 5.0) == 96
    assert px(replace(sized, n_fits=3), "full_fine_tune", 120.0) == 160
    assert px(sized, "linear_probe", 1.0) is None
    assert px(SCHEDULER, "full_fine_tune", 5.0) is None


def test_the_first_training_run_has_the_advised_size_if_it_is_likely_to_end_in_time() -> None:
    sizes = ((0.86, 40.0, 160), (0.859, 12.0, 96))
    own = [advised("full_fine_tune", a, s, px=px) for a, s, px in sizes]
    own = [replace(o, hyperparameters={"input_px": o.input_px}) for o in own]
    uncertain = replace(own[0], seconds=Interval(10.0, 40.0, 160.0))
    options = (advised("linear_probe", 0.8), uncertain, own[1])
    scheduler = replace(SCHEDULER, candidates=(options[0], uncertain), options=options)
    before = snapshot(("linear_probe", 0.8))
    assert scheduler.start("full_fine_tune", before, {}, left(42.0)) == {"input_px": 160}
    assert scheduler.start("full_fine_tune", before, {}, left(39.0)) == {"input_px": 96}

    later = snapshot(("partial_fine_tune", 0.8))
    assert scheduler.start("full_fine_tune", later, {}, left(42.0)) == {"input_px": 96}


def test_a_trial_on_all_images_beats_one_on_a_part_of_them_whatever_their_scores() -> None:
    part, whole = snapshot(("linear_probe", 0.95), ("linear_probe", 0.6)).done
    part = replace(part, n_train=10)

    assert SCHEDULER.beats(whole, part)
    assert not SCHEDULER.beats(part, whole)
    assert SCHEDULER.best((part, whole)) == whole


def test_after_a_probe_on_a_part_the_next_keeps_its_size_if_it_can_read_half_the_images() -> None:
    (part,) = snapshot(("linear_probe", 0.95)).done
    begun = TrialsSnapshot((replace(part, n_train=10),), ())
    sized = [advised("linear_probe", 0.8, 30.0), advised("linear_probe", 0.7, 8.0, px=96)]
    options = tuple(replace(o, hyperparameters={"input_px": o.input_px}) for o in sized)
    candidates = (options[0], *SCHEDULER.candidates[1:])
    scheduler = replace(SCHEDULER, options=options, candidates=candidates)
    scheduler = replace(scheduler, features_s=30.0, unmeasured_s=24.0)

    assert scheduler.choose(begun, left(100.0)) == "linear_probe"
    assert scheduler.start("linear_probe", begun, {}, left(100.0)) == {"input_px": 224}
    assert scheduler.start("linear_probe", begun, {}, left(31.0)) == {"input_px": 224}
    assert scheduler.choose(begun, left(10.0)) == "linear_probe"
    assert scheduler.start("linear_probe", begun, {}, left(10.0)) == {"input_px": 96}
    assert scheduler.choose(begun, left(5.0, 1.0)) == "partial_fine_tune"


def test_after_advice_for_a_short_time_heads_keep_the_measured_size_and_training_runs_stay(
    run: Runner,
) -> None:
    probe = next(r for r in run.advice.recommendations if r.strategy == "linear_probe")
    limited = replace(run.advice, recommendations=(replace(probe, input_px=32),), time_s=5.0)
    scheduler = make_scheduler(limited, 50, only=None, max_trials=None, prefer="balanced")

    by_name = {c.strategy: c for c in scheduler.candidates}
    assert by_name["linear_probe"].input_px == run.advice.profile.input_px
    assert any("fine_tune" in name for name in by_name)
    assert "from_scratch" not in by_name


def test_the_baseline_starts_from_features_of_the_centre_crops_if_it_is_searched() -> None:
    start = SCHEDULER.baseline_start(160)
    assert start is not None
    assert (start["views"], start["input_px"]) == (1, 160)
    without = replace(SCHEDULER, candidates=SCHEDULER.candidates[1:])
    assert without.baseline_start(160) is None


def test_the_prior_of_a_trial_is_that_of_its_input_size() -> None:
    options = tuple(advised("full_fine_tune", a, px=px) for a, px in ((0.9, 224), (0.6, 96)))
    sized = replace(SCHEDULER, options=options, n_val=10)
    record = snapshot(("full_fine_tune", 0.7)).done[0]
    large, small = (
        sized.expected(replace(record, hyperparameters={"input_px": px})) for px in (224, 96)
    )
    assert small < 0.7 < large


def test_draws_depend_only_on_seed_trial_number_and_earlier_trials() -> None:
    def draw(skip: int) -> list[float]:
        study = optuna.create_study(sampler=SeededTPE(0))
        for _ in range(skip):  # other draws from the same sampler must not matter
            study.sampler.sample_independent(
                study, study.ask()._get_latest_trial(), "x", FloatDistribution(0, 1)
            )
        study = optuna.create_study(sampler=study.sampler)
        found = []
        for number in range(8):
            study.enqueue_trial({}, user_attrs={"number": number})
            trial = study.ask()
            found.append(trial.suggest_float("x", 0, 1))
            study.tell(trial, found[-1])
        return found

    assert draw(0) == draw(5)
    assert len(set(draw(0))) == 8


def test_a_time_budget_reserves_time_for_evaluation() -> None:
    budget = TimeBudget(deadline_s=1000.0, limit_s=900.0, n_test=100, n_val=50, by_px={224: 0.01})
    before = budget.search_ends_s()
    assert budget.fit_ends_s() < before < 1000.0 - 1.0
    budget.observe_prediction(10, 1.0, px=224)
    assert budget.search_ends_s() < before - 5


def test_fast_predictions_at_a_small_size_keep_the_reserve_for_large_images() -> None:
    budget = TimeBudget(deadline_s=1000.0, limit_s=900.0, n_test=100, n_val=50, by_px={224: 0.01})
    budget.observe_prediction(10, 1.0, px=224)
    for _ in range(5):
        budget.observe_prediction(10, 0.1, px=96)
    assert budget.s_per_image == 0.1
    budget.observe_prediction(10, 0.8, px=224)
    assert budget.s_per_image == 0.08


def test_time_is_reserved_for_the_sizes_of_the_incumbent_and_of_the_running_trial() -> None:
    budget = TimeBudget(1000.0, 900.0, n_test=100, n_val=50, by_px={224: 0.1, 96: 0.02})
    assert budget.s_per_image == 0.1  # before there is an incumbent, it may have any size
    budget.reserve_for(incumbent_is_trained=True, n_soup_images=0, incumbent_px=96)
    assert budget.s_per_image == 0.02
    budget.begin_fit(160)
    assert budget.s_per_image == pytest.approx(0.1 * (160 / 224) ** 2)
    budget.begin_fit(224)
    assert budget.s_per_image == 0.1
    budget.reserve_for(incumbent_is_trained=True, n_soup_images=0, incumbent_px=96)
    assert budget.s_per_image == 0.02


def test_a_control_that_takes_a_large_share_of_the_time_is_not_afforded() -> None:
    budget = TimeBudget(math.inf, 60.0, 100, 10, {224: 0.05}, n_judged=2, control_s=6.0)
    assert budget.affords_control()  # 6 s, and 100 images in 5.75 s
    assert not replace(budget, n_test=110).affords_control()


def test_the_reserve_for_test_is_a_share_of_the_limit_at_most() -> None:
    budget = TimeBudget(1000.0, 60.0, n_test=100, n_val=50, by_px={224: 0.01}, n_judged=2)
    assert budget.report_begins_s() - budget.test_begins_s() == pytest.approx(2 * 1.15)
    budget.observe_prediction(10, 1.0, px=224)
    assert budget.report_begins_s() - budget.test_begins_s() == 2 * MAX_TEST_SHARE * 60.0
    budget.release_control(is_fitted=False)
    assert budget.report_begins_s() - budget.test_begins_s() == MAX_TEST_SHARE * 60.0


def test_time_to_validate_is_reserved_for_images_that_must_pass_the_network() -> None:
    budget = TimeBudget(1000.0, 900.0, n_test=100, n_val=50, by_px={224: 0.01})
    assert budget.left_s(n_val=0) - budget.left_s() == pytest.approx(1.15 * 0.5, abs=1e-3)
    assert budget.left_s(n_val=25) - budget.left_s() == pytest.approx(1.15 * 0.25, abs=1e-3)


def test_the_reserves_for_control_and_report_shrink_to_what_they_cost() -> None:
    budget = TimeBudget(
        1000.0, 900.0, n_test=0, n_val=50, by_px={224: 0.01}, control_s=60.0, report_s=6.0
    )
    before = budget.search_ends_s()
    budget.report_s = 2.0
    assert budget.search_ends_s() == pytest.approx(before + 1.15 * 4.0)
    budget.has_control = True
    budget.reserve_for(incumbent_is_trained=True, n_soup_images=0)
    assert budget.search_ends_s() == budget.test_begins_s() - 60.0
    budget.reserve_for(incumbent_is_trained=False, n_soup_images=0)
    assert budget.search_ends_s() == budget.test_begins_s() == budget.report_begins_s()


def test_explaining_the_mistakes_has_a_reserve_before_the_report() -> None:
    plain = TimeBudget(math.inf, 900.0, n_test=100, n_val=50, by_px={224: 0.01}, report_s=6.0)
    plain = replace(plain, deadline_s=time.monotonic() + 900.0)
    budget = replace(plain, explain_s=3.0)
    assert budget.report_begins_s() == plain.report_begins_s()
    assert budget.report_begins_s() - budget.explanation_begins_s() == 3.0
    assert plain.search_ends_s() - budget.search_ends_s() == pytest.approx(3.0)
    # A run that ends early does not explain for the rest of its time.
    assert budget.explanation_ends_s() - time.monotonic() == pytest.approx(MAX_EXPLAIN_S, abs=0.5)
    late = replace(budget, deadline_s=time.monotonic() + 9.0)
    assert late.explanation_ends_s() == late.report_begins_s()


def test_the_folds_of_a_trial_share_its_time() -> None:
    budget = TimeBudget(time.monotonic() + 100.0, 100.0, n_test=0, n_val=1, by_px={224: 0.0})
    whole, half = (budget.fold_ends_s(n) - time.monotonic() for n in (1, 2))
    assert half == pytest.approx(whole / 2, abs=0.1)
