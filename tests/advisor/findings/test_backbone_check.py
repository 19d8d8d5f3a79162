"""The embedded backbone is compared only if another backbone is in doubt."""

from dataclasses import replace

import pytest

from advisor.findings import backbone_check
from advisor.findings.backbone_check import in_doubt, probe_alternative
from advisor.types.profile import BackboneScore, Profile
from strategies.core.context import RunContext
from strategies.core.metrics import Interval, proportion
from strategies.data.dataset import Dataset
from strategies.models.backbone import Backbone
from tests.advisor.profiles import priors_by_hand, probe, profile_of

PRIORS = priors_by_hand()
DOUBTFUL = profile_of(transfer_gain=Interval(-0.2, -0.1, 0.0))
CLEAR = profile_of(transfer_gain=Interval(0.3, 0.4, 0.5))


def test_useless_or_too_specialised_features_or_little_transfer_gain_raise_doubt() -> None:
    assert not in_doubt(CLEAR, PRIORS)
    assert in_doubt(DOUBTFUL, PRIORS)
    too_specialised = (*CLEAR.probes[:2], probe(1, "squared_hinge", 0.95, 0.05), *CLEAR.probes[3:])
    assert in_doubt(replace(CLEAR, probes=too_specialised), PRIORS)
    assert in_doubt(replace(CLEAR, probes=profile_of(linear=0.1, svm=0.1).probes), PRIORS)


@pytest.mark.parametrize("profile", [CLEAR, DOUBTFUL], ids=["clear", "doubtful"])
def test_the_embedded_backbone_has_no_alternative(
    profile: Profile, small_dataset: Dataset, backbone: Backbone, ctx: RunContext
) -> None:
    assert probe_alternative(profile, small_dataset, backbone, PRIORS, ctx) is None


def test_a_backbone_without_doubt_is_not_compared(
    small_dataset: Dataset, backbone: Backbone, ctx: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise AssertionError("compared")

    monkeypatch.setattr(backbone_check, "compare_backbones", fail)
    other = replace(backbone, name="local-dir:another")
    assert probe_alternative(CLEAR, small_dataset, other, PRIORS, ctx) is None
    with pytest.raises(AssertionError, match="compared"):
        probe_alternative(DOUBTFUL, small_dataset, other, PRIORS, ctx)


@pytest.mark.parametrize("embedded_wins", [True, False])
def test_the_lead_is_that_of_the_embedded_backbone(
    small_dataset: Dataset,
    backbone: Backbone,
    ctx: RunContext,
    monkeypatch: pytest.MonkeyPatch,
    embedded_wins: bool,
) -> None:
    behind = Interval(0.1, 0.2, 0.35)

    def score(name: str, *, best: bool) -> BackboneScore:
        accuracy = proportion(0.8 if best else 0.6, 100)
        return BackboneScore(name, 1, accuracy, None if best else behind, 1.0, 1.0, 64, 4.0, 1)

    backbone_scores = (
        score(backbone.name, best=embedded_wins),
        score("local-dir:another", best=not embedded_wins),
    )
    monkeypatch.setattr(backbone_check, "compare_backbones", lambda *args: backbone_scores)
    other = replace(backbone, name="local-dir:another")
    alternative = probe_alternative(DOUBTFUL, small_dataset, other, PRIORS, ctx)
    assert alternative is not None
    assert alternative.name == backbone.name
    assert alternative.lead == (behind if embedded_wins else Interval(-0.35, -0.2, -0.1))
