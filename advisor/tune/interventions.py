"""Extra trials that a run starts where a finding reports a risk of negative transfer."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import BaseTrial

from advisor.types.advice import Advice, Finding
from strategies.base import Strategy
from strategies.models.backbone import Backbone, load_backbone

REESTIMATE_BN = {"batch_norm": "reestimated"}
NO_INTERPOLATION = {"blend": 1.0}
"""Fine-tuned weights are used as they are, not interpolated with the pretrained ones."""
STRONG_L2_SP = {"l2_sp": 10.0}
"""A strong L2 penalty on the distance to the pretrained weights."""
SPECTRAL_SHRINKAGE = {"spectral": 0.001}
REINIT_LAST_STAGES = {"reset_stages": 2, "blend": 1.0}
INTERVENTIONS: Mapping[str, Mapping[str, tuple[Mapping[str, Any], ...]]] = {
    "TL202": {"full_fine_tune": (REINIT_LAST_STAGES,)},
    "TL203": {"full_fine_tune": (REINIT_LAST_STAGES,)},
    "TL205": {"full_fine_tune": (REESTIMATE_BN,), "partial_fine_tune": (REESTIMATE_BN,)},
    "TL208": {
        "full_fine_tune": (NO_INTERPOLATION, REINIT_LAST_STAGES, SPECTRAL_SHRINKAGE, STRONG_L2_SP),
        "partial_fine_tune": (NO_INTERPOLATION,),
    },
}
"""Changes to the advised hyperparameters by finding and strategy; each is given one trial."""
BACKBONE = "backbone"
"""Key of the backbone's name among a trial's settings, if an intervention replaces it."""
NEGATIVE_TRANSFER = ("TL201", "TL202", "TL208", "TL209")
"""Findings after which, as issues, training from scratch is a candidate and not only a control."""


def interventions_for(findings: Sequence[Finding]) -> dict[str, list[dict[str, Any]]]:
    """Return the changes that findings call for, by strategy and without duplicates."""
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in findings:
        for strategy, changes in INTERVENTIONS.get(finding.code, {}).items():
            known = found.setdefault(strategy, [])
            known += [dict(change) for change in changes if dict(change) not in known]
    return found


def alternative_backbone(advice: Advice) -> dict[str, str] | None:
    """Return the change to an alternative backbone that TL209 found clearly better, or None."""
    alternative = advice.profile.alternative
    named = any(finding.code == "TL209" for finding in advice.findings)
    return {BACKBONE: alternative.name} if named and alternative is not None else None


def backbone_of(settings: Mapping[str, Any], own: Backbone) -> Backbone:
    """Return the backbone of a trial: the run's own unless an intervention replaced it."""
    name = settings.get(BACKBONE, own.name)
    return own if name == own.name else load_backbone(name, input_px=own.input_px)


def hyperparameters_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the strategy's hyperparameters: a trial's settings without the backbone."""
    return {k: v for k, v in settings.items() if k != BACKBONE}


def from_scratch_is_candidate(findings: Sequence[Finding]) -> bool:
    """Return whether an issue reports negative transfer, so that training from scratch may win."""
    return any(f.code in NEGATIVE_TRANSFER and f.severity == "issue" for f in findings)


def suggest_fixed(strategy: Strategy, trial: BaseTrial) -> Strategy:
    """Set hyperparameters that the trial starts with but the search space does not contain.

    Interventions are not in the search spaces: without a finding, trials of them are wasted.
    """
    start = trial.user_attrs.get("start", {})
    own = {f.name for f in fields(strategy)} - trial.params.keys()
    return replace(strategy, **{k: v for k, v in start.items() if k in own and v is not None})


def initial_trials(
    advised: Mapping[str, Any],
    space: Mapping[str, BaseDistribution],
    interventions: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Return the hyperparameters of a strategy's first trials: the advice, then one change each.

    The changes are the interventions, then a learning rate three times as high and one three
    times as low, then the other BatchNorm policy. These matter most when a pretrained network is
    trained. Learning rates are clipped to the search space.
    """
    entries = [dict(advised), *({**advised, **change} for change in interventions)]
    lr = space.get("lr")
    if isinstance(lr, FloatDistribution) and "lr" in advised:
        changed = [min(max(advised["lr"] * f, lr.low), lr.high) for f in (3.0, 1 / 3)]
        entries += [{**advised, "lr": value} for value in changed if value != advised["lr"]]
    if "batch_norm" in advised:
        other = "trained" if advised["batch_norm"] == "frozen" else "frozen"
        entries.append({**advised, "batch_norm": other})
    return [e for i, e in enumerate(entries) if e not in entries[:i]]
