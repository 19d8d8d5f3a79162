"""Transfer findings: each is reported where its cause is present, and only there."""

from dataclasses import replace
from typing import Any

import pytest

from advisor.decide.negative_transfer import risk_of_harm
from advisor.decide.priors import Prior
from advisor.findings.transfer import TransferContext, check_transfer, relatedness
from advisor.types.advice import Finding, TransferRisk
from advisor.types.profile import AlternativeBackbone, ProbeResult, Profile
from advisor.types.similarity import HeadEvidence
from strategies.core.metrics import Interval, proportion
from tests.advisor.profiles import curve_of, probe, profile_of, similarity_of, statistics_of

PRIOR = Prior(0.2, 0.15)


def findings(profile: Profile, other: AlternativeBackbone | None = None) -> tuple[Finding, ...]:
    return check_transfer(profile, TransferContext(PRIOR, alternative=other))


def codes(profile: Profile) -> dict[str, str]:
    return {f.code: f.severity for f in findings(profile)}


def exactly(value: float) -> Interval:
    return Interval(value, value, value)


def with_head(profile: Profile, leep: float) -> Profile:
    head = HeadEvidence(
        entropy=exactly(2.0),
        confident_share=Interval(0.4, 0.5, 0.6),
        source_confident_share=0.6,
        nearest_source_classes=(),
        leep=Interval(leep - 0.1, leep, leep + 0.1),
    )
    return replace(profile, backbone_statistics=statistics_of(0.05, head=head))


NEAR: dict[str, Any] = {
    "similarity": 0.9,
    "transfer_gain": Interval(0.3, 0.4, 0.5),
    "pixel_probe": Interval(0.2, 0.3, 0.4),
    "curve": curve_of(0.9, 0.91),
}


def test_a_near_domain_with_good_features_has_no_findings() -> None:
    near = profile_of(**NEAR)
    assert codes(near) == {}
    assert codes(with_head(near, -0.5)) == {}


def test_features_at_chance_are_an_issue() -> None:
    assert codes(profile_of(**NEAR | {"linear": 0.1, "svm": 0.1}))["TL201"] == "issue"


def test_labels_without_signal_void_the_advice_and_silence_comparisons() -> None:
    harmed = profile_of(**NEAR | {"linear": 0.1, "svm": 0.1, "transfer_gain": exactly(-0.1)})
    context = TransferContext(PRIOR, no_signal=True)
    (found,) = check_transfer(harmed, context)
    assert (found.code, found.severity, found.voids_advice) == ("TL201", "issue", True)
    assert found.title == "nothing can be learned from these labels"
    better = AlternativeBackbone("other", proportion(0.8, 400), Interval(0.5, 0.6, 0.7))
    named = check_transfer(harmed, replace(context, alternative=better))
    assert {"TL201", "TL202", "TL209"} <= {f.code for f in named}
    assert not any(f.voids_advice for f in named)


@pytest.mark.parametrize(
    ("gain", "severity"),
    [
        (Interval(-0.2, -0.1, 0.0), "issue"),
        (Interval(-0.08, -0.01, 0.06), "issue"),
        (Interval(-0.01, 0.015, 0.04), "tip"),
    ],
)
def test_random_weights_that_do_as_well_are_reported(gain: Interval, severity: str) -> None:
    assert codes(profile_of(**NEAR | {"transfer_gain": gain}))["TL202"] == severity


def test_a_few_images_are_not_enough_for_a_finding() -> None:
    gain = Interval(-0.21, -0.03, 0.14)
    assert codes(profile_of(**NEAR | {"transfer_gain": gain})) == {}
    few = {"linear": 0.57, "svm": 0.57, "n_per_class": 5, "n_classes": 2}
    assert "TL201" not in codes(profile_of(**NEAR | few | {"probes": wide_probes()}))


def wide_probes() -> tuple[ProbeResult, ...]:
    return tuple(probe(d, "softmax", 0.57, n=10) for d in (3, 0))


def test_a_wide_interval_around_a_clear_gain_has_no_findings() -> None:
    assert codes(profile_of(**NEAR | {"transfer_gain": Interval(-0.05, 0.15, 0.35)})) == {}


def test_the_cause_of_harm_is_named() -> None:
    def detail(profile: Profile) -> str:
        return next(f.detail for f in findings(profile) if f.code == "TL202")

    harmed = profile_of(**NEAR | {"transfer_gain": Interval(-0.3, -0.2, -0.1)})
    assert "too far" in detail(replace(harmed, similarity=similarity_of(0.1)))
    assert "unrelated" in detail(with_head(harmed, -2.25))
    assert "not known" in detail(with_head(harmed, -0.2))


def alternative(lead: float) -> AlternativeBackbone:
    return AlternativeBackbone(
        "embedded", proportion(0.8, 200), Interval(lead - 0.1, lead, lead + 0.1)
    )


def test_a_measured_alternative_takes_precedence_over_other_causes() -> None:
    harmed = profile_of(**NEAR | {"transfer_gain": Interval(-0.3, -0.2, -0.1)})
    far = replace(harmed, similarity=similarity_of(0.1))

    worse = {f.code: f for f in findings(far, alternative(0.4))}
    assert worse["TL209"].severity == "issue"
    assert "backbone itself" in worse["TL202"].detail
    assert "--backbone embedded" in worse["TL202"].action
    assert "--backbone embedded" in worse["TL209"].action

    not_better = {f.code: f for f in findings(far, alternative(0.02))}
    assert "TL209" not in not_better
    assert "too far" in not_better["TL202"].detail
    assert "--backbone embedded" not in not_better["TL202"].action


def risks(**probability: float) -> tuple[TransferRisk, ...]:
    gain = Interval(-0.1, 0.0, 0.1)
    return tuple(TransferRisk(name, p, gain) for name, p in probability.items())


def test_the_risk_of_losing_to_scratch_is_reported_by_strategy() -> None:
    near = profile_of(**NEAR)

    def found(**probability: float) -> Finding | None:
        reported = check_transfer(near, TransferContext(PRIOR, risks(**probability)))
        return next((f for f in reported if f.code == "TL208"), None)

    assert found(linear_probe=0.1, full_fine_tune=0.05) is None
    probe_only = found(linear_probe=0.7, full_fine_tune=0.1)
    assert probe_only is not None
    assert probe_only.severity == "tip"
    assert "than linear_probe" in probe_only.title
    assert "full_fine_tune" in probe_only.action
    every = found(linear_probe=0.9, full_fine_tune=0.6)
    assert every is not None
    assert every.severity == "issue"
    assert "from_scratch" in every.action


def test_the_risk_falls_with_the_gain_and_is_shrunk_to_the_prior() -> None:
    risks = [risk_of_harm(Interval(g - 0.1, g, g + 0.1), PRIOR) for g in (-0.2, -0.1, 0.0, 0.2)]
    assert risks == sorted(risks, reverse=True)
    assert risks[0] > 0.9
    assert risks[3] < 0.01
    precise = risk_of_harm(Interval(-0.11, -0.1, -0.09), PRIOR)
    noisy = risk_of_harm(Interval(-0.5, -0.1, 0.3), PRIOR)
    assert noisy < 0.5 < 0.99 < precise


def test_a_middle_depth_that_is_clearly_better_is_named() -> None:
    base = profile_of(**NEAR)
    softmax = base.probes[:2]

    def with_middle(gain: float) -> Profile:
        svms = [probe(1, "squared_hinge", 0.7, -0.2), probe(2, "squared_hinge", 0.9 + gain, gain)]
        last = [probe(3, "squared_hinge", 0.9, 0.0), probe(0, "squared_hinge", 0.9, 0.0)]
        return replace(base, probes=(*softmax, *svms, *last))

    assert "TL203" in codes(with_middle(0.06))
    assert "TL203" not in codes(with_middle(0.015))
    found = next(f for f in findings(with_middle(0.06)) if f.code == "TL203")
    assert "depth 2" in found.action


def test_a_pretrained_head_that_does_not_explain_the_labels_is_reported() -> None:
    unrelated = profile_of(**NEAR)
    assert relatedness(with_head(unrelated, -2.303)) == pytest.approx(0, abs=1e-3)
    assert "TL204" in codes(with_head(unrelated, -2.25))
    assert relatedness(unrelated) is None


def test_bn_statistics_that_do_not_fit_are_reported_only_for_far_domains() -> None:
    def shifted(score: float, nats: float) -> Profile:
        given = NEAR | {"similarity": score}
        return profile_of(**given, backbone_statistics=statistics_of(0.05, nats, 0.05))

    assert "TL205" in codes(shifted(0.2, 0.5))
    assert "TL205" not in codes(shifted(0.9, 0.5))
    assert "TL205" not in codes(shifted(0.2, 0.1))


def test_thumbnails_that_do_as_well_as_the_network_are_reported() -> None:
    assert (
        codes(profile_of(**NEAR | {"pixel_probe": Interval(0.88, 0.91, 0.94)}))["TL206"] == "tip"
    )
    poor = {"pixel_probe": Interval(0.78, 0.83, 0.87), "linear": 0.48, "svm": 0.48}
    assert codes(profile_of(**NEAR | poor))["TL206"] == "issue"
    at_chance = {"pixel_probe": Interval(0.05, 0.1, 0.2), "linear": 0.15, "svm": 0.15}
    assert "TL206" not in codes(profile_of(**NEAR | at_chance))


def test_more_images_are_suggested_only_if_the_curve_clearly_rises() -> None:
    rising = replace(profile_of(**NEAR), curve=curve_of(0.7, 0.74, n_per_class=30))
    found = {f.code: f for f in findings(rising)}
    assert (
        "About 15 more images per class would raise the linear probe's accuracy by 2 points"
        in found["TL207"].detail
    )
    assert "TL207" not in codes(replace(rising, curve=curve_of(0.7, 0.705)))
