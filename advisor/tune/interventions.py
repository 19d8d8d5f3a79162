"""What a run tries by itself where a finding warns of negative transfer."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import BaseTrial

from advisor.types.advice import Advice, Finding
from strategies.base import Strategy
from strategies.models.backbone import Backbone, load_backbone

AGAIN = {"batch_norm": "reestimated"}
LET_GO, HOLD = {"blend": 1.0}, {"l2_sp": 10.0}
"""A weaker and a stronger pull towards the pretrained weights."""
SHRINK = {"spectral": 0.001}
RESET = {"reset_stages": 2, "blend": 1.0}
INTERVENTIONS: Mapping[str, Mapping[str, tuple[Mapping[str, Any], ...]]] = {
    "TL202": {"full_fine_tune": (RESET,)},
    "TL203": {"full_fine_tune": (RESET,)},
    "TL205": {"full_fine_tune": (AGAIN,), "partial_fine_tune": (AGAIN,)},
    "TL208": {"full_fine_tune": (LET_GO, RESET, SHRINK, HOLD), "partial_fine_tune": (LET_GO,)},
}
"""By finding and strategy: changes to the advised hyperparameters, each worth a trial."""
BACKBONE = "backbone"
"""Name of a trial's setting, beside its hyperparameters, where a remedy is another backbone."""
HARMED = ("TL201", "TL202", "TL208", "TL209")
"""Issues after which training from scratch is a contender, not only a control."""


def interventions_for(findings: Sequence[Finding]) -> dict[str, list[dict[str, Any]]]:
    """Return the changes worth a trial, by strategy, each once."""
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in findings:
        for strategy, changes in INTERVENTIONS.get(finding.code, {}).items():
            known = found.setdefault(strategy, [])
            known += [dict(change) for change in changes if dict(change) not in known]
    return found


def other_backbone(advice: Advice) -> dict[str, str] | None:
    """Return the change to a backbone that is clearly better on the same images; else None."""
    alternative = advice.profile.alternative
    named = any(finding.code == "TL209" for finding in advice.findings)
    return {BACKBONE: alternative.name} if named and alternative is not None else None


def backbone_of(settings: Mapping[str, Any], own: Backbone) -> Backbone:
    """Return the backbone of a trial: the run's own, unless a remedy put another in its place."""
    name = settings.get(BACKBONE, own.name)
    return own if name == own.name else load_backbone(name, input_px=own.input_px)


def hyperparameters_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a trial's strategy is made with, which the backbone is no part of."""
    return {k: v for k, v in settings.items() if k != BACKBONE}


def scratch_contends(findings: Sequence[Finding]) -> bool:
    """Whether a warning of negative transfer stands."""
    return any(f.code in HARMED and f.severity == "issue" for f in findings)


def suggest_fixed(strategy: Strategy, trial: BaseTrial) -> Strategy:
    """Set what the trial is to start with and the strategy's search space does not draw.

    Remedies stay out of the search spaces: where nothing warns, trials spent on them are wasted.
    """
    start = trial.user_attrs.get("start", {})
    own = {f.name for f in fields(strategy)} - trial.params.keys()
    return replace(strategy, **{k: v for k, v in start.items() if k in own and v is not None})


def initial_trials(
    advised: Mapping[str, Any],
    space: Mapping[str, BaseDistribution],
    called_for: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Return where the first trials of a strategy start: the advice, then one change each.

    What findings call for, learning rates three times as high and as low, and the other BatchNorm
    policy: what matters most when a pretrained network is trained. Learning rates stay within the
    search space.
    """
    entries = [dict(advised), *({**advised, **change} for change in called_for)]
    lr = space.get("lr")
    if isinstance(lr, FloatDistribution) and "lr" in advised:
        changed = [min(max(advised["lr"] * f, lr.low), lr.high) for f in (3.0, 1 / 3)]
        entries += [{**advised, "lr": value} for value in changed if value != advised["lr"]]
    if "batch_norm" in advised:
        other = "trained" if advised["batch_norm"] == "frozen" else "frozen"
        entries.append({**advised, "batch_norm": other})
    return [e for i, e in enumerate(entries) if e not in entries[:i]]
