"""The time that a run's advice is made for."""

import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest

from advisor.advise import Prepared
from advisor.tune import closing, driver
from advisor.tune.time_budget import SAFETY_FACTOR, reliability_reserve_s
from advisor.types.advice import Advice
from advisor.types.options import DEFAULTS, RunOptions
from advisor.types.profile import Profile
from tests.advisor.searching import Runner


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, run: Runner) -> SimpleNamespace:
    """What the driver asks of the advisor."""
    seen = SimpleNamespace(reserve_s=None)

    def advise_on(_: Prepared, reserve_s: Callable[[Profile], float] | None) -> Advice:
        seen.reserve_s = reserve_s
        return run.advice

    monkeypatch.setattr(driver, "advise_on", advise_on)
    return seen


def load_or_make_advice(run: Runner, options: RunOptions) -> None:
    prepared = Prepared(run.dataset, run.backbone, (), (), DEFAULTS, run.ctx)
    driver._load_or_make_advice(run.folder, prepared, options, time.monotonic() + options.time_s)


@pytest.mark.parametrize("control", [False, True])
def test_a_runs_advice_leaves_time_for_the_baseline_and_for_validation_and_test(
    run: Runner, asked: SimpleNamespace, control: bool
) -> None:
    load_or_make_advice(run, RunOptions(time_s=600, control=control))
    dataset, profile = run.dataset, replace(run.advice.profile, n_measured=run.advice.profile.n)
    slow, fast = (asked.reserve_s(replace(profile, ms_per_image=ms)) for ms in (20.0, 10.0))
    n_passed = len(dataset.val) + (1 + control) * len(dataset.test or ())
    n_reserved = SAFETY_FACTOR * n_passed + closing.EXPLAIN_IMAGES
    assert slow - fast == pytest.approx(n_reserved * 0.01, rel=1e-6)

    unmeasured = replace(profile, ms_per_image=10.0, n_measured=profile.n - 50)
    assert asked.reserve_s(unmeasured) - fast == pytest.approx(50 * 0.01, rel=1e-6)


def test_a_control_that_costs_too_much_of_the_time_has_no_share_of_it_reserved(
    run: Runner, asked: SimpleNamespace
) -> None:
    load_or_make_advice(run, RunOptions(time_s=600))
    affordable = replace(run.advice.profile, ms_per_image=1.0)
    slow = replace(affordable, ms_per_image=60_000.0 / len(run.dataset.test or ()))
    reserved = [asked.reserve_s(profile) for profile in (affordable, slow)]
    passes_s = [
        SAFETY_FACTOR * len(run.dataset.val) * p.ms_per_image / 1000 for p in (affordable, slow)
    ]
    assert reserved[0] - passes_s[0] > 600 * closing.CONTROL_SHARE
    expected_s = 60 + 10 + 600 * closing.EXPLAIN_SHARE + reliability_reserve_s(600)
    assert reserved[1] - passes_s[1] == pytest.approx(expected_s, abs=5)


def test_a_run_with_a_number_of_trials_has_advice_without_a_limit(
    run: Runner, asked: SimpleNamespace
) -> None:
    load_or_make_advice(run, RunOptions(time_s=600, max_trials=2))
    assert asked.reserve_s is None
