"""Predicted gain of a strategy over a linear probe, in log-odds."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit

from advisor.decide.gain_model import (
    UNKNOWN,
    Evidence,
    Gain,
    LogOdds,
    Z,
    accuracy_of,
    angle_of,
    evidence_of,
    expected_accuracy,
    gain_model,
    predict_gain,
    prior_of,
    shrunk_to_prior,
)
from advisor.decide.priors import Prior, Spread
from strategies.core.metrics import Interval
from strategies.registry import STRATEGIES
from tests.advisor.profiles import priors_by_hand, profile_of

PRIORS = priors_by_hand()
SVM, MODEL = PRIORS.gains["layer_svm"], PRIORS.gains["partial_fine_tune"]


def test_evidence_is_unknown_where_it_was_not_measured() -> None:
    bare = evidence_of(profile_of())
    unknown = [name for name, value in bare.items() if value == UNKNOWN]
    assert unknown == ["pixels", "neighbours"]
    full = evidence_of(
        profile_of(pixel_probe=Interval(0.4, 0.5, 0.6), knn=Interval(0.4, 0.5, 0.6))
    )
    assert UNKNOWN not in full.values()
    assert full["pixels"].value == pytest.approx(-full["probe"].value)
    assert full["neighbours"].value == full["pixels"].value


def test_evidence_knows_what_smaller_inputs_do_not_show() -> None:
    profile = profile_of(input_px=224, median_side_px=192.0)
    at_96 = evidence_of(profile, 96)
    assert at_96["lost"].value == pytest.approx(math.log2(192 / 96))
    assert at_96["px"].value == pytest.approx(math.log2(96 / 224))
    assert evidence_of(profile)["lost"].value == evidence_of(profile)["px"].value == 0
    tiny = profile_of(input_px=224, median_side_px=32.0)
    assert evidence_of(tiny, 96)["lost"].value == 0


def test_smaller_inputs_lose_more_the_nearer_the_images_are_to_imagenet() -> None:
    given = {"input_px": 224, "median_side_px": 192.0}
    near, far = (profile_of(similarity=s, **given) for s in (1.0, 0.2))
    assert evidence_of(near, 96)["lost_near"] == evidence_of(near, 96)["lost"]
    assert evidence_of(far, 96)["lost_near"].value == pytest.approx(0.2)
    assert evidence_of(near)["lost_near"].value == 0


def published_prediction(name: str, n_classes: int = 10, **given: Any) -> Gain:
    """Return the gain of a strategy on a transformer, as published for 1,000 images of 224 px."""
    about = {"n_per_class": 1000 // n_classes, "n_classes": n_classes, "family": "transformer"}
    profile = profile_of(**{**about, **given})
    model = gain_model(STRATEGIES[name](), profile, PRIORS)
    return predict_gain(model, evidence_of(profile, given.get("input_px")), PRIORS)


@pytest.mark.parametrize("name", ["full_fine_tune", "partial_fine_tune", "norm_tune", "lora"])
@pytest.mark.parametrize("n_classes", [2, 100])
def test_on_a_transformer_a_gain_is_the_published_one(name: str, n_classes: int) -> None:
    published = STRATEGIES[name].transformer_gain
    assert published is not None
    assert published.n_images == 1000
    gain = published_prediction(name, n_classes, similarity=0.3, linear=0.4)
    assert gain.mean == pytest.approx(published.mean)
    assert gain.sd == pytest.approx(published.sd)


def test_on_a_transformer_more_images_and_smaller_inputs_count_as_in_the_benchmarks() -> None:
    def shift(family: str, **given: Any) -> float:
        made = [
            profile_of(**{"n_per_class": 100, "n_classes": 10, "family": family, **g})
            for g in ({}, given)
        ]
        few, other = (
            predict_gain(
                gain_model(STRATEGIES["full_fine_tune"](), p, PRIORS),
                evidence_of(p),
                PRIORS,
            ).mean
            for p in made
        )
        return other - few

    for given in ({"n_per_class": 1000}, {"input_px": 96}):
        assert shift("transformer", **given) == pytest.approx(shift("convolutional", **given))
    assert shift("transformer", n_per_class=1000) > 0.1


def test_other_networks_and_strategies_without_published_gains_follow_the_benchmarks() -> None:
    for family in ("convolutional", "convnext", "transformer"):
        profile = profile_of(family=family)
        for name in ("linear_probe", "layer_svm", "from_scratch"):
            assert gain_model(STRATEGIES[name](), profile, PRIORS) == PRIORS.gains[name]
    cnn = gain_model(STRATEGIES["full_fine_tune"](), profile_of(), PRIORS)
    assert cnn == PRIORS.gains["full_fine_tune"]
    wide = gain_model(STRATEGIES["first_stages"](), profile_of(), PRIORS)
    assert (wide.cases, wide.intercept) == (0, STRATEGIES["first_stages"].fallback_gain.mean)


def test_the_gain_is_the_intercept_plus_the_weighted_standardised_evidence() -> None:
    mean = {name: prior.mean for name, prior in PRIORS.evidence.items()}
    profile = profile_of(similarity=1 - mean["far"], n_per_class=round(10 ** mean["size"]))
    evidence = evidence_of(profile)
    gain = predict_gain(MODEL, evidence, PRIORS)
    standardised = {name: evidence[name].standardised(PRIORS.evidence[name]) for name in evidence}
    rest = sum(MODEL.weights[name] * distance for name, (distance, _) in standardised.items())
    assert gain.mean == pytest.approx(MODEL.intercept + rest)
    unknown = [MODEL.weights[name] ** 2 for name, (_, share) in standardised.items() if not share]
    assert sum(unknown) > 0
    assert gain.sd == pytest.approx(math.sqrt(MODEL.sd**2 + sum(unknown)))


def test_noisy_evidence_is_shrunk_to_the_prior() -> None:
    prior = Prior(0.2, 0.3)
    assert Evidence(0.8, 0.0).standardised(prior) == (pytest.approx(2.0), 1.0)
    assert Evidence(0.8, 0.3).standardised(prior) == (pytest.approx(1.0), pytest.approx(0.5))
    assert UNKNOWN.standardised(prior) == (0.0, 0.0)


def test_the_measured_lead_of_the_svm_is_shrunk_by_its_noise() -> None:
    base = profile_of(linear=0.6, svm=0.8)
    measured = evidence_of(base)["svm"].value

    def lead(half: float) -> Gain:
        around = replace(
            base.best_svm, loss_gain=Interval(measured - half, measured, measured + half)
        )
        return predict_gain(SVM, evidence_of(replace(base, best_svm=around)), PRIORS)

    exact, noisy = lead(0.001), lead(0.2)
    assert exact.mean == pytest.approx(measured, abs=0.01)
    assert exact.sd == pytest.approx(SVM.sd, abs=0.01)
    assert PRIORS.evidence["svm"].mean < noisy.mean < exact.mean


def test_the_same_gain_in_log_odds_is_worth_fewer_points_near_an_accuracy_of_one() -> None:
    def points(share: float) -> float:
        base, spread = LogOdds(float(logit(share)), 0.1), Spread(0.1, 1.0)
        return expected_accuracy(base, Gain(1.0, 0.3), 100, spread).mid - share

    assert 0 < points(0.95) < points(0.5)


@pytest.mark.parametrize("share", [0.3, 0.8, 0.97])
def test_an_interval_is_symmetrical_as_an_angle_and_as_wide_at_every_accuracy(
    share: float,
) -> None:
    base, gain = LogOdds(float(logit(share)), 0.0), Gain(0.0, 0.5)
    found = expected_accuracy(base, gain, 100, Spread(model=0.1, measured=2.0))
    half = Z * np.hypot(0.1 * 0.5, 2.0 * 0.05)
    assert found.mid == pytest.approx(share)
    assert angle_of(found.mid) - angle_of(found.low) == pytest.approx(half)
    assert found.high == pytest.approx(accuracy_of(angle_of(share) + half))
    assert found.high <= 1


def test_the_angle_of_a_share_has_the_same_noise_at_every_share() -> None:
    rng = np.random.default_rng(0)
    for share in (0.2, 0.5, 0.9):
        drawn = rng.binomial(400, share, 20_000) / 400
        assert angle_of(drawn).std() == pytest.approx(0.5 / 20, rel=0.03)
    assert accuracy_of(angle_of(0.37)) == pytest.approx(0.37)
    assert accuracy_of(-0.1) == 0
    assert accuracy_of(2.0) == 1


def test_an_interval_becomes_a_prior_even_if_it_ends_at_one() -> None:
    base = LogOdds(float(logit(0.8)), 0.0)
    accuracy = expected_accuracy(base, Gain(0.0, 0.3), 10_000, Spread(0.1, 1.0))
    prior = prior_of(accuracy)
    assert prior.mean == pytest.approx(logit(0.8))
    assert prior.sd == pytest.approx(2 * np.hypot(0.03, 0.005) / 0.4, rel=0.01)
    cut_off = prior_of(Interval(0.8, 0.95, 1.0))
    assert 0.5 < cut_off.sd < 1.5


def test_a_few_correctly_classified_images_do_not_make_an_accuracy_of_one_certain() -> None:
    prior = Prior(1.0, 1.3)
    few, many = shrunk_to_prior(1.0, 8, prior), shrunk_to_prior(1.0, 10_000, prior)
    assert 0.8 < few.accuracy().mid < 0.95
    assert few.accuracy().high > 0.98
    assert many.accuracy().low > 0.999
    exact = shrunk_to_prior(0.9, 20_000, prior).accuracy()
    assert exact.mid == pytest.approx(0.9, abs=1e-3)
    assert exact.high - exact.low < 0.01


def test_intervals_after_few_images_have_their_nominal_coverage() -> None:
    rng = np.random.default_rng(0)
    prior = Prior(1.0, 1.2)
    covered, errors, raw_errors = [], [], []
    for truth in rng.normal(prior.mean, prior.sd, 400):
        n = int(rng.choice([10, 30, 100]))
        n_correct = rng.binomial(n, expit(truth))
        posterior = shrunk_to_prior(n_correct / n, n, prior).accuracy()
        covered.append(posterior.low <= expit(truth) <= posterior.high)
        errors.append(abs(posterior.mid - expit(truth)))
        raw_errors.append(abs(n_correct / n - expit(truth)))
    assert 0.86 < np.mean(covered) < 0.94
    assert np.mean(errors) < np.mean(raw_errors)
